"""Coverage-guided fuzzing of what reads bytes from strangers and operators; `python -m fuzz --help`.

Strategy: targets/ has a function for each reader that takes any bytes and raises for a wrong answer, worker.py lets
atheris look for such bytes, reach.py keeps of a corpus what reaches most. docs/fuzzing.md has what was run and found.
"""

"""The benchmark: ktlsd and its peers in turn, same files, certificate, cipher and clients; `python -m bench --help`.

Strategy: rows.py says what is compared and what it has to reach, peers.py how each server is run, clients.py how it is
measured, run.py takes turns, report.py and plot.py show the ratios.
"""

"""The commands beside serving: check, compress, doctor, --version. cli.py parses the command line and calls them.

They may import process/ and the floors below it. Each begins at its run(); check.py lists all checks, which are in
*_findings.py.
"""

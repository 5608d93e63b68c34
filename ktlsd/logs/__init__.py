"""The error log and the access log: their files, formats and batches, and the signals that open files again.

It may import http/, tls/ and config/. Begin with logs.py; exchange_log.py follows the requests of a connection, and
access_log.py turns each into a line.
"""

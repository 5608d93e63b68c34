"""Counters in memory that all workers share, and their text for Prometheus.

It may import http/, tls/, config/ and openssl/. Begin with metrics.py.
"""

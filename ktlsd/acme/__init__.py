"""Certificates from an ACME server (RFC 8555): when to order, the state folder, the client, the answers to challenges.

May import tls/ and below. Begin with plan.py (pure), then folder.py; client.py runs in a process of its own; it and
authority.py are the only modules that import the libraries `acme` and `josepy`. process/acme_orders.py starts it.
"""

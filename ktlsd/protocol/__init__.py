"""The protocols of HTTP on one connection: HTTP/1.1.

It may import service.py, site/, connection/ and the floors below them. Begin with http1.py. responder.py names what
every protocol asks of the rest of ktlsd: remembered responses, decisions, log, limits, transport.
"""

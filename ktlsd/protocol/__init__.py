"""The protocols of HTTP on one connection: HTTP/1.1.

It may import service.py, site/, connection/ and the floors below them. Begin with http1.py.
"""

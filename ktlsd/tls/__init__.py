"""TLS below HTTP: ClientHellos, certificates, tickets, policies, and kTLS: the reasons and the proof.

It may import config/, openssl/ and ssl_ffi.py. Begin with ktls.py, the table of reasons for no kTLS; ktls_probe.py
tries it out.
"""

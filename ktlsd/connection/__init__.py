"""Sockets: transports with TLS and without, waiting, fairness, the page cache, PROXY headers.

It may import logs/, metrics/, http/, tls/, config/, openssl/, ssl_ffi.py and system_calls.py, but not site/. Begin
with transport.py, which all transports share; driver.py runs connections, poller.py waits for their sockets,
scheduler.py shares out the event loop.
"""

"""The values that ssl_ffi.py passes to OpenSSL and gets from it, without C pointers: numbers, lists, errors, results.

It may import config/. Begin with results.py and errors.py, which all users of a connection know; algorithms.py
has what is offered by default, and the others serve ssl_ffi.py.
"""

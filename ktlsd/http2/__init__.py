"""HTTP/2 (RFC 9113, 7541, 9218) without input and output: bytes in, events and bytes out. import-linter holds that.

It may import http/ only, whose RequestHead it makes; the time is an argument. Begin with connection.py, which a
protocol drives; sender.py has the calls that answer, events.py what receiving gives. HPACK is hpack_decoder.py,
hpack_encoder.py and head_cache.py.
"""

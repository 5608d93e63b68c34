"""The semantics of HTTP, pure: no sockets, no files, no clock. import-linter holds that.

It may import config/ only. Begin with decide.py, which makes a response of a request and the facts about a file;
request_target.py comes before it, header_rules.py and cors.py add header fields after it.
"""

"""From a request's target to a file and its response: everything that touches the root.

It may import logs/, metrics/, http/, tls/, config/ and system_calls.py, but not connection/. Begin with site.py;
lookup.py opens files below the root, rules.py reads the rules that lie there, response_cache.py remembers responses.
"""

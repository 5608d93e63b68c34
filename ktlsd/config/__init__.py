"""The options as types, the errors of their file, and the basics of every floor: networks, limits, printable texts.

It may import nothing else of ktlsd. Begin with options.py; settings.py, some floors above, fills the types.
"""

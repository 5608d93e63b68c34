"""The options as types, the errors of their file, and the basics of every floor: networks, limits, printable texts.

It may import nothing else of ktlsd. Begin with options.py, whose values have the types of values.py; settings.py, some
floors above, fills them.
"""

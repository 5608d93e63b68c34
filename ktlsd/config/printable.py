"""Texts from anywhere, made fit for a terminal or a line of a log: pure.

Strategy: unprintable characters are escaped as in Python, so that nothing ends a line or moves a cursor.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with an escape for each character that is not printable."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def one_line(text: str) -> str:
    """`text` on one line, with single spaces for all white space in it, and printable."""
    return printable(" ".join(text.split()))

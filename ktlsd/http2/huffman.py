"""Decoding of Huffman-coded strings (RFC 7541 section 5.2 and appendix B): pure.

Strategy: a state machine that takes a byte a step. A state is a node of the code's tree, a step gives the symbols that
end in the byte and the next state. A step is made when it is first needed: of all 65,536 ordinary text needs few.
"""

from __future__ import annotations

from typing import Final

# The code is canonical: codes of one length are consecutive numbers, in the order of their symbols.
_SYMBOLS: Final = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\\xc3\xd0",
    20: b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2",
    21: b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6",
    22: b"\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9",
    23: b"\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf\xc5"
    b"\xe7\xef",
    24: b"\t\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed",
    25: b"\xc7\xcf\xea\xeb",
    26: b"\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff",
    27: b"\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe",
    28: b"\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f"
    b"\xdc\xf9",
    30: b"\n\r\x16",
}
_LONGEST_PADDING: Final = 7
"""Bits: more would be a whole byte, which must not be there."""


class HuffmanError(Exception):
    """The bytes are no Huffman-coded string; the text is the reason for the log."""


class _Node:
    """A state."""

    __slots__ = ("branches", "may_end", "steps")

    def __init__(self) -> None:
        self.branches: list[_Node | int | None] = [None, None]
        """By the next bit: a node, a symbol, or None if only the symbol EOS begins so."""
        self.may_end = False
        """Whether the bits since the last symbol are padding: at most 7, all of them 1."""
        self.steps: _Steps = [None] * 256
        """By the next byte, those that were made."""

    def step(self, byte: int) -> _Step:
        """Make the step of this byte. Raises HuffmanError."""
        node = self
        symbols = bytearray()
        for shift in range(7, -1, -1):
            branch = node.branches[byte >> shift & 1]
            if branch is None:
                raise HuffmanError("the symbol EOS in a Huffman-coded string")
            if isinstance(branch, int):
                symbols.append(branch)
                node = _ROOT
            else:
                node = branch
        step = self.steps[byte] = bytes(symbols), node.steps, node
        return step


# The symbols that end in a byte, and the state after it: its steps, and itself. A list is looked up faster than a node.
_Step = tuple[bytes, "_Steps", _Node]
_Steps = list[_Step | None]


def _tree() -> _Node:
    root = _Node()
    code = previous = 0
    for length, symbols in _SYMBOLS.items():
        code <<= length - previous
        previous = length
        for symbol in symbols:
            node = root
            for shift in range(length - 1, 0, -1):
                bit = code >> shift & 1
                branch = node.branches[bit]
                if branch is None:
                    branch = node.branches[bit] = _Node()
                assert isinstance(branch, _Node)  # noqa: S101  # no code is the beginning of another
                node = branch
            node.branches[code & 1] = symbol
            code += 1
    return root


def _mark_ends(root: _Node) -> None:
    node: _Node | int | None = root
    for _ in range(_LONGEST_PADDING + 1):
        assert isinstance(node, _Node)  # noqa: S101  # EOS is 30 bits, all of them 1
        node.may_end = True
        node = node.branches[1]


_ROOT: Final = _tree()
_mark_ends(_ROOT)


def decode(coded: bytes) -> bytes:
    """The string. Raises HuffmanError."""
    node, steps = _ROOT, _ROOT.steps
    pieces: list[bytes] = []
    append = pieces.append
    for byte in coded:
        symbols, steps, node = steps[byte] or node.step(byte)
        append(symbols)
    if not node.may_end:
        raise HuffmanError("wrong padding of a Huffman-coded string")
    return b"".join(pieces)

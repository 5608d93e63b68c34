"""Bodies of HTTP/2 cut into frames, for memory and for the kernel, and the files that stay open for the kernel."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.byte_range import ByteRange
from ktlsd.http2.frames import HEADER_BYTES
from ktlsd.http2.turns import Turn
from ktlsd.protocol.http2_body import Body

CONTENT = bytes(range(256)) * 20

PIECES = st.lists(
    st.binary(min_size=1, max_size=50) | st.builds(ByteRange, st.integers(0, len(CONTENT) - 500), st.integers(1, 500)),
    min_size=1,
    max_size=6,
)


def size(piece: bytes | ByteRange) -> int:
    return piece.count if isinstance(piece, ByteRange) else len(piece)


def text(piece: bytes | ByteRange) -> bytes:
    return CONTENT[piece.offset : piece.end] if isinstance(piece, ByteRange) else piece


def body_of(pieces: list[bytes | ByteRange]) -> Body:
    body = Body(0.0)
    for piece in pieces:
        body.push(piece)
    return body


@given(PIECES, st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_frames_for_the_kernel_are_those_for_memory(pieces: list[bytes | ByteRange], wanted: list[int]) -> None:
    left = sum(map(size, pieces))
    sizes: list[int] = []
    for one in wanted:
        if left:
            sizes.append(min(one, left))
            left -= sizes[-1]
    turn = Turn(1, tuple(sizes), not left)
    in_memory = memoryview(bytearray(turn.frame_bytes))
    turn.write_headers(in_memory, 0)
    copied, sent = body_of(pieces), body_of(pieces)
    for read in copied.fill(in_memory, turn.sizes):
        offset = read.offset
        for place in read.views(in_memory):
            place[:] = CONTENT[offset : offset + len(place)]
            offset += len(place)
    frames = sent.frames(turn)
    assert b"".join(map(text, frames)) == bytes(in_memory)
    assert [size(frame) for frame in frames].count(HEADER_BYTES) >= len(sizes)
    assert copied.mark() == sent.mark()


def test_a_file_that_is_being_sent_stays_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    body = Body(0.0)
    body.use_descriptor(descriptor, None)
    body.hold()
    body.hold()
    body.end(complete=False)
    body.let_go()
    os.fstat(descriptor)
    body.let_go()
    try:
        os.fstat(descriptor)
    except OSError:
        return
    raise AssertionError("it is still open")

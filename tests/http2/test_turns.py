"""DATA frames that fill TLS records."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http2.turns import RECORD_BYTES, Turn, frame_sizes, largest_payload, places
from tests.http2.client import parsed

PAYLOAD = 16375


@pytest.mark.parametrize(
    ("most", "payload"),
    [(16384, 16375), (16385, 16375), (32767, 16375), (32768, 32759), (65536, 65527), (2**24 - 1, 2**24 - 16384 - 9)],
)
def test_the_largest_payload(most: int, payload: int) -> None:
    assert largest_payload(most) == payload
    assert payload <= most
    assert (payload + 9) % RECORD_BYTES == 0


@pytest.mark.parametrize(
    ("count", "room", "before", "most", "sizes"),
    [
        (100_000, 1 << 20, 0, 16384, (*[PAYLOAD] * 6, 1750)),
        (100_000, 32768, 0, 16384, (PAYLOAD, PAYLOAD)),
        (100_000, 32768 - 109, 100 + 9, 16384, (PAYLOAD - 109, PAYLOAD)),
        (100_000, 40, 0, 16384, (31,)),
        (5, 1 << 20, 0, 16384, (5,)),
        (0, 1 << 20, 0, 16384, ()),
        (100, 9, 0, 16384, ()),
        (100, 10, 0, 16384, (1,)),
        # Too little is left of a record for a frame.
        (100_000, 65536, 16384 - 9, 16384, (16384, PAYLOAD, PAYLOAD, 65536 - 16393 - 2 * 16384 - 9)),
        (100_000, 1 << 20, 16384 - 10, 16384, (1, *[PAYLOAD] * 6, 1749)),
        (100_000, 1 << 20, 0, 65536, (65527, 34473)),
        (100_000, 1 << 20, 16384 + 400, 65536, (65127, 34873)),
    ],
)
def test_frames_of_a_turn(count: int, room: int, before: int, most: int, sizes: tuple[int, ...]) -> None:
    assert frame_sizes(count, room, before, largest_payload(most)) == sizes


LIMITS = st.sampled_from([16384, 20_000, 65536, 2**24 - 1])


@given(st.integers(0, 300_000), st.integers(0, 300_000), st.integers(0, 40_000), LIMITS)
def test_records_stay_full(count: int, room: int, before: int, most: int) -> None:
    sizes = frame_sizes(count, room, before, largest_payload(most))
    assert sum(sizes) <= count
    assert sum(sizes) + 9 * len(sizes) <= max(room, 0)
    assert all(0 < size <= most for size in sizes)
    ends = list(itertools.accumulate((size + 9 for size in sizes), initial=before))[1:]
    assert all(end % RECORD_BYTES == 0 for end in ends[:-1])
    if sum(sizes) < count:
        assert room - sum(sizes) - 9 * len(sizes) <= 9


@pytest.mark.parametrize(("last", "end"), list(itertools.product([False, True], repeat=2)))
def test_headers_go_between_the_pieces(last: bool, end: bool) -> None:
    turn = Turn(3, (5, 7, 1), last)
    assert (turn.count, turn.frame_bytes) == (13, 40)
    memory = memoryview(bytearray(50))
    turn.write_headers(memory, 4, end=end)
    gaps = [memory[4 + begin : 4 + stop] for begin, stop in places(turn.sizes)]
    for place, text in zip(gaps, (b"first", b"seconds", b"3"), strict=True):
        place[:] = text
    assert bytes(memory[:4]) + bytes(memory[44:]) == bytes(10)
    frames = parsed(bytes(memory[4:44]))
    assert [getattr(frame, "data", None) for frame in frames] == [b"first", b"seconds", b"3"]
    assert ["END_STREAM" in frame.flags for frame in frames] == [False, False, last and end]
    assert b"".join(a + b for a, b in zip(turn.headers(end=end), gaps, strict=True)) == bytes(memory[4:44])

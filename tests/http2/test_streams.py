"""Stream states (RFC 9113 section 5.1): the table row by row, and the short memory of closed streams."""

from __future__ import annotations

import pytest

from ktlsd.http2.errors import ErrorCode
from ktlsd.http2.frames import FrameType
from ktlsd.http2.streams import TABLE, Action, ClosedStreams, State

FRAMES = (
    FrameType.DATA,
    FrameType.HEADERS,
    FrameType.RST_STREAM,
    FrameType.WINDOW_UPDATE,
    FrameType.PRIORITY_UPDATE,
)


@pytest.mark.parametrize(
    ("state", "row"),
    [
        # p: process, i: ignore, s: stream error, c: connection error; of PROTOCOL_ERROR or (upper case) STREAM_CLOSED
        (State.IDLE, "c p c c p"),
        (State.OPEN, "p p p p p"),
        (State.HALF_CLOSED, "S S p p p"),
        (State.CLOSED, "C C i i i"),
        (State.RESET, "i i i i i"),
        (State.SKIPPED, "C c i i i"),
    ],
)
def test_the_table(state: State, row: str) -> None:
    actions = {"p": Action.PROCESS, "i": Action.IGNORE, "s": Action.STREAM_ERROR, "c": Action.CONNECTION_ERROR}
    for frame, letter in zip(FRAMES, row.split(), strict=True):
        verdict = TABLE[state, frame]
        assert verdict.action is actions[letter.lower()]
        if letter in "SC":
            assert verdict.code is ErrorCode.STREAM_CLOSED
        elif letter in "sc":
            assert verdict.code is ErrorCode.PROTOCOL_ERROR


def test_the_table_is_whole() -> None:
    assert set(TABLE) == {(state, frame) for state in State for frame in FRAMES}


def test_closed_streams_are_told_apart() -> None:
    closed = ClosedStreams()
    assert closed.state(1) is State.CLOSED
    closed.reset(3)
    closed.skip(5, 8)
    assert [closed.state(stream_id) for stream_id in range(1, 11, 2)] == [
        *(State.CLOSED, State.RESET, State.SKIPPED, State.SKIPPED, State.CLOSED)
    ]


def test_the_memory_is_short() -> None:
    closed = ClosedStreams()
    for stream_id in range(1, 2001, 2):
        closed.reset(stream_id)
        closed.skip(100_000 + 10 * stream_id, 100_001 + 10 * stream_id)
    states = [closed.state(stream_id) for stream_id in range(1, 2001, 2)]
    assert states.index(State.RESET) == 1000 - 256
    assert set(states[1000 - 256 :]) == {State.RESET}
    skipped = [closed.state(100_001 + 10 * stream_id) for stream_id in range(1, 2001, 2)]
    assert skipped.count(State.SKIPPED) == 16

"""Frames as hyperframe reads and writes them."""

from __future__ import annotations

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http2 import frames
from ktlsd.http2.errors import ConnectionFault, ErrorCode
from ktlsd.http2.frames import FrameType
from ktlsd.http2.peer_settings import SETTINGS_ACK, Setting, read_settings, server_settings, settings_frame


def read(data: bytes) -> list[Frame]:
    """The frames in these bytes, which have to be whole."""
    found = []
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        assert len(data) >= 9 + length
        found.append(frame)
        data = data[9 + length :]
    return found


def test_small_frames() -> None:
    data = frames.rst_stream(3, ErrorCode.CANCEL) + frames.window_update(5, 70_000) + frames.ping(b"12345678", ack=True)
    data += frames.goaway(7, ErrorCode.ENHANCE_YOUR_CALM) + SETTINGS_ACK + frames.ping(b"87654321", ack=False)
    reset, window, pong, goaway, ack, ping = read(data)
    assert isinstance(reset, RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (3, 8)
    assert isinstance(window, WindowUpdateFrame)
    assert (window.stream_id, window.window_increment) == (5, 70_000)
    assert isinstance(pong, PingFrame)
    assert isinstance(ping, PingFrame)
    assert (pong.opaque_data, set(pong.flags), ping.opaque_data, set(ping.flags)) == (
        b"12345678",
        {"ACK"},
        b"87654321",
        set(),
    )
    assert isinstance(goaway, GoAwayFrame)
    assert (goaway.stream_id, goaway.last_stream_id, goaway.error_code) == (0, 7, 11)
    assert isinstance(ack, SettingsFrame)
    assert set(ack.flags) == {"ACK"}


@given(st.binary(max_size=100), st.integers(1, 40), st.booleans())
def test_a_block_in_one_or_several_frames(block: bytes, most: int, end: bool) -> None:
    first, *others = read(frames.headers_frames(block, 9, most, end=end))
    assert isinstance(first, HeadersFrame)
    assert ("END_STREAM" in first.flags) == end
    assert all(isinstance(frame, ContinuationFrame) for frame in others)
    pieces = [frame.data for frame in (first, *others) if isinstance(frame, HeadersFrame | ContinuationFrame)]
    assert b"".join(pieces) == block
    assert [("END_HEADERS" in frame.flags) for frame in (first, *others)] == [False] * len(others) + [True]
    assert all(frame.stream_id == 9 and frame.body_len <= most for frame in (first, *others))
    assert len(others) == max(0, (len(block) - 1) // most)


@pytest.mark.parametrize("end", [False, True])
def test_the_header_of_a_data_frame(end: bool) -> None:
    (frame,) = read(frames.data_header(5, 0x7FFFFFFF, end=end) + b"hello")
    assert isinstance(frame, DataFrame)
    assert (frame.data, frame.stream_id, "END_STREAM" in frame.flags) == (b"hello", 0x7FFFFFFF, end)


@given(st.binary(max_size=40), st.integers(0, 255) | st.none(), st.integers(1, 2**31 - 1) | st.none())
def test_what_is_in_a_headers_frame(block: bytes, padding: int | None, dependency: int | None) -> None:
    flags = []
    options: dict[str, int] = {}
    if padding is not None:
        flags.append("PADDED")
        options["pad_length"] = padding
    if dependency is not None:
        flags.append("PRIORITY")
        options["depends_on"] = dependency
    data = HeadersFrame(1, data=block, flags=flags, **options).serialize()
    start, stop, depends_on = frames.header_block(data, 9, len(data), data[4])
    assert data[start:stop] == block
    assert depends_on == (dependency or 0)


@pytest.mark.parametrize(
    ("flags", "payload", "code"),
    [
        (frames.PADDED, b"", ErrorCode.FRAME_SIZE_ERROR),
        (frames.PADDED, b"\x01", ErrorCode.PROTOCOL_ERROR),
        (frames.PADDED, b"\xff" * 255, ErrorCode.PROTOCOL_ERROR),
        (frames.PRIORITY, b"\0\0\0\0", ErrorCode.FRAME_SIZE_ERROR),
        (frames.PRIORITY | frames.PADDED, b"\x07\0\0\0\0\x0f\0", ErrorCode.PROTOCOL_ERROR),
        (frames.PRIORITY | frames.PADDED, b"\x01\0\0\0\0\x0f", ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_a_headers_frame_that_is_wrong_by_itself(flags: int, payload: bytes, code: ErrorCode) -> None:
    with pytest.raises(ConnectionFault) as caught:
        frames.header_block(payload, 0, len(payload), flags)
    assert caught.value.code is code


def test_all_padding_leaves_nothing() -> None:
    assert frames.unpadded(b"\x02\0\0", 0, 3, frames.PADDED, FrameType.DATA) == (1, 1)


def test_the_servers_settings() -> None:
    (frame,) = read(server_settings(128, 65536))
    assert isinstance(frame, SettingsFrame)
    assert frame.settings == {3: 128, 6: 65536, 9: 1}


@given(st.lists(st.tuples(st.sampled_from(Setting), st.integers(16384, 2**24 - 1)), max_size=6))
def test_settings_come_back_in_order(settings: list[tuple[Setting, int]]) -> None:
    settings = [(number, value) for number, value in settings if number not in (Setting.ENABLE_PUSH, 9)]
    assert read_settings(settings_frame(settings)[9:]) == settings


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ("0003000000", ErrorCode.FRAME_SIZE_ERROR),
        ("000200000002", ErrorCode.PROTOCOL_ERROR),
        ("000480000000", ErrorCode.FLOW_CONTROL_ERROR),
        ("000500003fff", ErrorCode.PROTOCOL_ERROR),
        ("000501000000", ErrorCode.PROTOCOL_ERROR),
        ("000900000002", ErrorCode.PROTOCOL_ERROR),
        ("0003000000010004ffffffff", ErrorCode.FLOW_CONTROL_ERROR),
    ],
)
def test_settings_that_no_client_can_have(payload: str, code: ErrorCode) -> None:
    with pytest.raises(ConnectionFault) as caught:
        read_settings(bytes.fromhex(payload))
    assert caught.value.code is code


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "000200000000",
        "000200000001",
        "00047fffffff",
        "000500004000",
        "000500ffffff",
        "ffffffffffff",
        "000100000000",
    ],
)
def test_settings_at_their_limits(payload: str) -> None:
    assert len(read_settings(bytes.fromhex(payload))) == len(payload) // 12

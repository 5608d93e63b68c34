"""A client of the engine for tests: it writes any frames, and reads what the engine sends with hyperframe and hpack."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

import hpack
from hyperframe.frame import Frame, HeadersFrame, SettingsFrame

from ktlsd.http.request_fields import Field
from ktlsd.http2.connection import Connection
from ktlsd.http2.events import ConnectionFailed, Event, Request, StreamReset
from ktlsd.http2.frames import PREFACE, FrameType, frame
from ktlsd.http2.head_cache import HeadCache
from ktlsd.http2.hpack_encoder import encode
from ktlsd.http2.limits import Http2Limits
from tests.http2.blocks import GET

END_STREAM, END_HEADERS, PADDED, PRIORITY, ACK = 0x1, 0x4, 0x8, 0x20, 0x1
OK_BLOCK = encode([(b":status", b"200")])


def settings(*values: tuple[int, int], ack: bool = False) -> bytes:
    payload = b"".join(struct.pack(">HI", number, value) for number, value in values)
    return frame(FrameType.SETTINGS, ACK if ack else 0, 0, payload)


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def headers(stream_id: int, block: bytes, flags: int = END_STREAM | END_HEADERS) -> bytes:
    return frame(FrameType.HEADERS, flags, stream_id, block)


def data(stream_id: int, body: bytes = b"", flags: int = 0) -> bytes:
    return frame(FrameType.DATA, flags, stream_id, body)


def rst_stream(stream_id: int, code: int = 8) -> bytes:
    return frame(FrameType.RST_STREAM, 0, stream_id, number(code))


def window_update(stream_id: int, increment: int) -> bytes:
    return frame(FrameType.WINDOW_UPDATE, 0, stream_id, number(increment))


def priority_update(stream_id: int, value: bytes) -> bytes:
    return frame(FrameType.PRIORITY_UPDATE, 0, 0, number(stream_id) + value)


def parsed(output: bytes) -> list[Frame]:
    """Whole frames."""
    found = []
    while output:
        one, length = Frame.parse_frame_header(memoryview(output[:9]))
        assert len(output) >= 9 + length, "half a frame"
        one.parse_body(memoryview(output[9 : 9 + length]))
        found.append(one)
        output = output[9 + length :]
    return found


@dataclass
class Client:
    """A connection of the engine, and what a client knows of it."""

    limits: Http2Limits = field(default_factory=Http2Limits)
    cache: HeadCache | None = None
    now: float = 0.0

    def __post_init__(self) -> None:
        cache = self.cache or HeadCache(self.limits.header_list_bytes)
        self.connection = Connection(self.limits, cache, self.now)
        self.sender = self.connection.sender
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.next_stream = 1

    def begin(self, *values: tuple[int, int]) -> None:
        """Preface and SETTINGS; the server's are read and acknowledged."""
        assert self.receive(PREFACE + settings(*values) + settings(ack=True)) == []
        first, ack = self.frames()
        assert isinstance(first, SettingsFrame)
        assert isinstance(ack, SettingsFrame)

    def receive(self, bytes_: bytes) -> list[Event]:
        return self.connection.receive(bytes_, self.now)

    def block(self, fields: Iterable[Field] = GET) -> bytes:
        return self.encoder.encode(list(fields))

    def request(self, fields: Iterable[Field] = GET, *, ended: bool = True) -> int:
        """A valid request; its stream."""
        stream_id = self.next_stream
        self.next_stream += 2
        flags = END_HEADERS | (END_STREAM if ended else 0)
        event = self.receive(headers(stream_id, self.block(fields), flags))[0]
        assert isinstance(event, Request)
        assert (event.stream_id, event.ended) == (stream_id, ended)
        return stream_id

    def frames(self) -> list[Frame]:
        """What take() gives until there is no more."""
        data = self.sender.take()
        while self.sender.pending:
            data += self.sender.take()
        return parsed(data)

    def named(self) -> list[tuple[str, int]]:
        """Type and stream of each frame that take() gives."""
        return [(type(one).__name__.removesuffix("Frame"), one.stream_id) for one in self.frames()]

    def failure(self, bytes_: bytes) -> ConnectionFailed:
        """The connection error that these bytes are; GOAWAY is what is sent."""
        *_, event = self.receive(bytes_)
        assert isinstance(event, ConnectionFailed), event
        self.sender.take()
        assert self.receive(headers(self.next_stream, self.block())) == []
        assert self.named() == []
        return event

    def reset(self, bytes_: bytes) -> StreamReset:
        """The stream error that these bytes are; RST_STREAM is what is sent, and the connection goes on."""
        *_, event = self.receive(bytes_)
        assert isinstance(event, StreamReset), event
        assert not event.by_peer
        sent = [one for one in self.frames() if type(one).__name__ == "RstStreamFrame"]
        assert [(one.stream_id, getattr(one, "error_code", None)) for one in sent] == [(event.stream_id, event.code)]
        return event

    def fields_of(self, one: Frame) -> list[Field]:
        assert isinstance(one, HeadersFrame)
        return [(bytes(name), bytes(value)) for name, value in self.decoder.decode(one.data, raw=True)]


def begun(*values: tuple[int, int], limits: Http2Limits | None = None) -> Client:
    client = Client(limits or Http2Limits())
    client.begin(*values)
    return client

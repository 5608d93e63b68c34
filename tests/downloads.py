"""What a client makes of a response under faults: whole, refused, or seen to be broken; never a part for the whole.

Strategy: the bytes are judged as a strict client does it, by Content-Length or chunks, or by the end of the stream, and
against the file. A part that ends with close_notify, or with END_STREAM, is never forgiven.
"""

from __future__ import annotations

import contextlib
import enum
import random
import socket
import ssl
from pathlib import Path

from tests.http2_client import Http2Client, Stream
from tests.serving import client_context, connect, connect_plain, parse

REQUEST = b"GET /%b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%b\r\n"


_BLOCK = 65536


class Outcome(enum.Enum):
    """How a request ended."""

    WHOLE = enum.auto()
    REFUSED = enum.auto()
    """With a status that says that nothing is sent."""
    BROKEN = enum.auto()
    """In a way that no client takes for a whole response."""


def read_all(connection: socket.socket) -> tuple[bytes, bool]:
    """All that arrives, and whether the end was one in order (close_notify; without TLS, FIN)."""
    data = bytearray()
    try:
        while chunk := connection.recv(65536):
            data += chunk
    except (ssl.SSLError, ConnectionError, TimeoutError):
        return bytes(data), False
    return bytes(data), True


def judge(data: bytes, in_order: bool, content: bytes, *, secure: bool = True) -> Outcome:
    """What a client makes of these bytes, which were to be one response with this content."""
    try:
        answer, rest = parse(data)
    except (AssertionError, ValueError, IndexError, KeyError):
        head, end, body = data.partition(b"\r\n\r\n")
        if end and head.startswith(b"HTTP/1.1 200 "):
            assert content.startswith(body), "what arrived is not the beginning of the file"
        assert not (data and in_order and secure), "a part ended with close_notify"
        return Outcome.BROKEN
    assert rest == b"", "more than one response"
    if answer.status == 200:
        assert answer.body == content, "a response that is complete has another content"
        return Outcome.WHOLE
    assert answer.status >= 400
    return Outcome.REFUSED


def download(place: int | str, name: str, content: bytes, *, secure: bool = True, patience: float = 20.0) -> Outcome:
    """Ask for a file on a connection of its own; BROKEN also where there is no connection or no answer in time."""
    try:
        connection = connect(int(place)) if secure else connect_plain(place)
    except (ssl.SSLError, OSError):
        return Outcome.BROKEN
    with connection:
        connection.settimeout(patience)
        try:
            connection.sendall(REQUEST % (name.encode(), b""))
        except (ssl.SSLError, OSError):
            return Outcome.BROKEN
        return judge(*read_all(connection), content, secure=secure)


def download_side_by_side(port: int, contents: dict[str, bytes], *, patience: float = 20.0) -> list[Outcome]:
    """The same over HTTP/2, for files on streams of one connection."""
    context = client_context()
    context.set_alpn_protocols(["h2"])
    try:
        connection = connect(port, context)
    except (ssl.SSLError, OSError):
        return [Outcome.BROKEN] * len(contents)
    with connection:
        connection.settimeout(patience)
        streams = []
        with contextlib.suppress(ssl.SSLError, OSError):
            client = Http2Client(connection)
            for name in contents:
                streams.append(client.streams[client.ask(f"/{name}")])
            while any(not (stream.ended or stream.reset is not None) for stream in streams) and client.receive():
                pass
    # There is none for a request that could not be sent.
    streams += [Stream() for _ in range(len(contents) - len(streams))]
    return [_judge_stream(stream, content) for stream, content in zip(streams, contents.values(), strict=True)]


def _judge_stream(stream: Stream, content: bytes) -> Outcome:
    if stream.status == 200:
        assert content.startswith(stream.body), "what arrived is not the beginning of the file"
        assert len(stream.body) == len(content) or not stream.ended, "a part ended with END_STREAM"
    if not stream.ended:
        return Outcome.BROKEN
    return Outcome.WHOLE if stream.status == 200 else Outcome.REFUSED


def make_files(folder: Path, sizes: dict[str, int]) -> dict[str, bytes]:
    """Files in which every block has its place and its file, and their contents: the same for the same arguments."""
    contents = {}
    folder.mkdir(exist_ok=True)
    noise = random.Random("ktlsd").randbytes(_BLOCK - 8)
    for number, (name, size) in enumerate(sizes.items()):
        blocks = ((number << 48 | place).to_bytes(8, "big") + noise for place in range(size // _BLOCK + 1))
        contents[name] = b"".join(blocks)[:size]
        (folder / name).write_bytes(contents[name])
    return contents

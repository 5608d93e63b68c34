"""What a client sends on one connection: answered alike at once, from memory and in pieces, and no part of it twice.

Strategy: an input is a byte (the size of pieces; from 128 on, of a trusted proxy) and the stream. A connection of the
real server, on a socket pair in place of TLS, answers it; a strict reading of RFC 9112 says how many requests there
are, and for which files.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple

import trio
import trio.testing

from ktlsd.config.networks import Networks
from ktlsd.config.options import HeaderOptions, RedirectOptions, Settings
from ktlsd.config.values import Mode
from ktlsd.connection.keepalive import IdleConnections
from ktlsd.connection.page_cache import PageCache
from ktlsd.connection.plain_transport import PlainTransport
from ktlsd.http.forwarded import Origin
from ktlsd.http.request_target import BadTarget, parse_target
from ktlsd.http.validators import http_date
from ktlsd.metrics.metrics import UNCOUNTED
from ktlsd.openssl.errors import ConnectionLost
from ktlsd.protocol.client import Client
from ktlsd.protocol.http1 import Http1
from ktlsd.protocol.shared import Clock, Shared
from ktlsd.service import Service
from ktlsd.site.response_cache import ResponseCache
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls_probe import support

TOKENS: Final = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a.txt HTTP/1.1\r\nHost: a\r\n",
    b"HEAD /d/ HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"POST ",
    b" HTTP/1.0\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"\r\n\r\n",
    b"5\r\nabcde\r\n0\r\n\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Upgrade: h2c\r\n",
    b"Range: bytes=0-1,200-\r\n",
    b"If-None-Match: *\r\n",
    b"Accept-Encoding: gzip\r\n",
    b"Host: ",
    b"X-Forwarded-Proto: http\r\n",
    b"X-Forwarded-For: 127.0.0.1, 192.0.2.7\r\n",
    b"\n ",
    b"\r\n",
)

_FILES: Final = {
    "index.html": b"<p>hello",
    "a.txt": b"a" * 3000,
    "empty": b"",
    "large.bin": bytes(range(256)) * 80,
    "d/index.html": b"in a folder",
}
_PACKED: Final = b"not really gzip"
_LONG_AGO_NS: Final = 1_600_000_000_000_000_000
_SETTLED_SECONDS: Final = 2.1
_MOST_PIECES: Final = 12
_ORIGIN: Final = Origin("127.0.0.1", https=True)
_CLIENTS: Final = (
    Client(address="fuzz", secure=True, origin=_ORIGIN),
    Client(address="fuzz", secure=True, origin=_ORIGIN, trusted=Networks(["127.0.0.0/8"])),
)
_DATE: Final = re.compile(rb"\r\nDate: [^\r]*")
_BOUNDARY: Final = re.compile(rb"\b[0-9a-f]{32}\b")
_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/([0-9]\.[0-9])")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[^\0\s]+(?:[ \t]+[^\0\s]+)*)?)[ \t]*")
# Blanks before the semicolon are "bad whitespace" (RFC 9112 section 7.1.1), which h11 refuses.
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,20})(?:;[^\r\n]*)?[ \t]*\r\n")
_END_OF_HEAD: Final = re.compile(rb"(?<=[^\r\n])\r\n\r\n")
_END_OF_TARGET: Final = re.compile(rb"(?<=[!-~])(?= HTTP/1\.)")
_OTHERS: Final = (
    (_END_OF_HEAD, rb"\r\nCookie: a\r\n\r\n"),
    (_END_OF_HEAD, rb"\r\nRange: bytes=0-1\r\n\r\n"),
    (_END_OF_HEAD, rb"\r\nIf-None-Match: *\r\n\r\n"),
    (_END_OF_TARGET, rb"?query"),
)
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)*")
_REFUSALS: Final = (400, 408, 414, 431, 501, 505)


class _Sent(NamedTuple):
    """A request as a strict reader sees it."""

    method: bytes
    target: bytes
    whole: bool = True
    """Whether all of its body is there, and valid."""


class _Got(NamedTuple):
    """A response as a strict reader sees it."""

    status: int
    fields: dict[bytes, bytes]
    body: bytes


def check(data: bytes) -> None:
    size, stream = data[:1], data[1:]
    if not size:
        return
    step = max(size[0] & 0x7F, len(stream) // _MOST_PIECES, 1)
    pieces = [stream[start : start + step] for start in range(0, len(stream), step)]
    client, server = _CLIENTS[size[0] >> 7], _server()
    fresh, again, in_pieces = trio.run(server.answers, client, ([stream], [stream], pieces))
    assert _same(fresh) == _same(again)
    requests = list(_requests(stream))
    if not requests or requests[-1].whole:
        assert _same(fresh) == _same(in_pieces)
    else:
        # The last may be answered before its body turns out to be malformed, or be refused for that.
        at_once, later = (list(_responses(requests, _same(answers))) for answers in (fresh, in_pieces))
        assert at_once[: len(requests) - 1] == later[: len(requests) - 1]
        _check_answers(requests, in_pieces)
    # Once more where what is remembered came with other heads, which differ from these in one field or the query.
    others = [[pattern.sub(other, stream)] for pattern, other in _OTHERS]
    *_, beside = trio.run(server.answers, client, [*others, [stream]])
    assert _same(fresh) == _same(beside)
    _check_answers(requests, fresh)


def _same(answers: bytes) -> bytes:
    """Without what may differ from one time to another."""
    return _BOUNDARY.sub(b"boundary", _DATE.sub(rb"\r\nDate: -", answers))


class _Ticking(Clock):
    """A second ends between any two looks."""

    def __init__(self) -> None:
        self._looks = 0

    def date(self) -> bytes:
        self._looks += 1
        return http_date(self._looks).encode("ascii")


class _Server:
    """One process's server, without its sockets."""

    def __init__(self, folder: str) -> None:
        root = Path(folder) / "root"
        (root / "d").mkdir(parents=True)
        (root / "list").mkdir()
        for name, content in (*_FILES.items(), ("a.txt.gz", _PACKED), (".hidden", b"secret"), ("list/b", b"b")):
            (root / name).write_bytes(content)
            os.utime(root / name, ns=(_LONG_AGO_NS, _LONG_AGO_NS))
        (Path(folder) / "outside").write_bytes(b"secret")
        (root / "link").symlink_to("../outside")
        settings = Settings(
            root=root,
            listing=True,
            header=(HeaderOptions(path="*.txt", set={"X-Text": "yes", "Vary": "Origin"}),),
            redirect=(RedirectOptions(from_="/old/*", to="/d/:splat", status=302),),
        )
        library = Library()
        before = os.environ.get("XDG_STATE_HOME")
        os.environ["XDG_STATE_HOME"] = folder
        try:
            self._service = Service(library, settings, support(library, Mode.OFF))
        finally:
            os.environ.pop("XDG_STATE_HOME")
            if before is not None:
                os.environ["XDG_STATE_HOME"] = before
        self._page_cache = PageCache()
        # Younger files are not remembered, and their ctime cannot be set.
        time.sleep(_SETTLED_SECONDS)

    async def answers(self, client: Client, streams: Sequence[Sequence[bytes]]) -> list[bytes]:
        """What is answered to each of these streams in pieces, with a memory that is empty before the first."""
        self._service.response_cache = ResponseCache()
        shared = Shared(self._service, IdleConnections(60), _Ticking(), UNCOUNTED)
        with contextlib.closing(shared.idle):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(shared.idle.watch)
                answers = [await self._answer(shared, client, pieces) for pieces in streams]
                nursery.cancel_scope.cancel()
        return answers

    async def _answer(self, shared: Shared, client: Client, pieces: Sequence[bytes]) -> bytes:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        asking = trio.socket.from_stdlib_socket(ours)
        answers = bytearray()

        async def send() -> None:
            with contextlib.suppress(BrokenPipeError):
                for piece in pieces:
                    await asking.send(piece)
                    if len(pieces) > 1:
                        await trio.testing.wait_all_tasks_blocked()
            with contextlib.suppress(OSError):
                asking.shutdown(socket.SHUT_WR)

        async def receive() -> None:
            with contextlib.suppress(ConnectionResetError):
                while some := await asking.recv(65536):
                    answers.extend(some)

        with asking, trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                nursery.start_soon(receive)
                with (
                    theirs,
                    contextlib.closing(PlainTransport(theirs, self._page_cache)) as transport,
                    contextlib.suppress(ConnectionLost),
                ):
                    await Http1(shared, transport, client).serve()
        return bytes(answers)


@functools.cache
def _server() -> _Server:
    folder = tempfile.TemporaryDirectory(prefix="ktlsd-fuzz-")
    _KEPT.append(folder)
    return _Server(folder.name)


_KEPT: Final[list[tempfile.TemporaryDirectory[str]]] = []
"""Folders that go when the process ends."""


def _check_answers(sent: Sequence[_Sent], answers: bytes) -> None:
    got = list(_responses(sent, answers))
    for number, response in enumerate(got):
        assert b"secret" not in response.body
        closing = response.fields.get(b"connection") == b"close"
        assert not closing or number == len(got) - 1
        if number >= len(sent):
            # There is no request for this: it can only refuse malformed bytes.
            assert response.status in _REFUSALS
            assert closing
        elif response.status == HTTPStatus.OK and sent[number].method == b"GET":
            _check_content(sent[number].target, response)
    if len(got) < len(sent):
        assert got
        assert got[-1].fields.get(b"connection") == b"close"


def _check_content(target: bytes, response: _Got) -> None:
    try:
        found = parse_target(target)
    except BadTarget:
        raise AssertionError("a bad target got 200") from None
    name = found.file_path().decode("latin-1")
    if found.directory:
        name = "index.html" if name == "." else f"{name}/index.html"
    if response.fields.get(b"content-encoding") == b"gzip":
        assert (name, response.body) == ("a.txt", _PACKED)
    elif name in _FILES:
        assert response.body == _FILES[name]
    elif name == "a.txt.gz":
        assert response.body == _PACKED
    else:
        assert name in ("list/index.html", "list/b")


def _requests(stream: bytes) -> Iterator[_Sent]:
    """The requests up to the first that is none, or that is the last on its connection (RFC 9112 sections 2 to 7)."""
    while True:
        empty = _EMPTY_LINES.match(stream)
        assert empty
        head, end, rest = stream[empty.end() :].partition(b"\r\n\r\n")
        request_line, *lines = head.split(b"\r\n")
        line = _REQUEST_LINE.fullmatch(request_line)
        if not end or line is None:
            return
        fields: dict[bytes, list[bytes]] = {}
        for text in lines:
            field = _FIELD.fullmatch(text)
            if field is None:
                return
            fields.setdefault(field[1].lower(), []).append(field[2])
        hosts = fields.get(b"host", [])
        other_version = line[3][:1] != b"1"
        if len(hosts) > 1 or (not hosts and line[3] != b"1.0" and not other_version):
            return
        length = _body_length(fields, rest)
        if length is None:
            # It may be answered before its body is read, or is found to be no body.
            yield _Sent(line[1], line[2], whole=False)
            return
        yield _Sent(line[1], line[2])
        options = b",".join(fields.get(b"connection", [])).lower().replace(b" ", b"").split(b",")
        if other_version or line[3] == b"1.0" or b"close" in options:
            return
        stream = rest[length:]


def _body_length(fields: dict[bytes, list[bytes]], rest: bytes) -> int | None:
    """Bytes of a request's body as it was sent; None for one that is malformed or not all there."""
    codings = fields.get(b"transfer-encoding")
    lengths = {one.strip() for text in fields.get(b"content-length", []) for one in text.split(b",")}
    if codings is None:
        if not lengths:
            return 0
        if len(lengths) > 1 or not all(re.fullmatch(rb"[0-9]{1,20}", one) for one in lengths):
            return None
        length = int(lengths.pop())
        return length if length <= len(rest) else None
    if lengths or [coding.lower() for coding in codings] != [b"chunked"]:
        return None
    position = 0
    while True:
        chunk = _CHUNK.match(rest, position)
        if chunk is None:
            return None
        position = chunk.end()
        size = int(chunk[1], 16)
        if not size:
            break
        position += size
        if rest[position : position + 2] != b"\r\n":
            return None
        position += 2
    if rest.startswith(b"\r\n", position):
        return position + 2
    end = rest.find(b"\r\n\r\n", position)
    return end + 4 if end >= 0 and _are_fields(rest[position:end].split(b"\r\n")) else None


def _are_fields(lines: list[bytes]) -> bool:
    """True if these are the lines of a trailer section, where a folded line is accepted."""
    unfolded: list[bytes] = []
    for line in lines:
        if line[:1] in (b" ", b"\t") and unfolded:
            unfolded[-1] += b" " + line.lstrip(b" \t")
        else:
            unfolded.append(line)
    return all(_FIELD.fullmatch(line) for line in unfolded)


def _responses(sent: Sequence[_Sent], answers: bytes) -> Iterator[_Got]:
    number = 0
    while answers:
        head, end, answers = answers.partition(b"\r\n\r\n")
        assert end, "a response head does not end"
        status_line, *lines = head.split(b"\r\n")
        matched = re.fullmatch(rb"HTTP/1\.1 ([2-5][0-9][0-9]) [A-Za-z -]+", status_line)
        assert matched, status_line
        fields = {}
        for line in lines:
            name, colon, value = line.partition(b": ")
            assert colon
            assert re.fullmatch(rb"[A-Za-z-]+", name)
            assert re.fullmatch(rb"[!-~](?:[ -~]*[!-~])?", value)
            fields[name.lower()] = value
        assert len(fields) == len(lines)
        assert b"date" in fields
        status = int(matched[1])
        method = sent[number].method if number < len(sent) else b""
        number += 1
        body = b""
        if method == b"HEAD" or status in (204, 304):
            pass
        elif fields.get(b"transfer-encoding") == b"chunked":
            assert b"content-length" not in fields
            body, answers = _unchunked(answers)
        elif b"content-length" in fields:
            length = int(fields[b"content-length"])
            assert len(answers) >= length
            body, answers = answers[:length], answers[length:]
        else:
            assert fields.get(b"connection") == b"close"
            body, answers = answers, b""
        yield _Got(status, fields, body)


def _unchunked(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        count = int(size, 16)
        body, end, data = body + data[:count], data[count : count + 2], data[count + 2 :]
        assert end == b"\r\n"
        if not count:
            return body, data

"""The seam between a protocol and the rest: one that is not HTTP/1.1 decides, remembers and recalls through it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from ktlsd.config.networks import Networks
from ktlsd.config.options import Settings
from ktlsd.config.values import Mode
from ktlsd.connection.keepalive import IdleConnections
from ktlsd.connection.page_cache import PageCache
from ktlsd.connection.plain_transport import PlainTransport
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.forwarded import Origin
from ktlsd.http.multipart import multipart
from ktlsd.http.request_fields import Field
from ktlsd.metrics.metrics import REQUESTS, SLOTS, UNCOUNTED, Row
from ktlsd.protocol.client import Client
from ktlsd.protocol.exchange import Exchange, fields_of
from ktlsd.protocol.responder import Responder
from ktlsd.protocol.response_body import is_made_while_sent, pieces
from ktlsd.protocol.shared import Clock, Shared
from ktlsd.service import Service
from ktlsd.site.site import Answer
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls_probe import support
from tests.wire.test_response_cache import LONG_AGO, settle

CONTENT = b"x" * 5000
DATE = b"Mon, 01 Jan 2024 00:00:00 GMT"


class Head(NamedTuple):
    """A request head that no h11 has read."""

    target: bytes
    headers: tuple[Field, ...] = ()
    method: bytes = b"GET"
    http_version: bytes = b"2"

    @property
    def key(self) -> bytes:
        """The cache key that this test's protocol chooses."""
        lines = (b"%b %b HTTP/2" % (self.method, self.target), *(b"%b: %b" % field for field in self.headers))
        return b"\r\n".join((*lines, b"", b""))


HOST = (b"host", b"a")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("root")
    (root / "a.txt").write_bytes(CONTENT)
    os.utime(root / "a.txt", ns=(LONG_AGO, LONG_AGO))
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    library = Library()
    with contextlib.closing(Service(library, Settings(root=root), support(library, Mode.OFF))) as made:
        patch.undo()
        settle(root / "a.txt")
        yield made


@contextlib.contextmanager
def responding(service: Service, trusted: Networks | None = None, row: Row = UNCOUNTED) -> Iterator[Responder]:
    """A responder to a client on one end of a socket pair."""
    ours, theirs = socket.socketpair()
    client = Client(address="127.0.0.1:1", secure=True, origin=Origin("127.0.0.1:1", https=True), trusted=trusted)
    shared = Shared(service, IdleConnections(60), Clock(), row)
    with theirs, contextlib.closing(shared.idle), contextlib.closing(PlainTransport(ours, PageCache())) as transport:
        yield Responder(shared, transport, client)


def decided(responder: Responder, head: Head, *, remember: bool = False) -> Answer:
    """What is decided about a request, with the file closed; `remember` as the protocol of this test writes it."""

    async def decide() -> Answer:
        exchange = Exchange(responder, head, None)
        answer = await exchange.decide()
        if answer.opened is not None:
            if remember:
                written = b"before " + DATE + b" after"
                exchange.remember(head.key, answer.response, answer.opened, written, DATE, closes=False)
            answer.opened.close()
        return answer

    return trio.run(decide)


def test_a_head_of_another_protocol_is_decided(service: Service) -> None:
    with responding(service) as responder:
        found = decided(responder, Head(b"/a.txt", (HOST,))).response
        assert (found.status, found.body) == (HTTPStatus.OK, ByteRange(0, len(CONTENT)))
        assert dict(fields_of(found, DATE, (("Server", "x"),)))["Server"] == "ktlsd"
        assert decided(responder, Head(b"/nothing", (HOST,))).response.status == HTTPStatus.NOT_FOUND
        assert decided(responder, Head(b"/%00", (HOST,))).response.status == HTTPStatus.BAD_REQUEST
        posted = decided(responder, Head(b"/a.txt", (HOST,), method=b"POST")).response
        assert posted.status == HTTPStatus.METHOD_NOT_ALLOWED
        assert dict(fields_of(posted, DATE, (("Server", "x"),)))["Server"] == "x"
        many = tuple((b"a%d" % number, b"b") for number in range(responder.limits.header_fields))
        too_many = decided(responder, Head(b"/a.txt", (HOST, *many))).response
        assert too_many.status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


def test_what_it_wrote_is_remembered_recalled_and_counted(service: Service) -> None:
    row = [0] * SLOTS
    with responding(service, row=row) as responder:
        head = Head(b"/a.txt", (HOST,))
        assert responder.find(head.key) is None
        decided(responder, head, remember=True)
        found = responder.find(head.key)
        assert found is not None
        # Of another protocol's request no byte is the same.
        assert responder.find(head.key.replace(b"HTTP/2", b"HTTP/1.1")) is None
        recalled = responder.recall(found.remembered)
        assert recalled is not None
        written, descriptor = recalled
        with open(descriptor, "rb") as file:
            assert file.read() == CONTENT
        before, date, after = written.partition(responder.shared.clock.date())
        assert (before, bool(date), after) == (b"before ", True, b" after")
        left = responder.requests_left
        responder.begin_remembered(found, len(written), None)
        assert responder.requests_left == left - 1
        assert row[REQUESTS[HTTPStatus.OK]] == 1


def test_a_field_that_decided_nothing_changes_nothing(service: Service) -> None:
    with responding(service) as responder:
        head = Head(b"/a.txt", (HOST, (b"cookie", b"a")))
        decided(responder, head, remember=True)
        line = head.key.partition(b"\r\n")[0]
        alike = responder.find_alike(line, (HOST, (b"cookie", b"b")), None)
        assert alike is not None
        assert alike.remembered.status == HTTPStatus.OK
        assert responder.find_alike(line, (HOST, (b"range", b"bytes=0-1")), None) is None
        assert responder.find_alike(line.replace(b"/2", b"/1.1"), (HOST,), None) is None


def test_behind_a_trusted_proxy_the_scheme_that_it_tells_is_of_the_key(service: Service) -> None:
    with responding(service, Networks(["127.0.0.0/8"])) as responder:
        told = (b"x-forwarded-proto", b"https")
        head = Head(b"/a.txt", (HOST, told, (b"x-forwarded-for", b"192.0.2.7")))
        decided(responder, head, remember=True)
        assert responder.find(head.key) is None
        line = head.key.partition(b"\r\n")[0]
        same = responder.find_alike(line, (HOST, told, (b"x-forwarded-for", b"192.0.2.8")), None)
        assert same is not None
        assert same.origin is not None
        assert same.origin.address == "192.0.2.8"
        assert responder.find_alike(line, (HOST, (b"x-forwarded-proto", b"http")), None) is None


def test_a_file_that_was_replaced_is_not_recalled(service: Service) -> None:
    root = Path(service.sites.default.site.options.root or "")
    (root / "b.txt").write_bytes(b"old")
    settle(root / "b.txt")
    with responding(service) as responder:
        head = Head(b"/b.txt", (HOST,))
        decided(responder, head, remember=True)
        found = responder.find(head.key)
        assert found is not None
        (root / "new").write_bytes(b"new")
        os.replace(root / "new", root / "b.txt")
        assert responder.recall(found.remembered) is None
        assert responder.find(head.key) is None


def test_a_body_is_a_sequence_of_bytes_and_parts() -> None:
    assert list(pieces(b"text")) == [b"text"]
    assert list(pieces(b"")) == []
    assert list(pieces(ByteRange(3, 4))) == [ByteRange(3, 4)]
    assert list(pieces(ByteRange(0, 0))) == []
    made = [b"a", b"", b"b"]
    assert list(pieces(iter(made))) == made
    parts = (ByteRange(0, 2), ByteRange(5, 3))
    body = multipart(parts, 9, "text/plain", "b" * 32)
    found = list(pieces(body))
    assert [piece for piece in found if isinstance(piece, ByteRange)] == list(parts)
    assert sum(piece.count if isinstance(piece, ByteRange) else len(piece) for piece in found) == body.length
    assert [is_made_while_sent(one) for one in (b"", ByteRange(0, 1), body, iter(made))] == [False, False, False, True]

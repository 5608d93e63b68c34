"""The seam between a protocol and the rest: one that is not HTTP/1.1 decides, remembers and recalls through it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path

import pytest
import trio

from ktlsd.attempt import attempt
from ktlsd.config.networks import Networks
from ktlsd.config.options import Settings
from ktlsd.config.values import Mode
from ktlsd.connection.keepalive import IdleConnections
from ktlsd.connection.page_cache import PageCache
from ktlsd.connection.plain_transport import PlainTransport
from ktlsd.connection.poller import Batch
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.forwarded import Origin
from ktlsd.http.multipart import multipart
from ktlsd.http.request_fields import Field
from ktlsd.http.request_head import HeadFields, RequestHead, head_of, make_head
from ktlsd.http2.connection import Connection
from ktlsd.http2.head_cache import HeadCache
from ktlsd.http2.priority import NO_SIGNAL
from ktlsd.metrics.metrics import REQUESTS, SLOTS, UNCOUNTED, HttpVersion, Row
from ktlsd.protocol.client import Client
from ktlsd.protocol.exchange import Exchange, fields_of
from ktlsd.protocol.http2 import http2_limits
from ktlsd.protocol.http2_responses import Http2Responses
from ktlsd.protocol.responder import Responder
from ktlsd.protocol.response_body import is_made_while_sent, pieces
from ktlsd.protocol.shared import Clock, Shared
from ktlsd.service import Service
from ktlsd.site.response_cache import CacheEntry
from ktlsd.site.site import Answer
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls_probe import support
from tests.wire.test_response_cache import LONG_AGO, settle

CONTENT = b"x" * 5000


def asked(target: bytes, fields: Sequence[Field] = (), method: bytes = b"GET") -> RequestHead:
    """A request head that no h11 has read."""
    return head_of(method, target, b"2.0", fields)


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
def responding(
    service: Service, trusted: Networks | None = None, row: Row = UNCOUNTED, *, https: bool = True
) -> Iterator[Responder]:
    """A responder to a client on one end of a socket pair."""
    ours, theirs = socket.socketpair()
    client = Client(address="127.0.0.1:1", secure=https, origin=Origin("127.0.0.1:1", https=https), trusted=trusted)
    shared = Shared(service, IdleConnections(60), Clock(), row)
    with theirs, contextlib.closing(shared.idle), contextlib.closing(PlainTransport(ours, PageCache())) as transport:
        yield Responder(shared, transport, client, HttpVersion.HTTP_2)


def decided(responder: Responder, head: RequestHead, *, remember: bool = False) -> Answer:
    """What is decided about a request, with the file closed."""

    async def decide() -> Answer:
        exchange = Exchange(responder, head, None)
        answer = await exchange.decide()
        if answer.opened is not None:
            if remember:
                assert exchange.remember(answer, b"written") is not None
            answer.opened.close()
        return answer

    return trio.run(decide)


def test_a_head_of_another_protocol_is_decided(service: Service) -> None:
    with responding(service) as responder:
        found = decided(responder, asked(b"/a.txt", (HOST,))).response
        assert (found.status, found.body) == (HTTPStatus.OK, ByteRange(0, len(CONTENT)))
        assert dict(fields_of(found, (("Server", "x"),)))["Server"] == "ktlsd"
        assert decided(responder, asked(b"/nothing", (HOST,))).response.status == HTTPStatus.NOT_FOUND
        assert decided(responder, asked(b"/%00", (HOST,))).response.status == HTTPStatus.BAD_REQUEST
        posted = decided(responder, asked(b"/a.txt", (HOST,), method=b"POST")).response
        assert posted.status == HTTPStatus.METHOD_NOT_ALLOWED
        assert dict(fields_of(posted, (("Server", "x"),)))["Server"] == "x"
        many = tuple((b"a%d" % number, b"b") for number in range(responder.limits.header_fields))
        too_many = decided(responder, asked(b"/a.txt", (HOST, *many))).response
        assert too_many.status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


def test_what_needs_no_wait_is_decided_without_a_task(service: Service) -> None:
    # The first look at the rules waits.
    trio.run(service.sites.default.site._rules.refresh, service.sites.default.site.root)
    with responding(service) as responder:
        answer = attempt(Exchange(responder, asked(b"/a.txt", (HOST,)), None).decide())
        assert answer.response.status == HTTPStatus.OK
        assert answer.opened is not None
        answer.opened.close()


def test_what_was_decided_is_remembered_recalled_and_counted(service: Service) -> None:
    row = [0] * SLOTS
    with responding(service, row=row) as responder:
        head = asked(b"/a.txt?first", (HOST,))
        assert responder.find(head) is None
        decided(responder, head, remember=True)
        second = asked(b"/a.txt?second", (HOST,))
        entry = responder.find(second)
        assert entry is not None
        assert responder.find(asked(b"/a.txt#fragment", (HOST,))) is None
        assert responder.find(asked(b"/a.txt", (HOST,), method=b"HEAD")) is None
        assert (entry.head, entry.part, entry.response.status) == (b"written", ByteRange(0, len(CONTENT)), 200)
        descriptor = service.response_cache.open(entry)
        assert descriptor is not None
        with open(descriptor, "rb") as file:
            assert file.read() == CONTENT
        left = responder.requests_left
        responder.begin_remembered(entry, second, 7, None)
        assert responder.requests_left == left - 1
        assert row[REQUESTS[HttpVersion.HTTP_2][HTTPStatus.OK]] == 1


def test_a_field_that_decided_nothing_changes_nothing(service: Service) -> None:
    with responding(service) as responder:
        decided(responder, asked(b"/a.txt", (HOST, (b"cookie", b"a"))), remember=True)
        alike = responder.find(asked(b"/a.txt", (HOST, (b"cookie", b"b"))))
        assert alike is not None
        assert alike.response.status == HTTPStatus.OK
        assert responder.find(asked(b"/a.txt", (HOST, (b"range", b"bytes=0-1")))) is None
        too_many = [(b"x%d" % number, b"") for number in range(responder.limits.header_fields)]
        assert responder.find(asked(b"/a.txt", (HOST, *too_many))) is None
        assert responder.find(asked(b"/a.txt?" + b"x" * responder.limits.target_bytes, (HOST,))) is None


def test_behind_a_trusted_proxy_the_scheme_that_it_tells_is_of_the_key(service: Service) -> None:
    with responding(service, Networks(["127.0.0.0/8"])) as responder:
        told = (b"x-forwarded-proto", b"https")
        decided(responder, asked(b"/a.txt", (HOST, told, (b"x-forwarded-for", b"192.0.2.7"))), remember=True)
        same = asked(b"/a.txt", (HOST, told, (b"x-forwarded-for", b"192.0.2.8")))
        assert responder.find(same) is not None
        assert responder.client.origin_of(same.of_fields.values, service.forwarded).address == "192.0.2.8"
        assert responder.find(asked(b"/a.txt", (HOST, (b"x-forwarded-proto", b"http")))) is None


def test_the_same_request_of_another_client_gets_a_response_of_its_own(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections with the same requests share heads (http2/head_cache.py), and the responses of one batch."""
    asks: list[RequestHead] = []
    find = Responder.find

    def counted(one: Responder, head: RequestHead) -> CacheEntry | None:
        asks.append(head)
        return find(one, head)

    monkeypatch.setattr(Responder, "find", counted)
    head = make_head(b"GET", b"/a.txt", b"2.0", HeadFields((HOST,), dict([HOST]), alone=True))
    batch: Batch = {}
    # Of these clients in turn the second is like the first.
    proxy = Networks(["127.0.0.0/8"])
    for trusted, https, looked in (
        (None, True, 1),
        (None, True, 1),
        (proxy, True, 2),
        (None, True, 3),
        (None, False, 4),
    ):
        with responding(service, trusted, https=https) as responder:
            sender = Connection(http2_limits(responder.limits), HeadCache(1 << 16), 0.0).sender
            sender.open(1, NO_SIGNAL, receiving=False, content_length=None)
            Http2Responses(responder, sender, lambda: None).answer(1, head, batch, 0.0)
            assert sender.take().endswith(CONTENT)
            assert len(asks) == looked


def test_a_file_that_was_replaced_is_not_recalled(service: Service) -> None:
    root = Path(service.sites.default.site.options.root or "")
    (root / "b.txt").write_bytes(b"old")
    settle(root / "b.txt")
    with responding(service) as responder:
        head = asked(b"/b.txt", (HOST,))
        decided(responder, head, remember=True)
        found = responder.find(head)
        assert found is not None
        (root / "new").write_bytes(b"new")
        os.replace(root / "new", root / "b.txt")
        assert service.response_cache.open(found) is None
        assert responder.find(head) is None


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

"""Answers from memory: the same bytes as fresh ones, for every head that h11 takes, and never those of an old file."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import brotli
import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ktlsd.config.options import AccessOptions, Settings
from ktlsd.config.values import Listen, Mode, Network
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.decide import Response
from ktlsd.http.request_fields import Field
from ktlsd.http.request_head import RequestHead, head_of
from ktlsd.process.listeners import bind_all
from ktlsd.server import Server
from ktlsd.service import Service
from ktlsd.site.lookup import OpenFile, Root
from ktlsd.site.response_cache import LASTING_SECONDS, LONGEST_REMEMBERED, CacheKey, ResponseCache
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls_probe import support
from tests.in_process import in_a_thread
from tests.protocols import HTTP_2, assert_alike, conversation
from tests.serving import Answer, connect, connect_plain, eventually, parse, read_to_end, serving

LONG_AGO = time.time_ns() - 3600 * 1_000_000_000
DATE = re.compile(rb"\r\nDate: [^\r]*")


@dataclass
class InProcess:
    """A server on this process's own event loop, in a thread, whose memory can be looked into."""

    port: int
    response_cache: ResponseCache
    root: Path


def settle(path: Path) -> None:
    """Wait until a file's last change is old enough: its ctime cannot be set."""
    while time.time_ns() - path.stat().st_ctime_ns <= 2_100_000_000:
        time.sleep(0.05)


@dataclass
class Compared(InProcess):
    """The same, and beside it a server of the same files that remembers nothing."""

    fresh: InProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    root = tmp_path_factory.mktemp("root")
    for name, data in (("index.html", b"<p>hello"), ("a.txt", b"x" * 5000), ("a.txt.gz", b"zz"), ("empty", b"")):
        (root / name).write_bytes(data)
        os.utime(root / name, ns=(LONG_AGO, LONG_AGO))
    for name, size in (("medium.bin", 100_000), ("large.bin", 200_000)):
        (root / name).write_bytes(os.urandom(size))
    state = tmp_path_factory.mktemp("state")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_STATE_HOME", str(state))
    library = Library()
    made = []
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            service = Service(library, Settings(root=root), support(library, Mode.OFF))
            stack.callback(service.close)
            listeners = bind_all([Listen("127.0.0.1", 0)])
            stack.enter_context(in_a_thread(Server(service), listeners))
            made.append(InProcess(listeners[0].socket.getsockname()[1], service.response_cache, root))
        patch.undo()
        remembering, fresh = made
        fresh.response_cache.most_bytes = 0
        settle(root / "large.bin")
        yield Compared(remembering.port, remembering.response_cache, root, fresh)


def ask(connection: socket.socket, head: bytes) -> bytes:
    """Send a request; the whole response as it came, but for the value of Date."""
    connection.sendall(head)
    data = bytearray()
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return DATE.sub(b"", bytes(data))
        data += more
    fields = bytes(data).partition(b"\r\n\r\n")[0].lower()
    length = re.search(rb"content-length: (\d+)", fields)
    body = int(length[1]) if length and not head.startswith(b"HEAD") and b" 304 " not in fields[:20] else 0
    while len(data) < len(fields) + 4 + body:
        more = connection.recv(65536)
        assert more, "the connection ended within a body"
        data += more
    assert len(data) == len(fields) + 4 + body
    return DATE.sub(b"", bytes(data))


def get(target: str, *lines: str, host: str = "a") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode("latin-1")


NUMBERS = itertools.count()
"""For files that were not requested before."""


TARGETS = [
    "/",
    "/a.txt",
    "/empty",
    "/medium.bin",
    "/large.bin",
    "/nothing",
    "/%2e%2e/x",
    "/a.txt?q",
    "//a.txt",
    "/.hidden",
]
NAMES = [
    "Range",
    "If-Range",
    "If-None-Match",
    "If-Modified-Since",
    "Accept-Encoding",
    "Connection",
    "Expect",
    "X",
    "Te",
]
NAMES += ["Content-Length", "Transfer-Encoding", "Host", "Upgrade", "Cookie"]
VALUES = [
    "bytes=0-9",
    "bytes=5-,0-1",
    "bytes=999999-",
    "*",
    '"x"',
    "gzip",
    "gzip;q=0",
    "close",
    "keep-alive",
    "100-continue",
]
VALUES += ["Sun, 06 Nov 2033 08:49:37 GMT", "0", "chunked", "a", "", "h2c", "\xe9", "keep-alive, close", "Keep-Alive"]
LINES = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)).map(": ".join)
    | st.just(" folded")
    | st.just("no colon"),
    max_size=4,
)
METHODS = st.sampled_from(["GET"] * 6 + ["HEAD", "POST", "OPTIONS", "get"])
VERSIONS = st.sampled_from(["HTTP/1.1"] * 8 + ["HTTP/1.0", "HTTP/2.0"])


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(METHODS, st.sampled_from(TARGETS), VERSIONS, LINES)
@example("GET", "/a.txt", "HTTP/1.1", [])
@example("HEAD", "/a.txt", "HTTP/1.1", ["Accept-Encoding: gzip"])
@example("GET", "/large.bin", "HTTP/1.1", ["Range: bytes=0-9"])
@example("GET", "/large.bin", "HTTP/1.1", ["If-None-Match: *"])
@example("GET", "/medium.bin", "HTTP/1.1", [])
@example("GET", "/large.bin", "HTTP/1.1", ["Range: bytes=50000-149999"])
@example("GET", "/a.txt", "HTTP/1.1", ["Host: a"])
@example("GET", "/a.txt", "HTTP/1.1", [" folded"])
@example("GET", "/a.txt", "HTTP/1.1", ["Content-Length: 0", "Content-Length: 0"])
def test_the_answer_from_memory_is_the_fresh_one(
    server: Compared, method: str, target: str, version: str, lines: list[str]
) -> None:
    def head(other_target: str = target, *more: str) -> bytes:
        return "\r\n".join([f"{method} {other_target} {version}", "Host: a", *lines, *more, "", ""]).encode("latin-1")

    # Another cookie or query makes it another head, which may be answered like one that was seen before.
    others = [head(target, f"Cookie: {next(NUMBERS)}"), head(f"{target}{'&' if '?' in target else '?'}{next(NUMBERS)}")]
    heads = [head(), head(), *others, head()]
    fresh = answers_to(server.fresh.port, heads)
    assert fresh
    assert answers_to(server.port, heads) == fresh
    assert server.fresh.response_cache.uses == 0


def answers_to(port: int, heads: Iterable[bytes]) -> list[bytes]:
    """The answers to heads on one connection, as far as it lasts, without what differs from one time to another."""
    answers = []
    with connect(port) as connection:
        for head in heads:
            try:
                connection.sendall(head)
            except OSError:
                break
            data = read_response(connection, head)
            if not data:
                break
            # The boundary of a multipart response is random.
            answers.append(re.sub(rb"[0-9a-f]{32}", b"boundary", DATE.sub(b"", data)))
            if b"connection: close" in data.lower():
                break
    return answers


def read_response(connection: ssl.SSLSocket, head: bytes) -> bytes:
    data = bytearray()
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return bytes(data)
        data += more
    fields, _, body = bytes(data).partition(b"\r\n\r\n")
    if b"connection: close" in fields.lower():
        return fields + b"\r\n\r\n" + body + read_to_end(connection)
    length = re.search(rb"content-length: (\d+)", fields.lower())
    expected = int(length[1]) if length and not head.startswith(b"HEAD") and b" 304 " not in fields[:20] else 0
    while len(body) < expected:
        more = connection.recv(65536)
        assert more, "the connection ended within a body"
        body += more
    assert len(body) == expected
    return fields + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "lines",
    [(), ("Range: bytes=0-9",), ("Range: bytes=-1",), ("If-None-Match: *",), ("Accept-Encoding: gzip",)],
)
def test_memory_is_used(server: InProcess, lines: tuple[str, ...]) -> None:
    """The same for both protocols."""
    head = get("/a.txt", *lines)
    with connect(server.port) as connection:
        first = ask(connection, head)
        before = server.response_cache.uses
        assert [ask(connection, head) for _ in range(5)] == [first] * 5
    assert server.response_cache.uses >= before + 4
    before = server.response_cache.uses
    with conversation(server.port, HTTP_2) as client:
        answers = [client.get("/a.txt", *lines, host="a") for _ in range(5)]
    assert server.response_cache.uses == before + 5
    for answer in answers:
        assert_alike(answer, parse(first)[0])


def test_a_query_that_no_rule_asks_for_has_no_say(server: Compared) -> None:
    heads = [get(f"/a.txt{query}") for query in ("", "?", "?a", "?b=c&d", "?e?f", f"?{next(NUMBERS)}")]
    fresh = answers_to(server.fresh.port, heads)
    assert len(set(fresh)) == 1
    answers_to(server.port, 2 * heads[:1])
    before, known = server.response_cache.uses, len(server.response_cache)
    assert answers_to(server.port, heads) == fresh
    assert (server.response_cache.uses, len(server.response_cache)) == (before + len(heads), known)
    refused = [get(f"/a.txt?{query}") for query in ("a#b", "a b", "\xe9", "a\tb", "x" * 9000)]
    for head in refused:
        answers = answers_to(server.port, [head])
        assert answers == answers_to(server.fresh.port, [head])
        assert answers[0].startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 414 "))


def test_a_query_that_a_rule_asks_for_has_a_say(sites: dict[str, InProcess]) -> None:
    server = sites["queries"]
    with connect(server.port) as connection:
        for target, known in (
            ("/sub/page", True),
            ("/sub/page?id=1", True),
            ("/asked", False),
            ("/asked?other", False),
        ):
            before = server.response_cache.uses
            assert ask(connection, get(target)).endswith(b"\r\n\r\npage")
            assert ask(connection, get(target)).endswith(b"\r\n\r\npage")
            assert server.response_cache.uses > before
            moved = ask(connection, get("/asked?id=7"))
            assert moved.startswith(b"HTTP/1.1 301 ")
            assert b"\r\nLocation: /to/7?id=7\r\n" in moved
            before = server.response_cache.uses
            ask(connection, get(f"{target}{'&' if '?' in target else '?'}{next(NUMBERS)}"))
            assert (server.response_cache.uses == before + 1) is known


@pytest.mark.parametrize("name", ["/a.txt", "/medium.bin", "/large.bin"])
@pytest.mark.parametrize("said", [(), ("Range: bytes=2-9",), ("If-None-Match: *",), ("Connection: close",)])
def test_a_head_that_is_alike_in_all_that_has_a_say_is_answered_from_memory(
    server: InProcess, name: str, said: tuple[str, ...]
) -> None:
    host = f"h{next(NUMBERS)}"
    first, *others = (get(name, *said, f"Cookie: {next(NUMBERS)}", f"X: {number}", host=host) for number in range(5))
    known = answers_to(server.port, [first])
    before, heads = server.response_cache.uses, len(server.response_cache)
    for other in others:
        assert answers_to(server.port, [other]) == known
    assert server.response_cache.uses == before + len(others)
    # Such heads need no memory of their own.
    assert len(server.response_cache) == heads


@pytest.mark.parametrize("name", ["/a.txt", "/medium.bin", "/large.bin"])
@pytest.mark.parametrize("empty", [b"\r\n", b"\r\n" * 3])
def test_empty_lines_before_a_head_do_not_hide_that_it_is_known(server: InProcess, name: str, empty: bytes) -> None:
    head = get(name, host=f"h{next(NUMBERS)}")
    known = answers_to(server.port, [head])
    before, heads = server.response_cache.uses, len(server.response_cache)
    assert answers_to(server.port, [empty + head, empty + head + empty, head]) == known * 3
    assert server.response_cache.uses == before + 3
    assert len(server.response_cache) == heads


@pytest.mark.parametrize(
    ("said", "other"),
    [
        ((), ("Range: bytes=0-1",)),
        (("Range: bytes=0-1",), ("Range: bytes=0-2",)),
        (("Range: bytes=0-1",), ("Range: bytes=0-1", 'If-Range: "x"')),
        (("Range: bytes=0-1",), ("Range: bytes=0-1", "Range: bytes=5-6")),
        ((), ("If-None-Match: *",)),
        ((), ("If-Match: x",)),
        ((), ("If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT",)),
        ((), ("If-Modified-Since: Sun, 06 Nov 2033 08:49:37 GMT",)),
        ((), ("Accept-Encoding: gzip",)),
        (("Accept-Encoding: gzip",), ("Accept-Encoding: gzip;q=0",)),
        ((), ("Host: b",)),
        ((), ("Connection: close",)),
        ((), ("Connection: Upgrade", "Upgrade: h2c")),
        ((), ("Content-Length: 0",)),
        ((), ("Transfer-Encoding: chunked\r\n\r\n0",)),
        ((), ("Expect: 100-continue",)),
        ((), ("Content-Length: 1", "Expect: 100-continue")),
        ((), ("Expect: nothing",)),
        ((), (" folded",)),
        ((), ("X: a\nY: b",)),
        ((), tuple(f"X: {number}" for number in range(101))),
        ((), tuple(f"X: {'x' * 1000}" for _ in range(17))),
    ],
)
def test_whatever_has_a_say_makes_another_request(
    server: Compared, said: tuple[str, ...], other: tuple[str, ...]
) -> None:
    host = f"h{next(NUMBERS)}"
    known, asked = get("/a.txt", *said, host=host), get("/a.txt", *other, host=host)
    for number in range(2):
        answers_to(server.port, [get("/a.txt", *said, f"Cookie: {number}", host=host)])
    before = server.response_cache.uses
    fresh = answers_to(server.fresh.port, [known, asked])
    unlike = other[0].startswith(("Content-Length: 0", "Connection: Upg", "Transfer", "Expect: 1", "X: x"))
    assert (fresh[0] != fresh[1]) is not unlike
    assert answers_to(server.port, [known, asked]) == fresh
    # The end of a connection decides nothing.
    alike = other[0].startswith("Connection: close")
    assert server.response_cache.uses == before + 1 + alike


def test_what_had_a_say_goes_with_its_response(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a")
    settle(tmp_path / "a.txt")
    root = Root(str(tmp_path))
    cache = ResponseCache()
    opened = trio.run(root.open_file, b"a.txt")
    assert isinstance(opened, OpenFile)

    def asked(number: int, *more: Field) -> RequestHead:
        return head_of(b"GET", b"/a.txt", b"1.1", [(b"host", b"a"), (b"x", b"%d" % number), *more])

    response = Response(HTTPStatus.OK, (), ByteRange(0, 1))
    names = (b"host", b"range")
    first = cache.remember(CacheKey.of(None, asked(0), names, any_query=False), response, b"", opened)
    assert cache.get(None, asked(1)) is first
    assert cache.get("other", asked(1)) is None
    assert cache.get(None, asked(1, (b"range", b""))) is None
    second = cache.remember(CacheKey.of(None, asked(1), names, any_query=False), response, b"", opened)
    other = cache.remember(CacheKey.of("other", asked(1), names, any_query=True), response, b"", opened)
    opened.close()
    # The second takes the place of the first.
    assert cache.get(None, asked(2)) is second
    assert cache.get("other", asked(2)) is other
    assert len(cache) == 2
    (tmp_path / "b.txt").write_bytes(b"b")
    assert first is not None
    assert second is not None
    assert other is not None
    os.replace(tmp_path / "b.txt", tmp_path / "a.txt")
    assert cache.open(first) is None
    assert cache.get(None, asked(2)) is second
    assert cache.open(second) is None
    assert cache.open(other) is None
    assert cache.get(None, asked(2)) is None
    assert len(cache) == 0
    root.close()


@pytest.mark.parametrize(
    "head",
    [
        get("/a.txt/nothing"),
        get("/a.txt", "Range: bytes=0-0,2-2,999-999"),
        get("/a.txt", "Content-Length: 0"),
        get("/a.txt", "Expect: 100-continue"),
        get("/a.txt", f'If-None-Match: "{"x" * LONGEST_REMEMBERED}"', host="long"),
        b"GET /a.txt HTTP/1.1\r\nHost: a\r\nConnection: close, keep-alive\r\n\r\n",
        b"OPTIONS /a.txt HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_what_is_not_the_same_each_time_is_not_remembered(server: InProcess, head: bytes) -> None:
    before = server.response_cache.uses
    for _ in range(3):
        with connect(server.port) as connection:
            connection.sendall(head)
            assert read_response(connection, head)
    assert server.response_cache.uses == before


@pytest.mark.parametrize("name", ["/a.txt", "/medium.bin", "/large.bin", "/empty"])
@pytest.mark.parametrize("more", [b"", get("/a.txt")], ids=["alone", "with another after it"])
@pytest.mark.parametrize(
    "form",
    [
        "GET {} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET {} HTTP/1.1\r\nHost: a\r\nConnection: Close\r\nX: y\r\n\r\n",
        "GET {} HTTP/1.0\r\n\r\n",
        "GET {} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "HEAD {} HTTP/1.0\r\n\r\n",
        "GET {} HTTP/1.0\r\nRange: bytes=1-3\r\n\r\n",
    ],
)
def test_what_ends_its_connection_is_answered_from_memory_too(
    server: InProcess, form: str, name: str, more: bytes
) -> None:
    head = form.format(name).encode()
    before, answers = server.response_cache.uses, []
    for _ in range(4):
        with connect(server.port) as connection:
            connection.sendall(head + more)
            answers.append(DATE.sub(b"", read_to_end(connection)))
    assert answers == [answers[0]] * 4
    assert answers[0].count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in answers[0]
    if not answers[0].startswith(b"HTTP/1.1 416 "):
        assert server.response_cache.uses >= before + 3


def replaced(path: Path) -> None:
    path.with_name("new").write_bytes(b"B" * 5000)
    os.utime(path.with_name("new"), ns=(LONG_AGO, LONG_AGO))
    os.replace(path.with_name("new"), path)


def rewritten(path: Path) -> None:
    path.write_bytes(b"B" * 5000)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))


def linked_over(path: Path) -> None:
    path.unlink()
    path.symlink_to("index.html")


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("change", [replaced, rewritten, linked_over, Path.unlink])
def test_a_file_that_changed_is_never_answered_from_memory(
    server: InProcess, change: Callable[[Path], None], coded: bool
) -> None:
    name = f"{change.__name__}-{coded}.txt"
    path = server.root / name
    sibling = server.root / f"{name}.gz"
    path.write_bytes(b"A" * 5000)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    if coded:
        sibling.write_bytes(b"coded")
        os.utime(sibling, ns=(LONG_AGO, LONG_AGO))
    settle(path)
    settle(path)
    head = get(f"/{name}", "Accept-Encoding: gzip")
    with connect(server.port) as connection, conversation(server.port, HTTP_2) as client:

        def over_http2() -> Answer:
            return client.get(f"/{name}", "Accept-Encoding: gzip", host="a")

        old = b"coded" if coded else b"A" * 5000
        before = server.response_cache.uses
        # Just decided, so that nothing of it is too old to be used.
        time.sleep(LASTING_SECONDS + 0.1)
        for _ in range(3):
            assert ask(connection, head).endswith(b"\r\n\r\n" + old)
            assert over_http2().body == old
        assert server.response_cache.uses >= before + 4
        change(path)
        second = over_http2()
        answer = ask(connection, head)
        assert_alike(second, parse(answer)[0])
    if change is Path.unlink:
        assert answer.startswith(b"HTTP/1.1 404 ")
    elif coded:
        # The sibling is not older than the file, whose time was set back: it is chosen again.
        assert answer.startswith(b"HTTP/1.1 200 ")
    else:
        assert answer.endswith(b"B" * 5000 if change is not linked_over else b"<p>hello")


def test_a_new_sibling_is_found_within_the_lifetime(server: InProcess) -> None:
    path = server.root / "later.txt"
    path.write_bytes(b"A" * 5000)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    settle(path)
    head = get("/later.txt", "Accept-Encoding: br")
    with connect(server.port) as connection:
        assert ask(connection, head).endswith(b"A" * 5000)
        (server.root / "later.txt.br").write_bytes(b"coded")
        os.utime(server.root / "later.txt.br", ns=(LONG_AGO, LONG_AGO))
        time.sleep(LASTING_SECONDS + 0.1)
        assert ask(connection, head).endswith(b"\r\n\r\ncoded")


@pytest.mark.parametrize("finish", [brotli.compress(b"A" * 5000), b""], ids=["written", "emptied"])
def test_a_sibling_that_is_changed_in_place_is_chosen_anew_within_the_lifetime(
    server: InProcess, finish: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder does not change then, and the plain file is remembered for as long as all is as it was."""
    monkeypatch.setattr("ktlsd.site.response_cache._RULES_SETTLED_NS", 2_000_000_000)
    name = f"in-place-{len(finish)}.txt"
    path, sibling = server.root / name, server.root / f"{name}.br"
    path.write_bytes(b"A" * 5000)
    sibling.write_bytes(b"half")
    settle(sibling)
    head = get(f"/{name}", "Accept-Encoding: br")
    with connect(server.port) as connection:
        for _ in range(2):
            assert ask(connection, head).endswith(b"A" * 5000)
            time.sleep(LASTING_SECONDS + 0.1)
        before = server.response_cache.uses
        assert ask(connection, head).endswith(b"A" * 5000)
        assert server.response_cache.uses == before + 1
        sibling.write_bytes(finish)
        settle(sibling)
        expected = b"\r\n\r\n" + (finish or b"A" * 5000)
        assert ask(connection, head).endswith(expected)
        os.truncate(sibling, 3)
        assert ask(connection, head).endswith(b"A" * 5000)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new sibling": lambda site: write_at_the_same_time(site / "sub/page.html", ".br", b"coded"),
    "a file before it": lambda site: (site / "sub/page").write_bytes(b"plain"),
    "another folder in place of its own": lambda site: (site / "sub").rename(site / "gone"),
    "new rules": lambda site: (site / "_headers").write_text("/*\n  X-Rule: new\n"),
    "rules changed in place": lambda site: overwrite(site / "_redirects", b"/sub/page /elsew 301! "),
    "rules gone": lambda site: (site / "_redirects").unlink(),
}


def write_at_the_same_time(path: Path, suffix: str, data: bytes) -> None:
    """A sibling, as tools make them."""
    sibling = path.with_name(path.name + suffix)
    sibling.write_bytes(data)
    shutil.copystat(path, sibling)


def overwrite(path: Path, data: bytes) -> None:
    """In place, and in the same length."""
    with path.open("r+b") as file:
        file.write(data.ljust(path.stat().st_size - 1))


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, InProcess]]:
    """A server for each change, with files unchanged for long enough to be checked again."""
    state = tmp_path_factory.mktemp("state")
    library = Library()
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("XDG_STATE_HOME", str(state))
        patch.setattr("ktlsd.site.response_cache._RULES_SETTLED_NS", 2_000_000_000)
        made = {}
        for change in (*CHANGES, "none", "queries"):
            root = tmp_path_factory.mktemp("site")
            (root / "sub").mkdir()
            (root / "sub/page.html").write_bytes(b"page")
            (root / "asked.html").write_bytes(b"page")
            (root / "_redirects").write_text("/other /elsewhere 301!\n/asked id=:id /to/:id 301!\n")
            settings = Settings(root=root, clean_urls=True, headers_file=True, redirects_file=True)
            service = Service(library, settings, support(library, Mode.OFF))
            stack.callback(service.close)
            listeners = bind_all([Listen("127.0.0.1", 0)])
            stack.enter_context(in_a_thread(Server(service), listeners))
            made[change] = InProcess(listeners[0].socket.getsockname()[1], service.response_cache, root)
        settle(root / "sub/page.html")
        yield made


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_has_a_say_counts_within_a_second(sites: dict[str, InProcess], change: str) -> None:
    server, head = sites[change], get("/sub/page", "Accept-Encoding: br")
    with connect(server.port) as connection:
        old = ask(connection, head)
        assert ask(connection, head) == old
        CHANGES[change](server.root)
        # A request checks the rules, which count from then on.
        for _ in range(2):
            time.sleep(LASTING_SECONDS + 0.1)
            new = ask(connection, head)
    assert (new == old) is (change == "rules gone")
    with conversation(server.port, HTTP_2) as client:
        assert_alike(client.get("/sub/page", "Accept-Encoding: br", host="a"), parse(new)[0])


def test_an_index_file_in_another_folder_counts_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    root, library = tmp_path / "root", Library()
    (root / "sub").mkdir(parents=True)
    (root / "b.html").write_bytes(b"second")
    settle(root / "b.html")
    settings = Settings(root=root, index=("sub/a.html", "b.html"))
    listeners = bind_all([Listen("127.0.0.1", 0)])
    with (
        contextlib.closing(Service(library, settings, support(library, Mode.OFF))) as service,
        in_a_thread(Server(service), listeners),
        connect(listeners[0].socket.getsockname()[1]) as connection,
    ):
        for _ in range(2):
            assert ask(connection, get("/")).endswith(b"second")
        assert service.response_cache.uses == 1
        (root / "sub/a.html").write_bytes(b"first")
        time.sleep(LASTING_SECONDS + 0.1)
        assert ask(connection, get("/")).endswith(b"first")


def test_the_target_of_a_link_that_is_preferred_counts_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its appearance changes no folder on the way to the file that is sent instead."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("ktlsd.site.response_cache._SETTLED_NS", 10_000_000)
    root, library = tmp_path / "root", Library()
    (root / "sub").mkdir(parents=True)
    (root / "targets").mkdir()
    links = {"index.html": "/", "page": "/page", "a.txt.br": "/a.txt"}
    for name, others in (("index.html", "other.html"), ("page", "page.html"), ("a.txt.br", "a.txt")):
        (root / name).symlink_to(f"targets/{name}")
        (root / others).write_bytes(b"old")
        os.utime(root / others, ns=(LONG_AGO, LONG_AGO))
    time.sleep(0.05)
    settings = Settings(root=root, index=("index.html", "other.html"), clean_urls=True)
    listeners = bind_all([Listen("127.0.0.1", 0)])
    with (
        contextlib.closing(Service(library, settings, support(library, Mode.OFF))) as service,
        in_a_thread(Server(service), listeners),
        connect(listeners[0].socket.getsockname()[1]) as connection,
    ):
        heads = [get(target, "Accept-Encoding: br") for target in links.values()]
        for head in 2 * heads:
            assert ask(connection, head).endswith(b"old")
        assert service.response_cache.uses == len(heads)
        for name in links:
            (root / "targets" / name).write_bytes(b"new")
            os.utime(root / "targets" / name, ns=(LONG_AGO, LONG_AGO))
        time.sleep(LASTING_SECONDS + 0.1)
        for head in heads:
            assert ask(connection, head).endswith(b"new")


def test_names_that_the_root_lacks_share_a_response_until_they_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("ktlsd.site.folder_names._SETTLED_NS", 10_000_000)
    root, library = tmp_path / "root", Library()
    (root / "sub").mkdir(parents=True)
    (root / "sub/index.html").write_bytes(b"index")
    time.sleep(0.02)
    listeners = bind_all([Listen("127.0.0.1", 0)])
    # Checks of access for other paths change nothing.
    guarded = tuple(
        AccessOptions(path=path, allow=(Network("192.0.2.1"),)) for path in ("/guarded/**", "*.key", "/x/shut/**")
    )
    with (
        contextlib.closing(
            Service(library, Settings(root=root, access=guarded), support(library, Mode.OFF))
        ) as service,
        in_a_thread(Server(service), listeners),
        connect(listeners[0].socket.getsockname()[1]) as connection,
        caplog.at_level("INFO"),
    ):
        cache = service.response_cache

        def from_memory(target: str) -> bool:
            before = cache.uses
            assert ask(connection, get(target)) == missing
            assert f" 404 GET {target}: no such file" in caplog.text
            return cache.uses > before

        missing = ask(connection, get("/none"))
        assert missing.startswith(b"HTTP/1.1 404 ")
        eventually(lambda: from_memory(f"/none-{next(NUMBERS)}"))
        assert all(map(from_memory, ("/other", "/other?query", "/other/", "/other/a/b.txt", "/x//y")))
        assert not any(map(from_memory, ("/sub/none", "//none", "/n%6fne", "/none/../none", "/sub/../none", "/./x")))
        for target in ("/guarded/none", "/guarded", "/Guarded/none?query", "/none/a.key", "/none.key.gz", "/x//shut/a"):
            assert ask(connection, get(target)).startswith(b"HTTP/1.1 403 ")
        assert ask(connection, get("/none/.a")) == missing
        assert ask(connection, get("/none#a")).startswith(b"HTTP/1.1 400 ")
        assert ask(connection, get("/sub/")).endswith(b"index")
        head = b"HEAD /none HTTP/1.1\r\nHost: a\r\n\r\n"
        assert ask(connection, head) == ask(connection, head) == missing.removesuffix(b"404 Not Found\n")
        (root / "none").write_bytes(b"new")
        assert ask(connection, get("/none")).endswith(b"new")
        assert ask(connection, get("/none?query")).endswith(b"new")


def test_a_site_that_the_target_names_shares_nothing_with_one_that_host_names(tmp_path: Path) -> None:
    """An absolute form names the site (RFC 9112 section 3.2.2), and Host is not read."""
    configuration = tmp_path / "ktlsd.toml"
    text: list[str] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        text += ["[[site]]", f'names = ["{name}"]', f'root = "{tmp_path / name}"']
    (tmp_path / "two/only").write_bytes(b"two's")
    configuration.write_text("\n".join(text))
    with (
        serving(
            *(None, "--config", str(configuration)), state=tmp_path / "state", backend_listen=["127.0.0.1:0"]
        ) as server,
        connect_plain(int(server.backends[0].rpartition(":")[2])) as connection,
    ):
        deadline = time.monotonic() + 2.5
        # Until the times of the folders are old enough for the names to be known.
        while time.monotonic() < deadline:
            assert ask(connection, get("http://one/none", host="two")).startswith(b"HTTP/1.1 404 ")
            assert ask(connection, get("/only", host="two")).endswith(b"two's")
            time.sleep(0.01)


def test_a_response_that_depends_on_the_missing_path_is_decided_each_time(sites: dict[str, InProcess]) -> None:
    server = sites["none"]
    with connect(server.port) as connection:
        before = server.response_cache.uses
        assert len({ask(connection, get(f"/none-{number}")) for number in range(3)}) == 1
        assert ask(connection, get("/asked?id=1")).startswith(b"HTTP/1.1 301 ")
        assert server.response_cache.uses == before


def test_a_decision_is_renewed_while_nothing_changes(
    sites: dict[str, InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, head = sites["none"], get("/sub/page", "Accept-Encoding: br")
    with connect(server.port) as connection:
        old = ask(connection, head)
        assert ask(connection, head) == old
        for count in range(1, 4):
            before = server.response_cache.uses
            time.sleep(LASTING_SECONDS + 0.1)
            assert ask(connection, head) == old
            assert server.response_cache.uses == before + 1, count
        # The folder is known to have no siblings by now: all values of Accept-Encoding get the same response.
        ask(connection, get("/sub/page", "Accept-Encoding: gzip"))
        before = server.response_cache.uses
        for coding in ("zstd", "identity, br;q=0"):
            ask(connection, get("/sub/page", f"Accept-Encoding: {coding}"))
        assert server.response_cache.uses == before + 2
        monkeypatch.setattr("ktlsd.site.response_cache.RENEWED_SECONDS", 0.5)
        head = get("/sub/page", host="other")
        assert ask(connection, head) == ask(connection, head)
        before = server.response_cache.uses
        time.sleep(LASTING_SECONDS + 0.1)
        ask(connection, head)
        assert server.response_cache.uses == before


def test_a_decision_that_nothing_renews_ends_with_its_second(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a")
    settle(tmp_path / "a.txt")
    root = Root(str(tmp_path))
    cache, head = ResponseCache(), head_of(b"GET", b"/a.txt", b"1.1", [(b"host", b"a")])
    opened = trio.run(root.open_file, b"a.txt")
    assert isinstance(opened, OpenFile)
    response = Response(HTTPStatus.OK, (), ByteRange(0, 1))
    found = cache.remember(CacheKey.of(None, head, (), any_query=False), response, b"", opened)
    opened.close()
    assert found is not None
    descriptor = cache.open(found)
    assert descriptor is not None
    os.close(descriptor)
    time.sleep(LASTING_SECONDS + 0.05)
    assert cache.open(found) is None
    root.close()


def test_memory_is_bounded(server: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.response_cache, "most_bytes", 300_000)
    requests = [get("/empty", host=f"h{index}") for index in range(500)]
    with connect(server.port) as connection:
        for start in range(0, len(requests), 100):
            batch = requests[start : start + 100]
            connection.sendall(b"".join(batch))
            data = b""
            while data.count(b"\r\n\r\n") < len(batch):
                data += connection.recv(65536)
    assert 100 < len(server.response_cache) <= 300


def test_pipelined_heads_are_answered_in_order(server: InProcess) -> None:
    heads = [get(target) for target in ("/a.txt", "/empty", "/medium.bin", "/nothing", "/a.txt", "/")] * 10
    with connect(server.port) as connection:
        fresh = [ask(connection, head) for head in heads[:6]]
        connection.sendall(b"".join(heads))
        expected = b"".join(fresh) * 10
        data = b""
        while len(DATE.sub(b"", data)) < len(expected):
            more = connection.recv(65536)
            assert more
            data += more
    assert DATE.sub(b"", data) == expected


def test_no_answer_is_older_than_its_request_however_many_ask_for_the_same(server: InProcess) -> None:
    """Those who ask at the same time share what is read for the first of them."""
    path, head = server.root / "busy.txt", get("/busy.txt")
    path.write_bytes(b"0" * 5000)
    over, seen = threading.Event(), set[bytes]()

    def keep_asking() -> None:
        with connect(server.port) as connection:
            while not over.is_set():
                seen.add(ask(connection, head)[-5000:])

    with ThreadPoolExecutor(6) as others, connect(server.port) as connection:
        asking = [others.submit(keep_asking) for _ in range(6)]
        try:
            for number in (b"1", b"2", b"3"):
                settle(path)
                before = server.response_cache.uses
                assert eventually(lambda before=before: server.response_cache.uses > before + 50)  # type: ignore[misc]
                path.with_name("new").write_bytes(number * 5000)
                os.replace(path.with_name("new"), path)
                assert ask(connection, head).endswith(number * 5000)
                assert eventually(lambda number=number: number * 5000 in seen)  # type: ignore[misc]
        finally:
            over.set()
        for each in asking:
            each.result()
    assert seen == {number * 5000 for number in (b"0", b"1", b"2", b"3")}

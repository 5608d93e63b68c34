"""ktlsd as the backend of proxies: PROXY headers, their fields, listeners without TLS. The proxies are the tests'.

A proxy reaches it in several ways: with TLS and without, by either protocol.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import ssl
import stat
import struct
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from ktlsd.config.listener_kind import Kind
from ktlsd.config.options import LimitOptions
from ktlsd.config.values import BackendListen, Listen, Mode, Network
from ktlsd.connection.peers import peer_of
from ktlsd.process.listeners import ListenError, bind_all, close_all
from ktlsd.server import Server
from ktlsd.service import Service
from ktlsd.settings import combine
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls_probe import support
from tests.connection.test_proxy_protocol import (
    ADDRESSES_4,
    ADDRESSES_6,
    LOCAL,
    SSL,
    UDP4,
    UDP6,
    UNIX_DATAGRAM,
    UNSPEC,
    tlv,
    v2,
)
from tests.protocols import HTTP_1, HTTP_2, Conversation, conversation, plain_conversation
from tests.serving import (
    WAIT_SECONDS,
    Answer,
    Running,
    client_context,
    connect,
    connect_plain,
    exchange_plain,
    parse,
    parse_all,
    read_to_end,
    serving,
)
from tests.wire.test_response_cache import settle

LARGE = os.urandom(3_000_001)
HSTS = "strict-transport-security"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 50312 443\r\n"

CONFIGURATION = """
trusted_proxies = ["unix", "127.0.0.1", "192.0.2.0/24"]
root = "root"

[hsts]
max_age = 60

[[site]]
names = "other.example"
root = "other"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("backend")
    for name in ("root", "other"):
        (base / name).mkdir()
        (base / name / "name.txt").write_text(name)
    (base / "root/large.bin").write_bytes(LARGE)
    (base / "ktlsd.toml").write_text(CONFIGURATION)
    # So that responses are remembered from the first one on.
    settle(base / "root/large.bin")
    return base


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    """Believes what comes from loopback, and over its Unix socket."""
    with serving(
        None,
        "--config",
        str(folder / "ktlsd.toml"),
        "--log-level",
        "debug",
        state=folder / "state",
        http_listen=("127.0.0.1:0",),
        backend_listen=("127.0.0.1:0", f"unix:{folder}/http.sock"),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def behind(folder: Path) -> Iterator[Running]:
    """Demands a PROXY header from loopback, believes fields of 192.0.2.0/24."""
    (folder / "behind.toml").write_text('proxy_protocol = ["127.0.0.1", "unix"]\n' + CONFIGURATION)
    with serving(
        None,
        "--config",
        str(folder / "behind.toml"),
        "--log-level",
        "debug",
        state=folder / "state",
        http_listen=("127.0.0.1:0",),
        backend_listen=("127.0.0.1:0", f"unix:{folder}/behind.sock"),
    ) as running:
        yield running


def port_of(server: Running) -> int:
    return int(server.backends[0].rpartition(":")[2])


def request(target: str, *fields: str, host: str = "a", method: str = "GET") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *fields, "", ""]
    return "\r\n".join(lines).encode()


def ask(place: int | str, target: str, *fields: str, host: str = "a", before: bytes = b"") -> Answer:
    answer, rest = parse(exchange_plain(place, before + request(target, *fields, host=host)))
    assert rest == b""
    return answer


@dataclass(frozen=True)
class Way:
    """How a proxy asks."""

    protocol: str
    tls: bool
    unix: bool = False

    def open(self, server: Running, before: bytes = b"") -> contextlib.AbstractContextManager[Conversation]:
        if self.tls:
            return conversation(server.port, self.protocol, before=before)
        place = server.unix_socket if self.unix else port_of(server)
        return plain_conversation(place, self.protocol, before=before)

    @property
    def peer(self) -> str:
        """Its address in the log, as a pattern."""
        return "unix" if self.unix else r"127\.0\.0\.1:\d+"


WAYS = {
    "tls": Way(HTTP_1, tls=True),
    "tls-http2": Way(HTTP_2, tls=True),
    "plain": Way(HTTP_1, tls=False),
    "plain-http2": Way(HTTP_2, tls=False),
    "unix": Way(HTTP_1, tls=False, unix=True),
    "unix-http2": Way(HTTP_2, tls=False, unix=True),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def ask_twice(server: Running, way: Way, *fields: str, before: bytes = b"") -> list[Answer]:
    """A request that may be remembered, the second time on the same connection."""
    with way.open(server, before) as client:
        answers = [client.get("/name.txt", *fields, host="a") for _ in range(2)]
    assert [answer.body for answer in answers] == [b"root"] * 2
    return answers


# --- without TLS


def test_sites_are_served_every_way(server: Running, way: Way) -> None:
    with way.open(server) as client:
        assert client.get("/large.bin").body == LARGE
        assert client.get("/name.txt").body == b"root"
        assert client.get("/name.txt", host="OTHER.example:80").body == b"other"
        part = client.get("/large.bin", "Range: bytes=1000000-2000000")
        assert (part.status, part.body) == (206, LARGE[1000000:2000001])
        again = client.get("/large.bin", f"If-None-Match: {part.fields['etag']}")
        assert (again.status, again.body) == (304, b"")


def test_the_unix_socket_has_its_permissions(server: Running) -> None:
    status = os.stat(server.unix_socket)
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o660


def test_a_connection_without_tls_is_kept_and_repeats_itself(server: Running) -> None:
    head = b"GET /name.txt HTTP/1.1\r\nHost: a\r\n\r\n"
    last = request("/name.txt", method="HEAD")
    with connect_plain(port_of(server)) as connection:
        connection.sendall(head * 20 + b"HEAD" + last[4:])
        data = read_to_end(connection)
    tail = data.rindex(b"HTTP/1.1")
    answers = parse_all(data[:tail])
    assert [answer.body for answer in answers] == [b"root"] * 20
    head_answer, rest = parse(data[tail:], head_only=True)
    assert rest == b""
    assert head_answer.fields["content-length"] == "4"


@pytest.mark.parametrize(
    ("fields", "https"),
    [
        ((), None),
        (("X-Forwarded-Proto: https",), True),
        (("X-Forwarded-Proto: http",), False),
        (("X-Forwarded-For: 198.51.100.1", "X-Forwarded-Proto: https"), True),
    ],
)
def test_what_is_for_https_alone_follows_the_proxys_word(
    server: Running, way: Way, fields: tuple[str, ...], https: bool | None
) -> None:
    expected = way.tls if https is None else https
    assert [HSTS in answer.fields for answer in ask_twice(server, way, *fields)] == [expected] * 2


@pytest.mark.parametrize("name", ["tls", "tls-http2", "plain", "plain-http2"])
def test_an_untrusted_peer_is_not_believed(behind: Running, name: str) -> None:
    """Its address is what the PROXY header says, and that is in no trusted network."""
    header = V1.replace(b"192.0.2.7", b"203.0.113.9")
    lines = ("X-Forwarded-For: 198.51.100.1", "X-Forwarded-Proto: https", "X-Request-ID: forged")
    since = len(behind.log)
    with WAYS[name].open(behind, header) as client:
        answer = client.get("/nothing", *lines, host="a")
    assert answer.status == 404
    assert (HSTS in answer.fields) is WAYS[name].tls
    line = behind.wait_for_line(" 404 ", since)
    assert re.match(r"203\.0\.113\.9:50312 via 127\.0\.0\.1:\d+ 404 GET /nothing: ", line)
    assert not re.search(r"forged|198\.51", line)


@pytest.mark.parametrize("name", ["tls", "tls-http2", "plain", "plain-http2"])
def test_a_remembered_answer_to_a_stranger_is_not_a_proxys(behind: Running, name: str) -> None:
    """The same bytes mean one thing from those who are believed, and another from all others."""
    stranger, way = V1.replace(b"192.0.2.7", b"203.0.113.9"), WAYS[name]
    word = "http" if way.tls else "https"
    for _ in range(2):
        for before, believed in ((stranger, False), (V1, True)):
            answers = ask_twice(behind, way, f"X-Forwarded-Proto: {word}", before=before)
            assert [HSTS in answer.fields for answer in answers] == [believed is not way.tls] * 2


def test_the_log_names_the_client_that_a_proxy_tells(server: Running, way: Way) -> None:
    lines = ("X-Forwarded-For: 1.1.1.1, 198.51.100.1, 192.0.2.9", "X-Request-ID: 7f9c-1")
    since = len(server.log)
    with way.open(server) as client:
        assert client.get("/nothing", *lines, host="a").status == 404
    line = server.wait_for_line(" 404 ", since)
    assert re.match(rf"198\.51\.100\.1 via {way.peer} \(request 7f9c-1\) 404 GET /nothing: ", line)


def test_the_access_log_names_the_client_and_the_proxy(folder: Path, tmp_path: Path) -> None:
    (folder / "logged.toml").write_text('proxy_protocol = "127.0.0.1"\n' + CONFIGURATION)
    options = ["--config", str(folder / "logged.toml"), "--access-log", str(tmp_path / "access.log")]
    unix = f"unix:{tmp_path}/http.sock"
    json_lines = ["--access-log-format", "json"]
    with serving(None, *options, *json_lines, state=folder / "state", backend_listen=("127.0.0.1:0", unix)) as running:
        # Twice, since what is remembered takes another way.
        for name in ("plain", "tls", "tls-http2", "plain-http2"):
            ask_twice(running, WAYS[name], before=V1)
            ask_twice(running, WAYS[name], "X-Forwarded-For: 203.0.113.9", "X-Request-ID: id-1", before=V1)
        ask_twice(running, WAYS["unix"], "X-Forwarded-For: 203.0.113.9, 192.0.2.9")
        assert running.stop() == 0
    lines = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    told = [(line["client"], line["port"], line["via"], line["request_id"]) for line in lines]
    assert [line["protocol"] for line in lines] == [HTTP_1] * 8 + [HTTP_2] * 8 + [HTTP_1] * 2
    proxy = re.compile(r"127\.0\.0\.1:\d+")
    for begin in (0, 4, 8, 12):
        assert [who[:2] for who in told[begin : begin + 2]] == [("192.0.2.7", 50312)] * 2
        assert all(proxy.fullmatch(who[2]) for who in told[begin : begin + 2])
        assert told[begin + 2 : begin + 4] == [("203.0.113.9", None, "192.0.2.7:50312", "id-1")] * 2
    assert [who[:3] for who in told[16:]] == [("203.0.113.9", None, "unix")] * 2
    assert len({who[3] for who in told}) == 11


def test_what_one_request_said_is_not_the_next_ones(server: Running, way: Way) -> None:
    since = len(server.log)
    with way.open(server) as client:
        requests = [client.begin("/nothing", "X-Forwarded-For: 198.51.100.1"), client.begin("/nothing")]
        assert [request.answer().status for request in requests] == [404, 404]
    assert server.wait_for_line("^198.* 404 ", since)
    assert server.wait_for_line(f"^{way.peer} 404 ", since)


def test_a_malformed_head_has_no_clients_name(server: Running) -> None:
    since = len(server.log)
    assert ask(server.unix_socket, "/\xff", "X-Forwarded-For: 198.51.100.1", "Bad Name: 1").status == 400
    assert server.wait_for_line("^unix 400 ", since)


@pytest.mark.parametrize(
    ("sockname", "text", "address"),
    [
        (("192.0.2.7", 1), "192.0.2.7:1", "192.0.2.7"),
        (("::ffff:192.0.2.7", 1, 0, 0), "[::ffff:192.0.2.7]:1", "192.0.2.7"),
        (("fe80::1%eth0", 1, 0, 2), "[fe80::1%eth0]:1", "fe80::1"),
        ("", "unix", "None"),
        (b"\0abstract", "unix", "None"),
    ],
)
def test_peers_are_what_accept_names(sockname: tuple[str, int] | str | bytes, text: str, address: str) -> None:
    peer = peer_of(sockname)
    assert (str(peer), str(peer.address)) == (text, address)


# --- PROXY headers


@pytest.mark.parametrize(
    ("header", "who"),
    [
        (V1, r"192\.0\.2\.7:50312 via 127\.0\.0\.1:\d+"),
        (v2(ADDRESSES_4 + tlv(5, b"id")), r"192\.0\.2\.7:50312 via 127\.0\.0\.1:\d+"),
        (b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n", r"\[2001:db8::1\]:1 via 127\.0\.0\.1:\d+"),
        (b"PROXY UNKNOWN\r\n", r"127\.0\.0\.1:\d+"),
        (v2(b"", LOCAL, UNSPEC), r"127\.0\.0\.1:\d+"),
        (v2(ADDRESSES_4, family=UDP4), r"127\.0\.0\.1:\d+"),
        (v2(ADDRESSES_6, family=UDP6), r"127\.0\.0\.1:\d+"),
        (v2(bytes(216), family=UNIX_DATAGRAM), r"127\.0\.0\.1:\d+"),
        (v2(ADDRESSES_4, family=0x10), r"127\.0\.0\.1:\d+"),
    ],
)
def test_tls_follows_a_proxy_header(behind: Running, protocol: str, header: bytes, who: str) -> None:
    since = len(behind.log)
    with conversation(behind.port, protocol, before=header, name="other.example") as client:
        assert client.get("/name.txt", host="other.example").body == b"other"
    line = behind.wait_for_line(" ktls tx=", since)
    assert re.match(rf"{who} TLSv1\.3 ", line), line


@pytest.mark.parametrize("header", [V1, v2(ADDRESSES_4)], ids=["v1", "v2"])
def test_header_and_hello_in_one_segment(behind: Running, header: bytes) -> None:
    """Not a byte past the header is taken: OpenSSL gets the whole ClientHello, and the name in it is seen."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(incoming, outgoing, server_hostname="other.example")
    with socket.create_connection(("127.0.0.1", behind.port), timeout=WAIT_SECONDS) as raw:
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        raw.sendall(header + outgoing.read())
        while True:
            incoming.write(raw.recv(65536))
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
        assert tls.version() == "TLSv1.3"


@pytest.mark.parametrize("kind", ["tls", "redirect", "backend", "unix"])
def test_who_must_send_a_header_and_does_not_is_cut_off(behind: Running, kind: str) -> None:
    since = len(behind.log)
    places: dict[str, int | str] = {
        "tls": behind.port,
        "redirect": behind.http_ports[0],
        "backend": port_of(behind),
        "unix": behind.unix_socket,
    }
    with connect_plain(places[kind]) as connection:
        connection.sendall(b"GET /name.txt HTTP/1.1\r\nHost: a\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    assert behind.wait_for_line(
        r"proxy_protocol names this address, but no PROXY header came: switch it on in the proxy \(send-proxy-v2\), or",
        since,
    )


def test_a_header_from_anyone_else_is_no_tls(server: Running) -> None:
    since = len(server.log)
    with connect_plain(server.port) as connection:
        connection.sendall(V1)
        data = connection.recv(65536)
    assert not data.startswith(b"\x16")
    assert server.wait_for_line("handshake failed", since)


def test_a_header_from_anyone_else_is_no_http(server: Running) -> None:
    assert ask(port_of(server), "/name.txt", before=V1).status == 400


def test_headers_come_before_plain_http_too(behind: Running) -> None:
    assert ask(port_of(behind), "/name.txt", before=V1).body == b"root"
    assert ask(behind.unix_socket, "/name.txt", before=v2(ADDRESSES_4)).body == b"root"
    assert ask(behind.http_ports[0], "/name.txt", before=V1).status == 301


def test_a_proxy_that_took_tls_off_says_so(behind: Running) -> None:
    took = v2(ADDRESSES_4 + tlv(SSL, struct.pack("!BI", 1, 0)))
    for _ in range(2):
        for before, https in ((took, True), (v2(ADDRESSES_4), False)):
            answers = ask_twice(behind, WAYS["plain"], before=before)
            assert [HSTS in answer.fields for answer in answers] == [https, https]


def test_a_health_check_that_only_connects_is_no_news(behind: Running) -> None:
    since = len(behind.log)
    connect_plain(behind.port).close()
    line = behind.wait_for_line("disconnected", since)
    assert "closed the connection before its PROXY header" in line


@contextlib.asynccontextmanager
async def in_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **keys: object
) -> AsyncIterator[tuple[Service, int]]:
    """A server in this event loop, with other settings, and the port of its listener without TLS."""
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    settings = msgspec.structs.replace(combine({"config": str(folder / "ktlsd.toml")}, {}), **keys)
    library = Library()
    with contextlib.closing(Service(library, settings, support(library, Mode.OFF))) as service:
        server, listeners = Server(service), bind_all([], [], [BackendListen(Listen("127.0.0.1", 0))])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, listeners, lambda: None)
            yield service, listeners[0].socket.getsockname()[1]
            server.drain()


def ask_port_twice(port: int, fields: tuple[str, ...]) -> list[Answer]:
    with plain_conversation(port, HTTP_1) as client:
        return [client.get("/name.txt", *fields) for _ in range(2)]


async def test_what_differs_from_request_to_request_has_a_say_in_nothing_but_the_scheme(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_process(folder, monkeypatch) as (service, port):
        heads = service.response_cache
        for number, fields in enumerate(
            (
                ("X-Forwarded-For: 198.51.100.1",),
                ("X-Forwarded-For: 198.51.100.2", "X-Request-ID: 1"),
                ("X-Request-ID: 2", "Cookie: a"),
                ("Forwarded: for=a",),
            )
        ):
            answers = await trio.to_thread.run_sync(ask_port_twice, port, fields)
            assert not any(HSTS in answer.fields for answer in answers)
            assert (len(heads), heads.uses) == (1, 1 + 2 * number)
        uses = heads.uses
        for fields in (("X-Forwarded-Proto: https",), ("X-Forwarded-Proto: https", "X-Forwarded-For: 198.51.100.1")):
            answers = await trio.to_thread.run_sync(ask_port_twice, port, fields)
            assert all(HSTS in answer.fields for answer in answers)
        # The response to a plain request is remembered the second time.
        assert (len(heads), heads.uses) == (2, uses + 2)


async def test_a_header_that_does_not_end_is_waited_for_as_long_as_a_handshake(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    caplog.set_level(logging.INFO, "ktlsd")
    networks = (Network("127.0.0.0/8"),)
    async with in_process(folder, monkeypatch, proxy_protocol=networks) as (_, port):
        with connect_plain(port) as connection:
            connection.send(b"PROXY TCP4 ")
            began = trio.current_time()
            await trio.lowlevel.wait_readable(connection)
            assert connection.recv(1) == b""
            waited = trio.current_time() - began
    seconds = LimitOptions().handshake_seconds
    assert seconds - 1 < waited <= seconds + 1
    assert f"cut off: no PROXY header within {seconds:g} s" in caplog.text


# --- sockets' files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "http.sock"


def test_a_stale_file_is_replaced_and_a_live_one_is_not(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listeners = bind_all([], [], [BackendListen(path)], 0o600)
    try:
        assert listeners[0].kind is Kind.BACKEND
        assert listeners[0].announcement() == f"backend on unix:{path}"
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        with pytest.raises(ListenError, match="stop what listens there"):
            bind_all([], [], [BackendListen(path)])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    finally:
        close_all(listeners)
    assert not path.exists()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("precious"), "it is no socket"),
        (lambda path: path.mkdir(), "it is no socket"),
        (lambda path: path.symlink_to("elsewhere"), "it is no socket"),
        (lambda path: path.parent.rmdir(), "no such folder"),
    ],
    ids=["file", "folder", "link", "nowhere"],
)
def test_what_is_no_socket_is_left_alone(path: Path, make: object, reason: str) -> None:
    assert callable(make)
    make(path)
    before = path.lstat() if path.parent.exists() else None
    with pytest.raises(ListenError, match=reason) as caught:
        bind_all([Listen("127.0.0.1", 0)], [], [BackendListen(path)])
    assert str(caught.value).startswith(f"backend_listen unix:{path}: ")
    assert before is None or path.lstat().st_ino == before.st_ino


def test_a_path_that_is_too_long_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="too long"):
        bind_all([], [], [BackendListen(tmp_path / ("a" * 120))])


def test_a_file_that_another_made_is_not_removed(path: Path) -> None:
    listeners = bind_all([], [], [BackendListen(path)])
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path.with_name("other")))
    path.with_name("other").rename(path)
    close_all(listeners)
    assert path.exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_file_is_gone_when_the_server_is(folder: Path, path: Path, workers: str) -> None:
    with serving(
        folder / "root", "--workers", workers, state=folder / "state", backend_listen=(f"unix:{path}",)
    ) as running:
        assert ask(str(path), "/name.txt").body == b"root"
        assert running.stop() == 0
        assert not path.exists()


def test_a_download_over_the_unix_socket_is_finished(folder: Path, path: Path) -> None:
    (folder / "root/larger.bin").write_bytes(LARGE * 4)
    with serving(folder / "root", state=folder / "state", backend_listen=(f"unix:{path}",)) as running:
        with connect_plain(str(path)) as connection:
            connection.sendall(request("/larger.bin"))
            first = connection.recv(1000)
            running.process.terminate()
            time.sleep(0.2)
            answer, rest = parse(first + read_to_end(connection))
        assert (answer.body, rest) == (LARGE * 4, b"")
        assert running.process.wait(WAIT_SECONDS) == 0


def test_an_idle_connection_over_the_unix_socket_ends(folder: Path, path: Path) -> None:
    with serving(folder / "root", state=folder / "state", backend_listen=(f"unix:{path}",)) as running:
        with connect_plain(str(path)) as connection, connect(running.port):
            connection.sendall(b"GET /name.txt HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(65536)
            running.process.terminate()
            assert connection.recv(1) == b""
        assert running.process.wait(WAIT_SECONDS) == 0

"""The formats of the access log: one line for whatever a client sent, and everything can be read back from it."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ktlsd.config.values import AccessLogFormat
from ktlsd.http.request_head import RequestHead, head_of
from ktlsd.logs.access_log import FORMATS, Asked, Channel, Outcome
from ktlsd.tls.ktls import Offload, Path, Reason

TX = Path(Offload.SOFTWARE, None)
RX = Path(Offload.NONE, Reason.TLS13_RX_NEEDS_OPENSSL_3_2)
PEER = Channel(
    *("192.0.2.7", 50312, "198.51.100.1:4711", "TLSv1.3", "TLS_AES_128_GCM_SHA256"),
    *(False, "example.org", "CN=caf\u00e9", TX, RX),
)
PLAIN = Channel("2001:db8::1", 80)


def request(method: bytes, target: bytes, version: bytes, *values: bytes | None) -> RequestHead:
    """With values of Host, Referer and User-Agent."""
    names = (b"host", b"referer", b"user-agent")
    fields = [(name, value) for name, value in zip(names, values, strict=True) if value is not None]
    return head_of(method, target, version, fields)


GET = request(b"GET", b"/a?b", b"1.1", b"example.org", b"https://example.net/", b"curl/8")
AT = datetime.datetime(2026, 11, 3, 4, 5, 6, 7500, datetime.UTC).timestamp()
DONE = Outcome(AT, b"0123456789abcdef0123456789abcdef", 200, 10240, 0.0123456, complete=True)

QUOTED = r'"((?:[ !#-\[\]-~]|\\x[0-9A-F]{2})*)"'
COMBINED = re.compile(
    rf"(\S+) - - \[([^]]+)\] {QUOTED} (\d+|-) (\d+) {QUOTED} {QUOTED} host={QUOTED} duration_ms=([0-9.]+)"
    rf" complete=(true|false) request_id=([0-9a-f]{{32}}) port=(\d+|-) via=(\S+) tls=(\S+) cipher=(\S+)"
    rf" resumed=(true|false|-) server_name={QUOTED} client_certificate={QUOTED} ktls_tx={QUOTED} ktls_rx={QUOTED}\n"
)
NAMES = (
    *("client", "time", "request", "status", "bytes", "referer", "user_agent", "host", "duration_ms", "complete"),
    *(
        "request_id",
        "port",
        "via",
        "tls",
        "cipher",
        "resumed",
        "server_name",
        "client_certificate",
        "ktls_tx",
        "ktls_rx",
    ),
)

anything = st.none() | st.binary(max_size=40) | st.just(b"a=b") | st.just(b"plain")
words = st.binary(max_size=40).map(lambda value: value.replace(b" ", b"")) | st.just(b"GET")
targets = st.binary(max_size=40) | st.just(b"/a") | st.just(b"/a?b=c")
hosts = st.none() | st.text(max_size=20)


def line(form: AccessLogFormat, peer: Channel = PEER, asked: Asked = GET, outcome: Outcome = DONE) -> str:
    kind = FORMATS[form]
    return kind.line(kind.of_client(peer.address), kind.of_channel(peer), asked, outcome).decode("ascii")


def read_combined(text: str) -> dict[str, str]:
    found = COMBINED.fullmatch(text)
    assert found, text
    return dict(zip(NAMES, found.groups(), strict=True))


def unescaped(text: str) -> bytes:
    return re.sub(r"\\x(..)", lambda found: chr(int(found[1], 16)), text).encode("latin-1")


def is_one_line(text: str) -> bool:
    return text.isascii() and text[:-1].isprintable() and text.endswith("\n")


def test_combined() -> None:
    assert line("combined") == (
        '192.0.2.7 - - [03/Nov/2026:04:05:06 +0000] "GET /a?b HTTP/1.1" 200 10240 "https://example.net/" "curl/8"'
        ' host="example.org" duration_ms=12.346 complete=true request_id=0123456789abcdef0123456789abcdef port=50312'
        ' via=198.51.100.1:4711 tls=TLSv1.3 cipher=TLS_AES_128_GCM_SHA256 resumed=false server_name="example.org"'
        ' client_certificate="CN=caf\\xC3\\xA9" ktls_tx="software"'
        ' ktls_rx="none (TLS 1.3 RX needs OpenSSL 3.2)"\n'
    )


def test_json() -> None:
    assert json.loads(line("json")) == {
        "time": "2026-11-03T04:05:06.007Z",
        "request_id": "0123456789abcdef0123456789abcdef",
        "client": "192.0.2.7",
        "port": 50312,
        "via": "198.51.100.1:4711",
        "tls": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "resumed": False,
        "server_name": "example.org",
        "client_certificate": "CN=caf\u00e9",
        "ktls_tx": "software",
        "ktls_tx_reason": None,
        "ktls_rx": "none",
        "ktls_rx_reason": "TLS 1.3 RX needs OpenSSL 3.2",
        "method": "GET",
        "target": "/a?b",
        "protocol": "HTTP/1.1",
        "host": "example.org",
        "referer": "https://example.net/",
        "user_agent": "curl/8",
        "received": None,
        "user": None,
        "status": 200,
        "bytes": 10240,
        "duration_ms": 12.346,
        "complete": True,
    }


@pytest.mark.parametrize("peer", [PEER, PLAIN])
@pytest.mark.parametrize("asked", [GET, None, b"BAD"])
def test_json_always_has_the_same_names_in_the_same_order(peer: Channel, asked: Asked) -> None:
    assert list(json.loads(line("json", peer, asked))) == list(json.loads(line("json")))


@pytest.mark.parametrize(("asked", "request_line"), [(None, "-"), (b"\x16\x03", r"\x16\x03"), (b"", "")])
def test_combined_says_what_is_known(asked: Asked, request_line: str) -> None:
    said = read_combined(line("combined", PLAIN, asked, replace(DONE, status=None, complete=False)))
    assert said == {
        **read_combined(line("combined")),
        **dict.fromkeys(("referer", "user_agent", "host", "via", "tls", "cipher", "resumed"), "-"),
        **dict.fromkeys(("server_name", "client_certificate", "ktls_tx", "ktls_rx", "status"), "-"),
        **{"client": "2001:db8::1", "port": "80", "request": request_line, "complete": "false"},
    }


def test_users() -> None:
    done = replace(DONE, user=b'o m"\xe9')
    assert " - o\\x20m\\x22\\xE9 [" in line("combined", outcome=done)
    assert json.loads(line("json", outcome=done))["user"] == 'o m"\xe9'


def test_json_says_what_is_known() -> None:
    said: dict[str, Any] = json.loads(line("json", PLAIN, b"\xff", replace(DONE, status=None)))
    unknown = {name for name, value in said.items() if value is None}
    of_tls = {
        "via",
        "client_certificate",
        "tls",
        "cipher",
        "resumed",
        "server_name",
        "ktls_tx",
        "ktls_tx_reason",
        "ktls_rx",
        "ktls_rx_reason",
    }
    assert unknown == of_tls | {"method", "target", "protocol", "host", "referer", "user_agent", "user", "status"}
    assert (said["client"], said["received"]) == ("2001:db8::1", "\xff")


@given(st.tuples(words, targets, words, *[anything] * 3), hosts)
def test_whatever_was_asked_is_one_line_that_can_be_read_back(
    parts: tuple[bytes, bytes, bytes, bytes | None, bytes | None, bytes | None], server_name: str | None
) -> None:
    method, target, version, *values = parts
    asked = request(*parts)
    peer = PEER._replace(server_name=server_name)
    combined, as_json = line("combined", peer, asked), line("json", peer, asked)
    assert is_one_line(combined)
    assert is_one_line(as_json)
    read, said = read_combined(combined), json.loads(as_json)
    assert unescaped(read["request"]) == b"%b %b HTTP/%b" % (method, target, version)
    for name, value in zip(("host", "referer", "user_agent"), values, strict=True):
        assert unescaped(read[name]) == (b"-" if value is None else value)
        assert said[name] == (None if value is None else value.decode("latin-1"))
    assert said["method"].encode("latin-1") == method
    assert said["target"].encode("latin-1") == target
    assert said["protocol"].encode("latin-1") == b"HTTP/" + version
    assert said["server_name"] == server_name
    assert unescaped(read["server_name"]) == ("-" if server_name is None else server_name).encode()


@given(st.binary(max_size=80))
def test_what_is_no_request_is_one_line_that_can_be_read_back(received: bytes) -> None:
    combined, as_json = line("combined", asked=received), line("json", asked=received)
    assert is_one_line(combined)
    assert is_one_line(as_json)
    assert unescaped(read_combined(combined)["request"]) == received
    assert json.loads(as_json)["received"].encode("latin-1") == received


@given(
    st.integers(0, 4_000_000_000_000),
    st.integers(0, 10**15),
    st.floats(0, 10**6),
    st.sampled_from([None, 100, 206, 999]),
)
def test_numbers_can_be_read_back(milliseconds: int, sent: int, seconds: float, status: int | None) -> None:
    outcome = Outcome((milliseconds + 0.5) / 1000, b"0" * 32, status, sent, seconds, complete=False)
    read, said = read_combined(line("combined", outcome=outcome)), json.loads(line("json", outcome=outcome))
    at = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=milliseconds)
    assert datetime.datetime.fromisoformat(said["time"]) == at
    assert datetime.datetime.strptime(read["time"], "%d/%b/%Y:%H:%M:%S %z") == at.replace(microsecond=0)
    assert (int(read["bytes"]), said["bytes"]) == (sent, sent)
    assert (read["status"], said["status"]) == ("-" if status is None else str(status), status)
    assert float(read["duration_ms"]) == said["duration_ms"] == pytest.approx(seconds * 1000, abs=0.0006)

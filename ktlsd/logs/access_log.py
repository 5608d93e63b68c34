"""The access log's two formats, Apache's "combined" and JSON: from what is known of a request to one line. Pure.

Strategy: the facts of a connection are turned into text once and kept, so that a line is put together from few pieces.
All text from clients is escaped: as nginx does (\\xHH), or by JSON's rules; one look at a whole request says that there
is nothing to escape, as is right for nearly all.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from msgspec import Struct

from ktlsd.config.values import AccessLogFormat
from ktlsd.http.request_head import RequestHead
from ktlsd.http.signed_links import without_signatures
from ktlsd.http.validators import http_date
from ktlsd.tls.ktls import Path

# Latin-1 gives each byte a character of its own. All that is not escaped is printable ASCII.
_ESCAPES: Final = {
    number: f"\\x{number:02X}" for number in range(256) if not " " <= chr(number) <= "~" or chr(number) in '"\\'
}
_PLAIN: Final = bytes(number for number in range(128) if number not in _ESCAPES and chr(number) != "=")
"""The characters that neither format escapes, but for the one that stands before a signature."""
_BOOLEANS: Final = (b"false", b"true")
_STATUSES: Final[Mapping[int | None, bytes]] = {status: b"%d" % status for status in range(100, 1000)}

_COMBINED: Final = b'%b - %b [%b] "%b" %b %d "%b" "%b" host="%b" duration_ms=%.3f complete=%b request_id=%b %b\n'
_JSON: Final = (
    b'{"time":"%b.%03dZ","request_id":"%b",%b,%b,"method":%b,"target":%b,"protocol":%b,"host":%b,"referer":%b,'
    b'"user_agent":%b,"received":%b,"user":%b,"status":%b,"bytes":%d,"duration_ms":%.3f,"complete":%b}\n'
)


class Channel(NamedTuple):
    """The facts of a connection. A trusted proxy may give another address for a request. The fields of TLS are None
    without it."""

    address: str
    port: int | None = None
    """None on a Unix socket, and if the proxy that sent the address did not send the port."""
    via: str | None = None
    """The proxy that sent the address, with its port."""
    protocol: str | None = None
    cipher: str | None = None
    resumed: bool | None = None
    server_name: str | None = None
    client_certificate: str | None = None
    """Its subject, if one was required."""
    ktls_tx: Path | None = None
    ktls_rx: Path | None = None


class Outcome(Struct, frozen=True, gc=False):
    """The outcome of a request."""

    at: float
    """When it came, in seconds since 1970."""
    request_id: bytes
    status: int | None
    """None where no response was begun."""
    sent: int
    """Bytes after the response head that the kernel took."""
    seconds: float
    complete: bool
    """Whether the whole response was taken."""
    user: bytes | None = None
    """The name that came with a password, right or wrong; None if none was asked for."""


Asked = RequestHead | bytes | None
"""A request, or the first line of bytes that are none, without its end; None if nothing is known."""


class Format(Protocol):
    """The format of a line."""

    def of_client(self, address: str) -> bytes:
        """The part for the client's address."""

    def of_channel(self, channel: Channel) -> bytes:
        """The part for all else about a connection."""

    def line(self, client: bytes, channel: bytes, asked: Asked, outcome: Outcome) -> bytes:
        """One line of ASCII with its end."""


class Combined:
    """Apache's combined format (httpd's mod_log_config), and after it ktlsd's own fields as name=value."""

    def of_client(self, address: str) -> bytes:
        return _escaped(address.encode())

    def of_channel(self, channel: Channel) -> bytes:
        known = (channel.port, channel.via, channel.protocol, channel.cipher)
        port, via, protocol, cipher = (str(fact).encode("ascii") if fact else b"-" for fact in known)
        resumed = b"-" if channel.resumed is None else _BOOLEANS[channel.resumed]
        texts = (channel.server_name, channel.client_certificate, channel.ktls_tx, channel.ktls_rx)
        escaped = (b"-" if text is None else _escaped(str(text).encode("utf-8", "surrogateescape")) for text in texts)
        return (
            b"port=%b via=%b tls=%b cipher=%b resumed=%b"
            b' server_name="%b" client_certificate="%b" ktls_tx="%b" ktls_rx="%b"'
        ) % (port, via, protocol, cipher, resumed, *escaped)

    def line(self, client: bytes, channel: bytes, asked: Asked, outcome: Outcome) -> bytes:
        request = host = referer = agent = b"-"
        if isinstance(asked, RequestHead):
            request, host, referer, agent = _texts(asked, _escaped)
        elif asked is not None:
            request = _escaped(asked)
        # No space parts a name.
        user = _escaped(outcome.user).replace(b" ", b"\\x20") if outcome.user else b"-"
        at, status, sent = _combined_time(int(outcome.at)), _STATUSES.get(outcome.status, b"-"), outcome.sent
        ms, whole, id_ = outcome.seconds * 1000, _BOOLEANS[outcome.complete], outcome.request_id
        return _COMBINED % (client, user, at, request, status, sent, referer, agent, host, ms, whole, id_, channel)


class Json:
    """One JSON object a line, with the same names in every line."""

    def of_client(self, address: str) -> bytes:
        return _members({"client": address})

    def of_channel(self, channel: Channel) -> bytes:
        fields = {
            "port": channel.port,
            "via": channel.via,
            "tls": channel.protocol,
            "cipher": channel.cipher,
            "resumed": channel.resumed,
            "server_name": channel.server_name,
            "client_certificate": channel.client_certificate,
        }
        tx, rx = _of_path("ktls_tx", channel.ktls_tx), _of_path("ktls_rx", channel.ktls_rx)
        return _members({**fields, **tx, **rx})

    def line(self, client: bytes, channel: bytes, asked: Asked, outcome: Outcome) -> bytes:
        method = target = protocol = host = referer = agent = received = b"null"
        if isinstance(asked, RequestHead):
            request, host, referer, agent = _texts(asked, _json_escaped)
            method, _, rest = request.partition(b" ")
            target, _, protocol = rest.rpartition(b" ")
            method, target, protocol = b'"%b"' % method, b'"%b"' % target, b'"%b"' % protocol
            fields = asked.of_fields.values
            host = b'"%b"' % host if b"host" in fields else b"null"
            referer = b'"%b"' % referer if b"referer" in fields else b"null"
            agent = b'"%b"' % agent if b"user-agent" in fields else b"null"
        elif asked is not None:
            received = b'"%b"' % _json_escaped(asked)
        user = b"null" if outcome.user is None else b'"%b"' % _json_escaped(outcome.user)
        second, status = int(outcome.at), _STATUSES.get(outcome.status, b"null")
        time, ms = _rfc3339_time(second), int((outcome.at - second) * 1000)
        return _JSON % (
            *(time, ms, outcome.request_id, client, channel, method, target, protocol, host, referer, agent),
            *(received, user, status, outcome.sent, outcome.seconds * 1000, _BOOLEANS[outcome.complete]),
        )


FORMATS: Final[Mapping[AccessLogFormat, Format]] = {"combined": Combined(), "json": Json()}


def _texts(head: RequestHead, escaped: Callable[[bytes], bytes]) -> Iterable[bytes]:
    """The request line, Host, Referer and User-Agent of a request; "-" for a missing field."""
    get = head.of_fields.values.get
    line = b"%b HTTP/%b" % (head.key, head.http_version)
    texts = line, get(b"host", b"-"), get(b"referer", b"-"), get(b"user-agent", b"-")
    joined = b"".join(texts)
    odd = joined.translate(None, _PLAIN)
    if not odd or (not odd.strip(b"=") and without_signatures(joined) is joined):
        return texts
    line, host, referer, agent = texts
    return map(escaped, (without_signatures(line), host, without_signatures(referer), agent))


def _escaped(value: bytes) -> bytes:
    return value.decode("latin-1").translate(_ESCAPES).encode("ascii")


def _json_escaped(value: bytes) -> bytes:
    """The inside of a JSON string, in ASCII."""
    return json.dumps(value.decode("latin-1"))[1:-1].encode("ascii")


def _members(fields: Mapping[str, str | int | bool | None]) -> bytes:
    """The inside of a JSON object, in ASCII."""
    return json.dumps(fields, separators=(",", ":"))[1:-1].encode("ascii")


def _of_path(name: str, path: Path | None) -> dict[str, str | None]:
    if path is None:
        return {name: None, f"{name}_reason": None}
    return {name: path.offload.value, f"{name}_reason": path.reason.value if path.reason is not None else None}


@lru_cache(maxsize=8)
def _combined_time(second: int) -> bytes:
    day, month, year, clock = http_date(second).split()[1:5]
    return f"{day}/{month}/{year}:{clock} +0000".encode("ascii")


@lru_cache(maxsize=8)
def _rfc3339_time(second: int) -> bytes:
    return datetime.datetime.fromtimestamp(second, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S").encode("ascii")

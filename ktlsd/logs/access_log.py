"""The access log's two formats, Apache's "combined" and JSON: from what is known of a request to one line. Pure.

Strategy: the facts of a connection, and those of a request head, are turned into text once and kept, so that a
line is put together from few pieces. All text from clients is escaped: as nginx does (\\xHH), or by JSON's rules.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from msgspec import Struct

from ktlsd.config.values import AccessLogFormat
from ktlsd.http.validators import http_date
from ktlsd.tls.ktls import Path

Fragment = tuple[str, str]
"""Finished text: two runs of fields that do not stand together in a line (the second empty where they do)."""

# Latin-1 gives each byte a character of its own. All that is not escaped is printable ASCII.
_ESCAPES: Final = {
    number: f"\\x{number:02X}" for number in range(256) if not " " <= chr(number) <= "~" or chr(number) in '"\\'
}
_PLAIN: Final = bytes(number for number in range(128) if number not in _ESCAPES)
"""The characters that neither format escapes."""
_DELETE: Final = "\x7f"


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


class Asked(Struct, frozen=True, gc=False):
    """The request head as received; None for missing or unreadable parts."""

    method: bytes | None = None
    target: bytes | None = None
    version: bytes | None = None
    """Such as b"1.1"."""
    host: bytes | None = None
    referer: bytes | None = None
    user_agent: bytes | None = None
    received: bytes | None = None
    """The first line of bytes that are no request, without its end."""


class Outcome(Struct, frozen=True, gc=False):
    """The outcome of a request."""

    at: float
    """When it came, in seconds since 1970."""
    request_id: str
    status: int | None
    """None where no response was begun."""
    sent: int
    """Bytes after the response head that the kernel took."""
    seconds: float
    complete: bool
    """Whether the whole response was taken."""
    user: bytes | None = None
    """The name that came with a password, right or wrong; None if none was asked for."""


class Format(Protocol):
    """The format of a line."""

    def of_channel(self, channel: Channel) -> Fragment:
        """The common part of all lines of a connection."""

    def of_request(self, asked: Asked) -> Fragment:
        """The common part of all lines for the same request head."""

    def line(self, channel: Fragment, asked: Fragment, outcome: Outcome) -> str:
        """One line of ASCII with its end."""


class Combined:
    """Apache's combined format (httpd's mod_log_config), and after it ktlsd's own fields as name=value."""

    def of_channel(self, channel: Channel) -> Fragment:
        resumed = "-" if channel.resumed is None else _boolean(channel.resumed)
        tx, rx = (_quoted(None if path is None else str(path).encode()) for path in (channel.ktls_tx, channel.ktls_rx))
        name, subject = (_quoted(_encoded(text)) for text in (channel.server_name, channel.client_certificate))
        return _escaped(channel.address.encode()), (
            f"port={channel.port or '-'} via={channel.via or '-'} tls={channel.protocol or '-'}"
            f" cipher={channel.cipher or '-'} resumed={resumed} server_name={name} client_certificate={subject}"
            f" ktls_tx={tx} ktls_rx={rx}"
        )

    def of_request(self, asked: Asked) -> Fragment:
        line = asked.received
        if asked.method is not None:
            line = b"%b %b HTTP/%b" % (asked.method, asked.target or b"", asked.version or b"")
        referer, agent, host = asked.referer, asked.user_agent, asked.host
        if line and referer and agent and host and _is_plain(b"".join((line, referer, agent, host))):
            # One look at all of them, as is right for nearly all requests.
            return (b'"%b"' % line).decode("ascii"), (b'"%b" "%b" host="%b"' % (referer, agent, host)).decode("ascii")
        return _quoted(line), f"{_quoted(referer)} {_quoted(agent)} host={_quoted(host)}"

    def line(self, channel: Fragment, asked: Fragment, outcome: Outcome) -> str:
        return (
            f"{channel[0]} - {_user(outcome.user)} [{_combined_time(int(outcome.at))}]"
            f" {asked[0]} {outcome.status or '-'} {outcome.sent} {asked[1]}"
            f" duration_ms={outcome.seconds * 1000:.3f} complete={_boolean(outcome.complete)}"
            f" request_id={outcome.request_id} {channel[1]}\n"
        )


class Json:
    """One JSON object a line, with the same names in every line."""

    def of_channel(self, channel: Channel) -> Fragment:
        fields = {
            "client": channel.address,
            "port": channel.port,
            "via": channel.via,
            "tls": channel.protocol,
            "cipher": channel.cipher,
            "resumed": channel.resumed,
            "server_name": channel.server_name,
            "client_certificate": channel.client_certificate,
        }
        tx, rx = _of_path("ktls_tx", channel.ktls_tx), _of_path("ktls_rx", channel.ktls_rx)
        return _members({**fields, **tx, **rx}), ""

    def of_request(self, asked: Asked) -> Fragment:
        return (
            f'"method":{_json(asked.method)},"target":{_json(asked.target)},'
            f'"protocol":{_json(None if asked.version is None else b"HTTP/" + asked.version)},'
            f'"host":{_json(asked.host)},"referer":{_json(asked.referer)},"user_agent":{_json(asked.user_agent)},'
            f'"received":{_json(asked.received)}'
        ), ""

    def line(self, channel: Fragment, asked: Fragment, outcome: Outcome) -> str:
        second = int(outcome.at)
        return (
            f'{{"time":"{_rfc3339_time(second)}.{int((outcome.at - second) * 1000):03d}Z",'
            f'"request_id":"{outcome.request_id}",{channel[0]},{asked[0]},"user":{_json(outcome.user)},'
            f'"status":{outcome.status or "null"},"bytes":{outcome.sent},"duration_ms":{outcome.seconds * 1000:.3f},'
            f'"complete":{_boolean(outcome.complete)}}}\n'
        )


FORMATS: Final[Mapping[AccessLogFormat, Format]] = {"combined": Combined(), "json": Json()}


def _is_plain(value: bytes) -> bool:
    """Whether there is nothing to escape."""
    return not value.translate(None, _PLAIN)


def _escaped(value: bytes) -> str:
    if _is_plain(value):
        return value.decode("ascii")
    return value.decode("latin-1").translate(_ESCAPES)


def _quoted(value: bytes | None) -> str:
    return '"-"' if value is None else f'"{_escaped(value)}"'


def _user(name: bytes | None) -> str:
    """A name as the third column: no space parts it."""
    return "-" if not name else _escaped(name).replace(" ", "\\x20")


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogateescape")


def _members(fields: Mapping[str, str | int | bool | None]) -> str:
    """The inside of a JSON object, in ASCII."""
    # JSON lets DEL stand as it is.
    return json.dumps(fields, separators=(",", ":"))[1:-1].replace(_DELETE, "\\u007f")


def _json(value: bytes | None) -> str:
    """A JSON value in ASCII."""
    if value is None:
        return "null"
    if _is_plain(value):
        return f'"{value.decode("ascii")}"'
    # JSON lets DEL stand as it is.
    return json.dumps(value.decode("latin-1")).replace(_DELETE, "\\u007f")


def _of_path(name: str, path: Path | None) -> dict[str, str | None]:
    if path is None:
        return {name: None, f"{name}_reason": None}
    return {name: path.offload.value, f"{name}_reason": path.reason.value if path.reason is not None else None}


def _boolean(value: bool) -> str:
    return "true" if value else "false"


@lru_cache(maxsize=8)
def _combined_time(second: int) -> str:
    day, month, year, clock = http_date(second).split()[1:5]
    return f"{day}/{month}/{year}:{clock} +0000"


@lru_cache(maxsize=8)
def _rfc3339_time(second: int) -> str:
    return datetime.datetime.fromtimestamp(second, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")

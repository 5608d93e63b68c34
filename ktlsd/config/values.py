"""Types of option values: checked texts and numbers, addresses, the destination of a log.

Strategy: msgspec refuses a value that does not fit, with the `description` of its type in the message. Values that no
pattern can check have a class and a function that reads them from text; settings.py calls it.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from msgspec import Meta

from ktlsd.config.networks import UNIX, parse_network

MOST_WORKERS: Final = 256
STDERR: Final = "stderr"
STDOUT: Final = ("-", "stdout")
_MOST_PORT: Final = 65535
_STDOUT_DESCRIPTOR, _STDERR_DESCRIPTOR = 1, 2

# The patterns are for Python and, in the JSON Schema, for ECMAScript: in Python a plain `$` would let a newline follow.
_END: Final = r"$(?!\n)"
_LABEL: Final = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_TOKEN: Final = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  RFC 9110 section 5.6.2

LogLevel = Literal["debug", "info", "warning", "error"]
AccessLogFormat = Literal["combined", "json"]
ErrorLogFormat = Literal["text", "json"]
TlsPolicy = Literal["modern", "intermediate", "compatible", "nic"]
TlsVersion = Literal["1.2", "1.3"]
UnknownNames = Literal["serve", "refuse"]
CertificateKey = Literal["p256", "p384", "rsa2048", "rsa3072", "rsa4096"]
ChallengeKind = Literal["tls-alpn-01", "http-01", "dns-01"]
ForwardedFields = Literal["x-forwarded", "forwarded"]
"""X-Forwarded-For and X-Forwarded-Proto, or Forwarded (RFC 7239)."""
LOG_LEVELS: Final[tuple[str, ...]] = get_args(LogLevel)
Coding = Literal["zstd", "br", "gzip"]
ENCODED: Final[Mapping[str, Coding]] = {
    ".svgz": "gzip",
    # Builds of Unity for the web, and other WebAssembly.
    **{f".{inner}.br": "br" for inner in ("data", "js", "symbols.json", "wasm")},
    **{f".{inner}.gz": "gzip" for inner in ("data", "js", "symbols.json", "wasm")},
}
"""The default of SiteOptions.encoded (options.py)."""
EntityTagRecipe = Literal["strong", "size-mtime", "content"]
RedirectStatus = Literal[200, 301, 302, 303, 307, 308, 404]
Text = Annotated[str, Meta(pattern=rf"^[^\x00-\x1f\x7f]+{_END}", description="a text without control characters")]
Glob = Annotated[
    str, Meta(pattern=rf"^[^\x00-\x1f\x7f]+{_END}", description='a pattern for paths, such as "/assets/**" or "*.html"')
]
"""A pattern for the decoded path of a target: `*` stands for anything but a slash, `**` for anything, `?` for one
character that is no slash. One without a slash is matched only against the last segment ("*.html")."""
RegexText = Annotated[
    str,
    Meta(
        pattern=rf"^[^\x00-\x1f\x7f]+{_END}",
        max_length=1024,
        description=r'a regular expression of at most 1024 characters, such as "^/old/(\d+)$"',
    ),
]
"""An expression of RE2 for the decoded path of a target."""
Realm = Annotated[
    str, Meta(pattern=rf"^[ !#-\[\]-~]+{_END}", description="a text of printable ASCII without quotes and backslashes")
]
SitePath = Annotated[
    str, Meta(pattern=rf"^/[^\x00-\x1f\x7f]*{_END}", description="a path below the root, with its leading slash")
]
"""A decoded path below a site's root, with its leading slash."""
RedirectTarget = Annotated[
    str, Meta(pattern=rf"^(/|https?://)[^\x00-\x1f\x7f]*{_END}", description="a path, or an http:// or https:// URL")
]
FieldName = Annotated[
    str, Meta(pattern=rf"^{_TOKEN}{_END}", description='the name of a header field, such as "X-Frame-Options"')
]
FieldValue = Annotated[
    str, Meta(pattern=rf"^[^\x00-\x08\x0a-\x1f\x7f]*{_END}", description="a header field's value, on one line")
]
LifetimeText = Annotated[
    str,
    Meta(
        pattern=rf"^(modified\+)?([0-9]{{1,9}}[smhdwy])+{_END}",
        description='a time such as "7d" or "1h30m" (s, m, h, d, w, y), or "modified+7d"',
    ),
]
"""How long caches may keep a file, from the response or from the file's last change on."""
HostName = Annotated[
    str,
    Meta(
        pattern=rf"^(\*\.)?{_LABEL}(\.{_LABEL})*{_END}",
        max_length=253,
        description='a host name such as "example.org", or "*.example.org" (xn-- for letters beyond a to z)',
    ),
]
Suffix = Annotated[str, Meta(pattern=rf"^\.[^/\x00-\x1f\x7f]+{_END}", description='a suffix with its dot, as ".gpx"')]
AcmeDirectory = Annotated[
    str,
    Meta(
        pattern=rf"^(letsencrypt|staging|https://[^\x00-\x20\x7f]+){_END}",
        description='"letsencrypt", "staging" or the https:// URL of a directory',
    ),
]
MEDIA_TYPE: Final = rf"^{_TOKEN}/{_TOKEN}([ \t]*;[\t\x20-\x7e]*)?{_END}"
MediaType = Annotated[str, Meta(pattern=MEDIA_TYPE, description="a media type")]
ClientCertificates = Literal["required", "optional"]
VerifyDepth = Annotated[int, Meta(ge=0, le=100, description="a number from 0 to 100")]
Charset = Annotated[
    str,
    Meta(pattern=rf"^[A-Za-z0-9!#$%&+^_`{{}}~-]*{_END}", description="the name of a character encoding, or empty"),
]
_ERRORS: Final = (401, 403, 404, 410, 412, 416, 429, 451, 500, 503)
_OF_ERRORS: Final = f"a status that a site refuses with: {', '.join(map(str, _ERRORS[:-1]))} or {_ERRORS[-1]}"
ErrorStatus = Annotated[str, Meta(pattern=rf"^({'|'.join(map(str, _ERRORS))}){_END}", description=_OF_ERRORS)]
"""A status of [error_pages], whose keys are texts."""
ErrorNumber = Annotated[Literal[401, 403, 404, 410, 412, 416, 429, 451, 500, 503], Meta(description=_OF_ERRORS)]
"""The same, of [[error_page]]."""
TryFile = Annotated[
    str,
    Meta(
        pattern=rf"^(=(403|404|410|451|503)|[^=\x00-\x1f\x7f][^\x00-\x1f\x7f]*){_END}",
        description='a path, or "=404" (or 403, 410, 451, 503) at the end of the list',
    ),
]
"""An entry of `try_files`."""
Seconds = Annotated[int, Meta(ge=0, description="a whole number of seconds")]
MoreSeconds = Annotated[float, Meta(gt=0, description="a number of seconds above 0")]
_LARGEST_COUNT: Final = (1 << 31) - 1
Count = Annotated[int, Meta(ge=1, le=_LARGEST_COUNT, description=f"a whole number from 1 to {_LARGEST_COUNT}")]
"""A number that fits into a setting of HTTP/2 (RFC 9113 section 6.5.1), and into C's int."""
PositiveNumber = Annotated[float, Meta(gt=0, le=1_000_000_000, description="a number above 0, at most 1000000000")]
CountOrNone = Annotated[int, Meta(ge=0, description="a whole number from 1 on, or 0 for no limit")]
Port = Annotated[int, Meta(ge=1, le=_MOST_PORT, description=f"a port from 1 to {_MOST_PORT}")]
FileMode = Annotated[
    str, Meta(pattern=rf"^0?[0-7]{{3}}{_END}", description='the permissions of a file in octal, such as "0660"')
]
Workers = Annotated[
    Annotated[int, Meta(ge=1, le=MOST_WORKERS)] | Literal["auto"],
    Meta(description=f'a number from 1 to {MOST_WORKERS} or "auto"'),
]


class Mode(enum.Enum):
    """Values of --ktls."""

    AUTO = "auto"
    REQUIRE = "require"
    OFF = "off"


WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104
"""Addresses that stand for all addresses of this machine, of one family."""


class Listen(tuple[str, int]):
    """An address to accept connections on: a host name or address (empty: every address of this machine) and a port."""

    __slots__ = ()

    def __new__(cls, host: str, port: int) -> Listen:
        return super().__new__(cls, (host, port))

    @property
    def host(self) -> str:
        return self[0]

    @property
    def port(self) -> int:
        return self[1]

    def __str__(self) -> str:
        return address_text(*self)


def address_text(host: str, port: int) -> str:
    """A host and a port in one, as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_listen(text: str) -> Listen:
    """Read ADDR:PORT, [IPV6]:PORT or :PORT. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("not ADDR:PORT; an IPv6 address stands in brackets, such as [::1]:8443")
    # More than nine digits could be more than int() takes.
    number = int(port) if re.fullmatch("[0-9]{1,9}", port) else _MOST_PORT + 1
    if not colon or number > _MOST_PORT:
        remedy = "" if colon or number > _MOST_PORT else f"; for port {number}, write :{number}"
        raise ValueError(f"not ADDR:PORT with a port from 0 to {_MOST_PORT}{remedy}")
    return Listen(host, number)


class LogPlace(tuple[Path | int]):
    """The destination of a log: a file, stderr or stdout."""

    __slots__ = ()

    def __new__(cls, place: Path | int = _STDERR_DESCRIPTOR) -> LogPlace:
        """A path, or the descriptor of stderr or stdout."""
        return super().__new__(cls, (place,))

    @property
    def path(self) -> Path | None:
        """None if it is not a file."""
        return self[0] if isinstance(self[0], Path) else None

    @property
    def descriptor(self) -> int:
        """That of stderr or stdout, if it is not a file."""
        return self[0] if isinstance(self[0], int) else -1

    def __str__(self) -> str:
        return str(self[0]) if isinstance(self[0], Path) else STDOUT[1] if self[0] == _STDOUT_DESCRIPTOR else STDERR


def parse_log_place(text: str, folder: Path) -> LogPlace:
    """Read "stderr", "stdout", "-" (stdout) or a path, which may be relative to `folder`."""
    if text in STDOUT:
        return LogPlace(_STDOUT_DESCRIPTOR)
    return LogPlace() if text == STDERR else LogPlace(folder / text)


class BackendListen(tuple[Listen | Path]):
    """A listener for TLS-terminating proxies: an address, or the path of a Unix socket."""

    __slots__ = ()

    def __new__(cls, place: Listen | Path) -> BackendListen:
        return super().__new__(cls, (place,))

    @property
    def place(self) -> Listen | Path:
        return self[0]

    def __str__(self) -> str:
        return str(self.place) if isinstance(self.place, Listen) else f"unix:{self.place}"


def parse_backend_listen(text: str, folder: Path) -> BackendListen:
    """Read what parse_listen() reads, or unix:PATH, which may be relative to `folder`. Raises ValueError."""
    scheme, _, path = text.partition(":")
    if scheme != UNIX:
        if "/" in text and ":" not in text:
            raise ValueError(f"neither ADDR:PORT nor unix:PATH; for a socket write unix:{text}")
        return BackendListen(parse_listen(text))
    if not path or "\0" in path:
        raise ValueError("not unix:PATH")
    return BackendListen(Path(os.path.abspath(folder / path)))


class Network(str):
    """Addresses of peers: a CIDR block, a single address, or "unix" for all on Unix sockets."""

    __slots__ = ()


def read_network(text: str) -> Network:
    """Read a Network. Raises ValueError."""
    if text != UNIX:
        try:
            parse_network(text)
        except ValueError as error:
            raise ValueError(f'not a network such as "10.0.0.0/8", nor "{UNIX}": {error}') from error
    return Network(text)

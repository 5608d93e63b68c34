"""What an operator can ask for, as frozen types: the one source of the configuration file's keys, their checks, the
JSON Schema and the defaults.

Strategy: msgspec reads TOML values into these types and refuses what does not fit; settings.py says where the values
come from. The keys of SiteOptions may stand at the top level, where they hold for every site, and in a [[site]].
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from msgspec import Meta, Struct, field

from ktlsd.config.networks import UNIX, parse_network

MOST_WORKERS: Final = 256
STDERR: Final = "stderr"
_MOST_PORT: Final = 65535

# The patterns are for Python and, in the JSON Schema, for ECMAScript: in Python `$` alone would let a newline follow.
_END: Final = r"$(?!\n)"
_LABEL: Final = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_TOKEN: Final = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  RFC 9110 section 5.6.2

LogLevel = Literal["debug", "info", "warning", "error"]
AccessLogFormat = Literal["combined", "json"]
TlsPolicy = Literal["modern", "intermediate", "compatible"]
ForwardedFields = Literal["x-forwarded", "forwarded"]
"""X-Forwarded-For and X-Forwarded-Proto, or Forwarded (RFC 7239)."""
LOG_LEVELS: Final[tuple[str, ...]] = get_args(LogLevel)
Coding = Literal["zstd", "br", "gzip"]
ENCODED: Final[Mapping[str, Coding]] = {
    ".svgz": "gzip",
    # What Unity writes for the web, and other builds of WebAssembly.
    **{f".{inner}.br": "br" for inner in ("data", "js", "symbols.json", "wasm")},
    **{f".{inner}.gz": "gzip" for inner in ("data", "js", "symbols.json", "wasm")},
}
"""The default of SiteOptions.encoded."""
EntityTagRecipe = Literal["strong", "size-mtime", "content"]
RedirectStatus = Literal[200, 301, 302, 303, 307, 308, 404]
Text = Annotated[str, Meta(pattern=rf"^[^\x00-\x1f\x7f]+{_END}", description="a text without control characters")]
Glob = Annotated[
    str, Meta(pattern=rf"^[^\x00-\x1f\x7f]+{_END}", description='a pattern for paths, such as "/assets/**" or "*.html"')
]
"""A pattern for the decoded path of a target: `*` stands for anything but a slash, `**` for anything, `?` for one
character that is no slash. One without a slash is matched against the last segment alone ("*.html")."""
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
HostName = Annotated[
    str,
    Meta(
        pattern=rf"^(\*\.)?{_LABEL}(\.{_LABEL})*{_END}",
        max_length=253,
        description='a host name such as "example.org", or "*.example.org" (xn-- for letters beyond a to z)',
    ),
]
Suffix = Annotated[str, Meta(pattern=rf"^\.[^/\x00-\x1f\x7f]+{_END}", description='a suffix with its dot, as ".gpx"')]
MediaType = Annotated[
    str, Meta(pattern=rf"^{_TOKEN}/{_TOKEN}([ \t]*;[\t\x20-\x7e]*)?{_END}", description="a media type")
]
Charset = Annotated[
    str,
    Meta(pattern=rf"^[A-Za-z0-9!#$%&+^_`{{}}~-]*{_END}", description="the name of a character encoding, or empty"),
]
ErrorStatus = Annotated[
    str,
    Meta(
        pattern=rf"^(403|404|412|416|500|503){_END}",
        description="a status that a site refuses with: 403, 404, 412, 416, 500 or 503",
    ),
]
Seconds = Annotated[int, Meta(ge=0, description="a whole number of seconds")]
MoreSeconds = Annotated[float, Meta(gt=0, description="a number of seconds above 0")]
Count = Annotated[int, Meta(ge=1, description="a whole number from 1 on")]
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
    """What the operator asks for with --ktls."""

    AUTO = "auto"
    REQUIRE = "require"
    OFF = "off"


class Listen(tuple[str, int]):
    """Where to accept connections: a host name or address (empty: every address of this machine) and a port."""

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
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


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


class LogPlace(tuple[Path | None]):
    """Where a log goes: a file, or stderr."""

    __slots__ = ()

    def __new__(cls, path: Path | None = None) -> LogPlace:
        """None for stderr."""
        return super().__new__(cls, (path,))

    @property
    def path(self) -> Path | None:
        return self[0]

    def __str__(self) -> str:
        return STDERR if self.path is None else str(self.path)


class BackendListen(tuple[Listen | Path]):
    """Where proxies that end TLS connect: an address, or the path of a Unix socket."""

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


class RedirectOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """One [[redirect]]: from where to where. Rules are tried in their order, the first that matches counts."""

    from_: SitePath
    """A path with `:name` segments and a `*` at its end."""
    to: RedirectTarget
    """A path or an http(s) URL; `:name` and `:splat` stand for what `from` matched."""
    status: RedirectStatus = 301
    """200 sends another file under the asked path, 404 a page of your own."""
    force: bool = True
    """Whether the rule also covers a file that exists."""


class HeaderOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[header]]: response header fields for the paths that match."""

    path: Glob
    """Which paths: "**" for all."""
    set: dict[FieldName, FieldValue] = {}
    """Fields to add, in place of those of the same name."""
    remove: tuple[FieldName, ...] = ()
    """Names of fields to leave out."""


class CacheOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[cache]]: the Cache-Control of files whose paths match. The first rule that matches counts."""

    path: Glob
    """Which paths: "**" for all."""
    control: FieldValue
    """Such as "public, max-age=3600"."""


class CorsOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[cors]: which origins' scripts may read this site (the Fetch standard's CORS protocol)."""

    origins: tuple[Text, ...]
    """Such as "https://example.org"; "*" for all."""
    path: Glob = "**"
    """Which paths."""
    headers: tuple[FieldName, ...] = ()
    """Request header fields that a script may set; those that it asks for, when there are none."""
    expose: tuple[FieldName, ...] = ()
    """Response header fields that a script may read."""
    max_age: Seconds = 86400
    """Seconds for which the answer to a preflight may be kept."""
    credentials: bool = False
    """Whether scripts may send cookies and see what is answered to them."""


class HstsOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[hsts]: Strict-Transport-Security (RFC 6797)."""

    max_age: Seconds = 31536000
    """Seconds."""
    include_subdomains: bool = False
    """Whether it holds for every name below the site's, too."""
    preload: bool = False
    """Whether browsers may carry the site in their preload lists."""


_LOOPBACK: Final = (Network("127.0.0.0/8"), Network("::1"))


class LimitOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[limits]: how long a client may take, how much it may ask for, and how many may come. Each worker counts for
    itself."""

    handshake_seconds: MoreSeconds = 10
    """For the TLS handshake, a PROXY header before it included."""
    head_seconds: MoreSeconds = 20
    """For a whole request head, from its first byte on, however it trickles in: 408; again for the body, after the
    answer."""
    idle_seconds: MoreSeconds = 75
    """Between requests, and before the first, on an open connection; it may become a quarter more."""
    send_seconds: MoreSeconds = 60
    """How long a client is waited for in all until it is looked at whether it takes `send_bytes_per_second`."""
    send_bytes_per_second: Count = 240
    """What a client must take of a response while it is waited for, on the average of `send_seconds`."""
    file_seconds: MoreSeconds = 20
    """For one call on a file, such as to open or to read it, in a thread; then 503, or the end of the connection where
    the response has begun. Each site has 16 threads for that."""
    requests_per_connection: CountOrNone = 10_000
    """The answer to the last one says `Connection: close`; 0 for no limit."""
    key_updates_per_connection: Count = 100
    """How many TLS records without data (KeyUpdate) a client may send."""
    head_bytes: Annotated[int, Meta(ge=256, le=1 << 20, description="a number of bytes from 256 to 1048576")] = 32768
    """Of a request line and its header fields together: 431, or 414 where the line alone has more."""
    header_fields: Count = 100
    """In a request: 431."""
    target_bytes: Count = 8192
    """Of a request's target, which is the path and the query: 414."""
    connections: Count = 16384
    """Open at the same time in each worker; fewer where it may not open so many files (RLIMIT_NOFILE)."""
    client_connections: CountOrNone = 256
    """The same, from one client network; 0 for no limit."""
    client_handshakes_per_second: CountOrNone = 50
    """TLS handshakes with one client network, in each worker; those of ten seconds may come at once. 0 for no limit."""
    client_ipv4_prefix: Annotated[int, Meta(ge=1, le=32, description="a number from 1 to 32")] = 32
    """Leading bits of an IPv4 address that make up its client network."""
    client_ipv6_prefix: Annotated[int, Meta(ge=1, le=128, description="a number from 1 to 128")] = 64
    """Leading bits of an IPv6 address that make up its client network."""
    exempt_clients: tuple[Network, ...] = field(default_factory=lambda: _LOOPBACK)
    """Networks that no limit for a client network holds for, as for trusted proxies and Unix sockets; loopback by
    default."""


class SiteOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one site is served."""

    root: Path | None = None
    """The folder to serve. No byte from outside it is ever sent."""
    cert: tuple[Path, ...] = ()
    """PEM certificate chains; several of different key types (ECDSA and RSA) may stand together."""
    key: tuple[Path, ...] = ()
    """The PEM keys, unencrypted, in the order of the certificates."""
    client_ca: Path | None = None
    """PEM bundle of the authorities of client certificates: only clients that have one may connect (mutual TLS)."""
    client_names: tuple[Text, ...] = ()
    """Names that a client certificate must have one of; "*.example.org" for every name below; none for any name."""
    client_crl: Path | None = None
    """PEM file of revocation lists, one of each authority: a client certificate on them is refused."""
    index: tuple[Text, ...] = ("index.html",)
    """Names of the files that answer for a folder; the first that exists counts."""
    listing: bool = False
    """Whether a folder without index file is listed."""
    dotfiles: bool = False
    """Serve names that begin with a dot too (/.well-known/ at the top is always served)."""
    clean_urls: bool = False
    """Whether /about is answered by about.html."""
    try_files: tuple[Text, ...] = ()
    """Paths to try in this order; {path} stands for the one asked for. The last counts as what is not found."""
    fallback: SitePath | None = None
    """The file that answers, with 200, for what is not found: a single-page application's. A folder means its index
    file."""
    precompressed: tuple[Coding, ...] = ("zstd", "br", "gzip")
    """Codings of precompressed siblings (name.zst, name.br, name.gz) in the order of preference."""
    encoded: dict[Suffix, Coding] = field(default_factory=lambda: dict(ENCODED))
    """[encoded]: content codings of files that are stored in one and requested by their own names, by suffix."""
    etag: EntityTagRecipe = "strong"
    """What an entity tag is made of: mtime, ctime, size and inode; mtime and size; or a hash of the content."""
    types: dict[Suffix, MediaType] = {}
    """Media types by suffix (".gpx" = "application/gpx+xml")."""
    charset: Charset = "utf-8"
    """For text/*; empty for none."""
    error_pages: dict[ErrorStatus, SitePath] = {}
    """Files that are the bodies of errors, by status."""
    redirect: tuple[RedirectOptions, ...] = ()
    """Rules that send a client, or the look-up of a file, elsewhere; the first that matches counts."""
    header: tuple[HeaderOptions, ...] = ()
    """Rules for response header fields; all that match count, in their order."""
    cache: tuple[CacheOptions, ...] = ()
    """Rules for Cache-Control; the first that matches counts."""
    hashed_names: bool = False
    """Whether a name with a content hash (app.3f9c2b1a.js) is cached for ever (max-age=31536000, immutable)."""
    cors: CorsOptions | None = None
    """Which origins' scripts may read this site."""
    hsts: HstsOptions | None = None
    """Strict-Transport-Security: browsers use nothing but HTTPS for this site."""
    nosniff: bool = True
    """X-Content-Type-Options: nosniff."""
    server_header: bool = True
    """Whether responses say Server: ktlsd."""
    downloads: tuple[Glob, ...] = ()
    """What browsers save instead of showing (Content-Disposition: attachment)."""
    headers_file: bool = False
    """Whether the file `_headers` in the root gives header rules, as static hosts read it; it is not served then."""
    redirects_file: bool = False
    """Whether the file `_redirects` in the root gives redirects, as static hosts read it; it is not served then."""


class NamedSiteOptions(SiteOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[site]], chosen by the name that a client asks for. What it does not say, the top level says."""

    names: Annotated[tuple[HostName, ...], Meta(min_length=1)]
    """Host names: "example.org", or "*.example.org" for every name below."""


class Settings(SiteOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything. With a `root` here, this is the site for names that no [[site]] has; else the first [[site]] is."""

    listen: Annotated[tuple[Listen, ...], Meta(min_length=1)] = (Listen("localhost", 8443),)
    """Where to serve HTTPS."""
    http_listen: tuple[Listen, ...] = ()
    """Where to answer plain HTTP, only with redirects to HTTPS and ACME challenges."""
    acme_challenges: Path | None = None
    """The folder with the answers to /.well-known/acme-challenge/ on plain HTTP."""
    metrics_listen: Listen | None = None
    """Where to answer with metrics, health and a status page over plain HTTP; a port alone (":9090") means loopback."""
    https_port: Port | None = None
    """The port in redirects to HTTPS, where clients reach another than that of the first `listen`."""
    backend_listen: tuple[BackendListen, ...] = ()
    """Where to serve over plain HTTP, for proxies that end TLS: ADDR:PORT or unix:PATH."""
    backend_mode: FileMode = "0660"
    """The permissions of the Unix sockets."""
    proxy_protocol: tuple[Network, ...] = ()
    """Networks whose connections must begin with a PROXY header, of version 1 or 2."""
    trusted_proxies: tuple[Network, ...] = ()
    """Networks whose word counts on who the client is, whether it speaks TLS, and which id a request has."""
    forwarded: ForwardedFields = "x-forwarded"
    """By which fields trusted proxies say it: X-Forwarded-For and X-Forwarded-Proto, or Forwarded."""
    workers: Workers = 1
    """Processes to serve with; "auto" for as many as there are usable cores."""
    strict: bool = False
    """Refuse to start, and to take another configuration, unless every certificate can be used. Without it a site whose
    certificate cannot be used is left out, and the others are served."""
    drain_seconds: Seconds = 240
    """How long what is in flight may take after SIGTERM."""
    limits: LimitOptions = field(default_factory=LimitOptions)
    """[limits]: time-outs and limits."""
    tls_policy: TlsPolicy = "intermediate"
    """Which protocols and ciphers are offered: Mozilla's "modern" (TLS 1.3 alone) or "intermediate" (TLS 1.2 too), or
    "compatible", which adds ciphers of TLS 1.2 that kTLS never carries."""
    session_tickets: bool = True
    """Whether clients may resume a TLS session instead of making a full handshake."""
    ticket_keys: Path | None = None
    """The file with the session ticket keys, in the state folder where none is given."""
    user: Text | None = None
    """Whom to become, once sockets are bound and keys are read, when started as root; a name or a number."""
    group: Text | None = None
    """With which group; the user's own by default."""
    ktls: Mode = Mode.AUTO
    """"auto": kTLS where it can be had; "require": refuse to start, and to serve a connection, without it; "off"."""
    libssl: Text | None = None
    """The libssl to use instead of the system's."""
    log_level: LogLevel = "info"
    """"info" says which path each connection took; "warning" and "error" say less, "debug" more."""
    error_log: LogPlace | None = None
    """A file to append what log_level asks for to, instead of writing it to stderr; "stderr" is the same as none."""
    access_log: LogPlace | None = None
    """A file to append a line for each request to, or "stderr"; none without it."""
    access_log_format: AccessLogFormat = "combined"
    """"combined" is Apache's, with ktlsd's own fields after it; "json" is one object a line."""
    site: tuple[NamedSiteOptions, ...] = ()
    """Sites by name."""


def default_site(settings: Settings) -> SiteOptions:
    """The site for names that no [[site]] has: the top level where it has a root, else the first [[site]]."""
    return settings if settings.root is not None or not settings.site else settings.site[0]


ONE_OR_MORE: Final = frozenset(
    {"cert", "key", "client_names", "index", "names", "listen", "http_listen", "backend_listen"}
    | {"proxy_protocol", "trusted_proxies"}
)
"""Keys of lists that take a single text, too."""

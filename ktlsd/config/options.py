"""The options as frozen types: the one source of the configuration file's keys, their checks, the JSON Schema and the
defaults.

Strategy: msgspec reads TOML values into these types and refuses values that do not fit; settings.py combines the
sources of the values. The keys of SiteOptions may stand at the top level, for every site, and in a [[site]].
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from ktlsd.config.values import (
    ENCODED,
    AccessLogFormat,
    AcmeDirectory,
    BackendListen,
    CertificateKey,
    ChallengeKind,
    Charset,
    ClientCertificates,
    Coding,
    Count,
    CountOrNone,
    EntityTagRecipe,
    ErrorLogFormat,
    ErrorNumber,
    ErrorStatus,
    FieldName,
    FieldValue,
    FileMode,
    ForwardedFields,
    Glob,
    HostName,
    LifetimeText,
    Listen,
    LogLevel,
    LogPlace,
    MediaType,
    Mode,
    MoreSeconds,
    Network,
    Port,
    PositiveNumber,
    Realm,
    RedirectStatus,
    RedirectTarget,
    RegexText,
    Seconds,
    SitePath,
    Suffix,
    Text,
    TlsPolicy,
    TlsVersion,
    TryFile,
    UnknownNames,
    VerifyDepth,
    Workers,
)


class RedirectOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """One [[redirect]]: source, target and status. Rules are tried in order; the first match applies."""

    from_: SitePath | None = None
    """A path with `:name` segments and a `*` at its end."""
    regex: RegexText | None = None
    """Regular expression (RE2) for paths, instead of `from`; it is found anywhere in a path without `^` and `$`."""
    to: RedirectTarget
    """A path or an http(s) URL; `:name` and `:splat` stand for the parts that `from` matched, `$1` to `$9` for the
    groups of `regex`."""
    status: RedirectStatus = 301
    """Status code; 200 serves another file under the requested path, 404 serves a custom page."""
    force: bool = True
    """Apply the rule even if the requested file exists."""


class HeaderOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[header]]: response header fields for matching paths."""

    path: Glob | None = None
    """Pattern for paths; "**" for all."""
    regex: RegexText | None = None
    """Regular expression (RE2) for paths, instead of `path`."""
    set: dict[FieldName, FieldValue] = {}
    """Fields to set; they replace fields of the same name."""
    default: dict[FieldName, FieldValue] = {}
    """Fields to set if neither the server nor an earlier rule has set one of the same name."""
    remove: tuple[FieldName, ...] = ()
    """Names of fields to remove."""


class CacheOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[cache]]: how long caches keep files with a matching path: `control`, `expires` or both. The first matching
    rule applies."""

    path: Glob | None = None
    """Pattern for paths; "**" for all."""
    regex: RegexText | None = None
    """Regular expression (RE2) for paths, instead of `path`."""
    control: FieldValue | None = None
    """Value of Cache-Control, such as "public, max-age=3600"."""
    expires: LifetimeText | None = None
    """Lifetime from the response on, such as "7d" (Cache-Control: max-age), or from the file's last change on, such as
    "modified+7d" (Expires)."""


class AccessOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[access]]: the networks whose clients may see matching paths; others get 403. Every matching table must
    allow a client."""

    path: Glob
    """Pattern for paths; "**" for all."""
    allow: tuple[Network, ...] = ()
    """Networks with access; if empty, all that are not denied."""
    deny: tuple[Network, ...] = ()
    """Networks without access, also if they are in `allow`."""
    certificate: bool = False
    """Require a client certificate that the site's `client_ca` signed."""
    certificate_names: tuple[Text, ...] = ()
    """Require a client certificate with one of these names; "*.example.org" stands for every name below."""


class ErrorPageOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[error_page]]: the body of an error for matching paths. The first matching rule applies, before
    [error_pages]."""

    path: Glob
    """Pattern for requested paths; "**" for all."""
    status: ErrorNumber
    """Status of the error."""
    file: SitePath
    """File to send."""


class RateOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[rate]]: limits for the requests of each client network for matching paths (429), and send rates. Each
    worker counts separately; all matching tables apply."""

    path: Glob
    """Pattern for paths; "**" for all."""
    requests_per_second: PositiveNumber | None = None
    """Maximum requests a second from one client network; by default no limit."""
    burst: Count | None = None
    """Requests that may come at once; by default ten seconds' worth."""
    concurrent: Count | None = None
    """Maximum responses in progress for one client network; by default no limit."""
    response_bytes_per_second: Count | None = None
    """Maximum send rate of one response, in bytes a second; by default no limit."""
    connection_bytes_per_second: Count | None = None
    """Maximum send rate of all responses on one connection together, in bytes a second; by default no limit."""
    client_bytes_per_second: Count | None = None
    """Maximum send rate of all responses to one client network together, in bytes a second; by default no limit."""
    bytes_at_full_speed: Annotated[int, Meta(ge=0, description="a whole number from 0 on")] = 0
    """Bytes that are sent at full speed before each of these rates applies."""


class MaintenanceOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[maintenance]: 503 for all clients but those of some networks, while a file is there or as long as it is
    enabled."""

    file: Path | None = None
    """File whose presence switches maintenance on; looked for once a second."""
    enabled: bool = False
    """Maintenance without a file."""
    page: Path | None = None
    """File to send as the body, inside or outside the root; by default the error page of 503."""
    retry_after: Seconds = 600
    """Value of Retry-After, in seconds."""
    allow: tuple[Network, ...] = ()
    """Networks that see the site nevertheless."""


class AuthOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[auth]]: matching paths ask for a name and a password (HTTP Basic authentication). Every matching table must
    have the user."""

    path: Glob
    """Pattern for paths; "**" for all."""
    users: Path
    """File with a line `name:hash` for each user, as htpasswd and `ktlsd hash-password` write it. Changes apply
    automatically."""
    realm: Realm = "Restricted"
    """Name of the protected paths, which browsers may show."""


class SignedOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[signed]]: matching paths need a signed link, which ends. Every matching table must know its key."""

    path: Glob
    """Pattern for paths; "**" for all."""
    keys: Path
    """File with a line `id:secret` for each key. Changes apply automatically."""


class CorsOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[cors]: origins with scripts that may read this site (the Fetch standard's CORS protocol)."""

    origins: tuple[Text, ...]
    """Allowed origins, such as "https://example.org"; "*" for all."""
    path: Glob = "**"
    """Pattern for paths."""
    headers: tuple[FieldName, ...] = ()
    """Request header fields that a script may set; if empty, all that it asks for."""
    expose: tuple[FieldName, ...] = ()
    """Response header fields that a script may read."""
    max_age: Seconds = 86400
    """Lifetime of a cached preflight response, in seconds."""
    credentials: bool = False
    """Allow requests with cookies (credentials)."""


class HstsOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[hsts]: Strict-Transport-Security (RFC 6797)."""

    max_age: Seconds = 31536000
    """Lifetime of the policy, in seconds."""
    include_subdomains: bool = False
    """Apply the policy to all subdomains."""
    preload: bool = False
    """Consent to the preload lists of browsers."""


_LOOPBACK: Final = (Network("127.0.0.0/8"), Network("::1"))


class AcmeOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[acme]: certificates that ktlsd gets from a certificate authority, and renews (RFC 8555). Its use agrees to the
    authority's terms of service."""

    names: tuple[Text, ...] = ()
    """Names in the certificate of the top level; a [[site]] with `acme = true` gets one for its own names."""
    email: Text | None = None
    """Address for the authority's notices."""
    directory: AcmeDirectory = "letsencrypt"
    """Authority: "letsencrypt", "staging" (Let's Encrypt's, for tries) or the URL of an ACME directory."""
    ca: Path | None = None
    """PEM bundle of the authorities that the directory's own certificate is verified by (private ACME servers)."""
    eab_key_id: Text | None = None
    """Key identifier of an external account binding (ZeroSSL, Google)."""
    eab_key: Path | None = None
    """File with the HMAC key of the external account binding, in base64url."""
    key_type: CertificateKey = "p256"
    """Key of a certificate: ECDSA with P-256 or P-384, or RSA."""
    chain: Text | None = None
    """Common name of the issuer of the preferred chain, if the authority offers several."""
    profile: Text | None = None
    """Certificate profile of the authority, such as "shortlived"."""
    challenges: tuple[ChallengeKind, ...] = ()
    """Challenges in order of preference; by default tls-alpn-01, then http-01, or dns-01 if there is a `dns_hook`."""
    dns_hook: Path | None = None
    """Program that publishes the answers of dns-01: called with add, wait or remove, a record's name and its text."""


class LimitOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[limits]: time-outs, request sizes and connection counts. Each worker counts separately."""

    handshake_seconds: MoreSeconds = 10
    """Time-out of the TLS handshake, including a PROXY header before it, in seconds."""
    head_seconds: MoreSeconds = 20
    """Time-out of a request head, from its first to its last byte, in seconds: 408. The same time applies again to the
    request body, after the response."""
    idle_seconds: MoreSeconds = 75
    """Time-out of an idle keep-alive connection and of the first request, in seconds; enforced within 25 %."""
    send_seconds: MoreSeconds = 60
    """Averaging window of the minimum send rate, in seconds; only time spent waiting for the client counts."""
    send_bytes_per_second: Count = 240
    """Minimum send rate, in bytes a second, averaged over `send_seconds`; a slower client is disconnected."""
    file_seconds: MoreSeconds = 20
    """Time-out of one file operation, such as open or read, in seconds: 503, or the connection is cut off if the
    response has begun. Each site has 16 threads for file operations."""
    requests_per_connection: CountOrNone = 10_000
    """Maximum requests on one connection; the last response says `Connection: close`. 0 for no limit."""
    key_updates_per_connection: Count = 100
    """Maximum TLS records without data (KeyUpdate) from a client."""
    head_bytes: Annotated[int, Meta(ge=256, le=1 << 20, description="a number of bytes from 256 to 1048576")] = 32768
    """Maximum size of the request line and header fields together, in bytes: 431, or 414 if the line exceeds it."""
    header_fields: Count = 100
    """Maximum header fields in a request: 431."""
    target_bytes: Count = 8192
    """Maximum size of a request target (path and query), in bytes: 414."""
    http2_concurrent_streams: Count = 128
    """Maximum requests in progress on one HTTP/2 connection (SETTINGS_MAX_CONCURRENT_STREAMS); more are refused."""
    http2_header_block_bytes: Count = 65536
    """Maximum size of a request's compressed header fields that come in several HTTP/2 frames, in bytes; the connection
    ends."""
    http2_continuations: Count = 8
    """Maximum CONTINUATION frames after the HEADERS frame of an HTTP/2 request; the connection ends."""
    http2_resets_per_second: Count = 20
    """Maximum streams a second that one HTTP/2 client cancels, or makes the server reset; bursts of 20 seconds' worth
    are allowed. Then the connection ends."""
    http2_overhead_frames_per_second: Count = 40
    """Maximum HTTP/2 frames a second that carry nothing forward (PING, SETTINGS, PRIORITY, empty DATA, unknown types,
    small WINDOW_UPDATE) from one client; bursts of 20 seconds' worth are allowed. Then the connection ends."""
    connections: Count = 16384
    """Maximum open connections in each worker; lowered if RLIMIT_NOFILE is too low."""
    client_connections: CountOrNone = 256
    """Maximum open connections from one client network in each worker; 0 for no limit."""
    client_handshakes_per_second: CountOrNone = 50
    """Maximum TLS handshakes a second with one client network in each worker; bursts of ten seconds' worth are allowed.
    0 for no limit."""
    client_wrong_passwords_per_minute: CountOrNone = 10
    """Maximum wrong passwords a minute from one client network in each worker: 429; bursts of a minute's worth are
    allowed. 0 for no limit."""
    client_ipv4_prefix: Annotated[int, Meta(ge=1, le=32, description="a number from 1 to 32")] = 32
    """Prefix length of an IPv4 client network, in bits."""
    client_ipv6_prefix: Annotated[int, Meta(ge=1, le=128, description="a number from 1 to 128")] = 64
    """Prefix length of an IPv6 client network, in bits."""
    exempt_clients: tuple[Network, ...] = field(default_factory=lambda: _LOOPBACK)
    """Networks exempt from the limits for client networks, as are trusted proxies and Unix sockets; loopback by
    default."""


class SiteOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of one site."""

    root: Path | None = None
    """The folder to serve. No byte from outside it is ever sent."""
    cert: tuple[Path, ...] = ()
    """PEM certificate chains; one for each key type (ECDSA, RSA)."""
    key: tuple[Path, ...] = ()
    """Unencrypted PEM keys, in the order of the certificates."""
    client_ca: Path | None = None
    """PEM bundle of authorities; only clients with a certificate from one of them may connect (mutual TLS)."""
    client_certificates: ClientCertificates = "required"
    """"required": only clients with a certificate may connect; "optional": all may, and [[access]] says which paths
    need one."""
    client_verify_depth: VerifyDepth | None = None
    """Maximum number of intermediate authorities between a client certificate and `client_ca`; by default 100."""
    client_names: tuple[Text, ...] = ()
    """Accepted names in client certificates; "*.example.org" for every name below. If empty, any name."""
    client_crl: Path | None = None
    """PEM file of revocation lists, one for each authority; a client with a revoked certificate is refused."""
    index: tuple[Text, ...] = ("index.html",)
    """Names of index files; the first that exists is served for a folder."""
    listing: bool = False
    """List folders that have no index file."""
    readme: bool = False
    """Show the README.md of a listed folder below its list; needs the extra `pages`."""
    thumbnails: bool = False
    """Make small thumbnails of large pictures for listings; needs the extra `pages`."""
    zip_bytes: Annotated[int, Meta(ge=0, description="a number of bytes, or 0 for no downloads")] = 0
    """Maximum size of the files in a listed folder and its subfolders to download as zip (`?zip`), in bytes; 0 for no
    downloads."""
    tar_bytes: Annotated[int, Meta(ge=0, description="a number of bytes, or 0 for no downloads")] = 0
    """The same for downloads as tar (`?tar`)."""
    dotfiles: bool = False
    """Serve names that begin with a dot (/.well-known/ at the top is always served)."""
    hide: tuple[Glob, ...] = ()
    """Patterns for files and folders that count as absent, by every name and in listings. Letters match in either
    case."""
    clean_urls: bool = False
    """Serve about.html for /about."""
    try_files: tuple[TryFile, ...] = ()
    """Paths to try, in order; {path} stands for the requested path. If none exists, the request counts as not found; a
    last entry "=404", "=403", "=410", "=451" or "=503" answers with that status instead."""
    fallback: SitePath | None = None
    """File to serve, with status 200, for pages that are not found (single-page application); other requests get 404. A
    folder means its index file."""
    precompressed: tuple[Coding, ...] = ("zstd", "br", "gzip")
    """Codings of precompressed siblings (name.zst, name.br, name.gz), in order of preference."""
    compress: bool = False
    """Compress small text files without precompressed siblings once, in memory, by what clients accept."""
    encoded: dict[Suffix, Coding] = field(default_factory=lambda: dict(ENCODED))
    """[encoded]: content codings by suffix, for files that are stored compressed and requested by their own names."""
    etag: EntityTagRecipe = "strong"
    """Source of entity tags: mtime, ctime, size and inode; mtime and size; or a hash of the content."""
    types: dict[Suffix, MediaType] = {}
    """Media types by suffix (".gpx" = "application/gpx+xml")."""
    type_attributes: bool = False
    """Take the media type of a file from its extended attribute user.mime_type, if it has one."""
    charset: Charset = "utf-8"
    """Charset of text/*; empty for none."""
    error_pages: dict[ErrorStatus, SitePath] = {}
    """Files to send as the body of an error, by status."""
    error_page: tuple[ErrorPageOptions, ...] = ()
    """Files to send as the body of an error, by path and status; the first matching rule applies."""
    redirect: tuple[RedirectOptions, ...] = ()
    """Redirects and rewrites; the first matching rule applies."""
    header: tuple[HeaderOptions, ...] = ()
    """Rules for response header fields; all matching rules apply, in order."""
    cache: tuple[CacheOptions, ...] = ()
    """Rules for Cache-Control; the first matching rule applies."""
    access: tuple[AccessOptions, ...] = ()
    """Networks that may see paths; every matching table must allow a client."""
    rate: tuple[RateOptions, ...] = ()
    """Limits for the requests of client networks, and send rates, by path; all matching tables apply."""
    maintenance: MaintenanceOptions | None = None
    """Maintenance: 503 for all clients but those of some networks."""
    auth: tuple[AuthOptions, ...] = ()
    """Paths that ask for a password; every matching table must have the user."""
    signed: tuple[SignedOptions, ...] = ()
    """Paths that need a signed link; every matching table must know its key."""
    hashed_names: bool = False
    """Cache files with a content hash in their name (app.3f9c2b1a.js) forever (max-age=31536000, immutable)."""
    cors: CorsOptions | None = None
    """Origins with scripts that may read this site."""
    hsts: HstsOptions | None = None
    """Strict-Transport-Security: browsers use only HTTPS for this site."""
    nosniff: bool = True
    """Send X-Content-Type-Options: nosniff."""
    server_header: bool = True
    """Send Server: ktlsd."""
    downloads: tuple[Glob, ...] = ()
    """Patterns for files that browsers save instead of showing (Content-Disposition: attachment)."""
    headers_file: bool = False
    """Read header rules from the file `_headers` in the root, as static hosts do; the file itself is not served."""
    redirects_file: bool = False
    """Read redirects from the file `_redirects` in the root, as static hosts do; the file itself is not served."""


class NamedSiteOptions(SiteOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[site]], chosen by the requested host name. Keys that it leaves out are taken from the top level."""

    names: Annotated[tuple[HostName, ...], Meta(min_length=1)]
    """Host names: "example.org", or "*.example.org" for every name below."""
    acme: bool = False
    """Get a certificate for these names by ACME."""


class Settings(SiteOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All options. With a `root` here, the top level is the default site; else the first [[site]] is."""

    listen: Annotated[tuple[Listen, ...], Meta(min_length=1)] = (Listen("localhost", 8443),)
    """Addresses to serve HTTPS on."""
    http_listen: tuple[Listen, ...] = ()
    """Addresses for plain HTTP, which only redirects to HTTPS and answers ACME challenges."""
    acme_challenges: Path | None = None
    """Folder to serve at /.well-known/acme-challenge/ on plain HTTP."""
    acme: AcmeOptions | None = None
    """[acme]: certificates from an ACME server."""
    metrics_listen: Listen | None = None
    """Address for metrics, health and the status page over plain HTTP; without a host (":9090") it is loopback."""
    https_port: Port | None = None
    """Port in redirects to HTTPS, if it differs from the port of the first `listen`."""
    backend_listen: tuple[BackendListen, ...] = ()
    """Addresses to serve plain HTTP on, for TLS-terminating proxies: ADDR:PORT or unix:PATH."""
    backend_mode: FileMode = "0660"
    """Permissions of the Unix sockets, in octal."""
    proxy_protocol: tuple[Network, ...] = ()
    """Networks that must send a PROXY header (version 1 or 2) at the start of each connection."""
    trusted_proxies: tuple[Network, ...] = ()
    """Networks of proxies trusted for client address, scheme and request id."""
    forwarded: ForwardedFields = "x-forwarded"
    """Fields to read from trusted proxies: X-Forwarded-For and X-Forwarded-Proto, or Forwarded."""
    workers: Workers = 1
    """Number of worker processes; "auto" for one for each usable core."""
    unknown_names: UnknownNames = "serve"
    """Clients that ask for a name that no [[site]] has, or for none: "serve" them the default site, or "refuse" them
    (in the TLS handshake, or with 421)."""
    strict: bool = False
    """Refuse to start or reload unless every certificate can be used. By default a site with an unusable certificate is
    left out and the others are served."""
    drain_seconds: Seconds = 240
    """Time for requests in flight to finish after SIGTERM, in seconds."""
    limits: LimitOptions = field(default_factory=LimitOptions)
    """[limits]: time-outs and limits."""
    tls_policy: TlsPolicy = "intermediate"
    """TLS protocols and ciphers: Mozilla's "modern" (only TLS 1.3) or "intermediate" (also TLS 1.2), "compatible",
    which adds TLS 1.2 ciphers that kTLS does not support, or "nic": intermediate, with TLS 1.2 first on connections
    over a network interface that encrypts."""
    tls_min_version: TlsVersion | None = None
    """Oldest TLS protocol, "1.2" or "1.3"; by default the policy's."""
    tls_ciphers: Text | None = None
    """Ciphers of TLS 1.2, as OpenSSL writes lists, in order of preference; by default the policy's."""
    tls_ciphersuites: Text | None = None
    """Cipher suites of TLS 1.3, separated by colons, in order of preference; by default the policy's."""
    tls_groups: Text | None = None
    """Groups of the key exchange, as OpenSSL writes lists; by default the policy's."""
    http2: bool = True
    """Offer HTTP/2 beside HTTP/1.1 over TLS, and take it on `backend_listen`."""
    session_tickets: bool = True
    """Allow TLS session resumption with tickets."""
    ticket_keys: Path | None = None
    """File for the session ticket keys; by default in the state folder."""
    user: Text | None = None
    """User to switch to after binding and reading keys, if started as root; a name or a number."""
    group: Text | None = None
    """Group to switch to; by default the user's primary group."""
    ktls: Mode = Mode.AUTO
    """"auto": use kTLS if available; "require": refuse to start, and refuse connections, without it; "off"."""
    zerocopy_sendfile: bool = False
    """Let a network interface that encrypts read files that can never change (fs-verity, squashfs, EROFS, ISO 9660)
    from the page cache, without the kernel's copy."""
    libssl: Text | None = None
    """Path of libssl; by default the system's."""
    log_level: LogLevel = "info"
    """Minimum severity of log lines; "info" includes the TLS path of each connection."""
    error_log: LogPlace | None = None
    """File to append the log to, "stderr" or "-" (stdout); by default "stderr"."""
    error_log_format: ErrorLogFormat = "text"
    """"text": one message a line; "json": one object a line, with time, level and message."""
    access_log: LogPlace | None = None
    """File to append a line for each request to, "stderr" or "-" (stdout); by default no access log."""
    access_log_format: AccessLogFormat = "combined"
    """"combined": Apache's format with additional fields; "json": one object a line."""
    site: tuple[NamedSiteOptions, ...] = ()
    """Sites by host name."""


def default_site(settings: Settings) -> SiteOptions:
    """The site for names that no [[site]] has: the top level where it has a root, else the first [[site]]."""
    return settings if settings.root is not None or not settings.site else settings.site[0]


def index_elsewhere(site: SiteOptions) -> bool:
    """Whether an index file may be in a folder below the one that is requested."""
    return any("/" in name for name in site.index)


def by_acme(settings: Settings) -> bool:
    """Whether any certificate is got by ACME."""
    return (settings.acme is not None and bool(settings.acme.names)) or any(site.acme for site in settings.site)


ONE_OR_MORE: Final = frozenset(
    {"cert", "key", "client_names", "index", "names", "listen", "http_listen", "backend_listen"}
    | {"proxy_protocol", "trusted_proxies", "challenges"}
)
"""Keys of lists that also accept a single text."""

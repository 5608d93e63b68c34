"""The header fields that a site's options and its `_headers` file add to responses, by path: pure.

Strategy: all rules for a path come down to an Edit (names to drop, fields to put there), which is kept for the next
request; a site without rules for paths has one Edit. Later rules win: `_headers` over the options' shorthands (cache,
downloads, nosniff, hsts), [[header]] over `_headers`. Fields that frame or describe the bytes stay the server's own.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from msgspec import Struct

from ktlsd.config.file_names import fsencode
from ktlsd.config.options import CacheOptions, HeaderOptions, HstsOptions, SiteOptions
from ktlsd.http.fields import Fields, add_vary, merge, without
from ktlsd.http.lifetimes import parse_lifetime
from ktlsd.http.path_glob import Matcher, compile_glob
from ktlsd.http.regexes import Regex
from ktlsd.http.validators import http_date, parse_http_date

IMMUTABLE: Final = "public, max-age=31536000, immutable"
_MOST_EDITS: Final = 512
_FEW_RULES: Final = 8
_LONGEST_KEPT: Final = 512
"""Characters of a path whose edit is kept: clients can make up paths."""

_FRAMING: Final = "it frames the message"
_BYTES: Final = "it says which bytes are sent"
_VALIDATOR: Final = "it must change when the file does"
RESERVED: Final = {
    "connection": _FRAMING,
    "content-length": _FRAMING,
    "keep-alive": _FRAMING,
    "proxy-connection": _FRAMING,
    "te": _FRAMING,
    "trailer": _FRAMING,
    "transfer-encoding": _FRAMING,
    "upgrade": _FRAMING,
    "accept-ranges": _BYTES,
    "content-encoding": _BYTES,
    "content-range": _BYTES,
    "etag": _VALIDATOR,
    "last-modified": _VALIDATOR,
    "date": "it is the server's clock",
    "location": "redirects say it",
    "basic-auth": "it has passwords, which must not be sent: [[auth]] asks for them",
}
"""Fields that only the server can say rightly, by lower-case name, and why no rule can have them."""

# Vary can be added to, but without its own members a shared cache would give one client's coding to another.
_NOT_REMOVABLE: Final = RESERVED | {"vary": "caches need it"}
# Fields of a file's content: an error's text or an empty redirect is something else.
_OF_CONTENT: Final = frozenset({"content-disposition", "content-language", "content-type"})
_HSTS: Final = "strict-transport-security"
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[!-~](?:[\t -~]*[!-~])?")

_NOT_PLAIN: Final = re.compile(r"[^ !#$&-\[\]-~]")
_ATTR_CHAR: Final = "!#$&+-.^_`|~"

# The lengths are what hash functions give and bundlers cut to; a short one by itself is too weak a sign. Documents are
# no output of a bundler.
_HASHED: Final = re.compile(
    r"(?:^(?=[0-9a-f]{16})|[.-])"
    r"(?:(?P<hex>[0-9a-f]{8}|[0-9a-f]{10}|[0-9a-f]{12}|[0-9a-f]{16}|[0-9a-f]{20}|(?:[0-9a-f]{8}){4,5}|[0-9a-f]{64})"
    r"|(?P<base64>[A-Za-z0-9_-]{8}))"
    r"(?:\.(?:bundle|chunk|min|module|worker))?"
    r"\.(?:(?P<code>js|mjs|cjs|css)|wasm|woff2?|ttf|otf|png|jpe?g|gif|svg|webp|avif)(?:\.map)?\Z"
)
# A word with a number, but for what is too long to be one.
_WORD_OR_NUMBER: Final = re.compile(r"[a-z]+|[0-9]+|[a-z]+[0-9]+(?<!.{16})")
# Words in a name, as its capitals and digits part them; random characters have more of them than names do.
_RUNS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_BASE64_RUNS: Final = 4
_BASE32_RUNS: Final = 3


class _Kind(enum.Enum):
    """The kind of body of a status."""

    # Enum's own is a function in Python, and these are parts of cache keys.
    __hash__ = object.__hash__

    CONTENT = enum.auto()
    UNCHANGED = enum.auto()
    OTHER = enum.auto()
    ERROR = enum.auto()


_FIRST_ERROR: Final = 400
# RFC 9111, RFC 9213 and its namesakes of single vendors; Surrogate-Control (Varnish, Fastly), X-Accel-Expires (nginx).
_OF_CACHES: Final = frozenset(
    {
        "cache-control",
        "expires",
        "cdn-cache-control",
        "cloudflare-cdn-cache-control",
        "netlify-cdn-cache-control",
        "vercel-cdn-cache-control",
        "surrogate-control",
        "x-accel-expires",
    }
)
# Stands for a date until Last-Modified is known; no operator's value has a control character.
_AFTER_CHANGE: Final = "\0"
_LIFETIME: Final = re.compile("(?:s-maxage|max-age|no-store|no-cache)[^,]*", re.IGNORECASE)
_NO_DATES: Final = frozenset({"0", "-1"})
_LIFETIMES: Final = frozenset({"max-age", "s-maxage"})
_OF_FILES: Final = (_Kind.CONTENT, _Kind.UNCHANGED)
_KINDS: Final = {200: _Kind.CONTENT, 206: _Kind.CONTENT, 304: _Kind.UNCHANGED}


class Origin(enum.Enum):
    """How the response's file was found; the value has the fields that are set by rules for the file, not by rules for
    the requested path."""

    __hash__ = object.__hash__

    OWN = frozenset[str]()
    """The path names it."""
    REWRITE = _OF_CACHES
    """A redirect rule with status 200 or 404 names it. Rules like `/assets/* /index.html 200` send it for any path."""
    FALLBACK = _OF_CACHES | _OF_CONTENT
    """It is sent instead of a missing file."""


class HeaderRule(Struct, frozen=True):
    """Fields for the paths that match: `remove` names the removed fields, `set` replaces fields of the same names."""

    matches: Matcher
    set: Fields = ()
    remove: tuple[str, ...] = ()
    fill: Callable[[str], Fields] | None = None
    """`set` with its placeholders filled in for a path that matches; None where it has no placeholders."""
    default: Fields = ()
    """Fields that take the place of none."""

    def fields(self, path: str) -> Fields:
        """The edit of a response for a matching path."""
        return self.set if self.fill is None else self.fill(path)


_Matched = tuple[Fields | None, ...]
"""What is always set, and for each rule the fields that it sets for a path; None if it does not match."""


class _Edit(Struct, frozen=True):
    drop: frozenset[str]
    """Lower-case names, of what is put there too."""
    put: Fields
    vary: str | None
    defaults: frozenset[str]
    """Lower-case names of what is put only if the response has none of the name."""
    kept_seconds: int | None
    """Expires is so long after Last-Modified; None for no such Expires."""


def is_field_value(text: str) -> bool:
    """Whether a text can be the value of a field that a rule sets: printable ASCII without blanks at its ends."""
    return _VALUE.fullmatch(text) is not None


def refuse_set(name: str, value: str) -> str | None:
    """The reason why a rule cannot set this field; None if it can."""
    if not _NAME.fullmatch(name):
        return f"{name!r} is no field name"
    if reason := RESERVED.get(name.lower()):
        return f"{name} is the server's own: {reason}"
    if not is_field_value(value):
        return f"the value of {name} must be printable ASCII without blanks at its ends"
    return None


def refuse_remove(name: str) -> str | None:
    """The reason why a rule cannot remove this field; None if it can."""
    if not _NAME.fullmatch(name):
        return f"{name!r} is no field name"
    if reason := _NOT_REMOVABLE.get(name.lower()):
        return f"{name} is the server's own: {reason}"
    return None


def check(site: SiteOptions) -> None:
    """Raises ValueError, with a text for the operator, for options that HeaderRules cannot follow."""
    for rule in site.header:
        refusals = [refuse_set(name, value) for name, value in (*rule.set.items(), *rule.default.items())]
        refusals += map(refuse_remove, rule.remove)
        if refusal := next(filter(None, refusals), None):
            raise ValueError(f"header for {rule.path or rule.regex}: {refusal}")
        matcher_of(rule)
    for cache in site.cache:
        _of_cache(cache)
        matcher_of(cache)


def matcher_of(rule: HeaderOptions | CacheOptions) -> Matcher:
    """The matcher of a rule's paths. Raises ValueError, with a text for the operator."""
    if rule.path is not None and rule.regex is not None:
        raise ValueError("there are 'path' and 'regex': leave one out")
    if rule.path is not None:
        return compile_glob(rule.path)
    if rule.regex is None:
        raise ValueError("'path' is missing, or 'regex'")
    return Regex(rule.regex).matches


def _of_cache(rule: CacheOptions) -> Fields:
    """The fields of a [[cache]]. Raises ValueError, with a text for the operator."""
    if rule.control is None and rule.expires is None:
        raise ValueError(f"cache for {rule.path or rule.regex}: 'control' is missing, or 'expires'")
    if rule.control is not None and (refusal := refuse_set("Cache-Control", rule.control)):
        raise ValueError(f"cache for {rule.path or rule.regex}: {refusal}")
    controls = [rule.control] if rule.control else []
    fields: Fields = ()
    if rule.expires is not None:
        if (lifetime := _LIFETIME.search(rule.control or "")) is not None:
            raise ValueError(
                f"cache for {rule.path or rule.regex}: control has {lifetime[0]}, and there is expires: leave one out"
            )
        seconds, after_change = parse_lifetime(rule.expires)
        if after_change:
            fields = (("Expires", f"{_AFTER_CHANGE}{seconds}"),)
        else:
            controls.append(f"max-age={seconds}")
    return ((("Cache-Control", ", ".join(controls)),) if controls else ()) + fields


class HeaderRules:
    """The header fields that one site adds to its responses."""

    def __init__(self, site: SiteOptions, extra: Sequence[HeaderRule] = ()) -> None:
        """`extra` are the rules of a `_headers` file. Raises ValueError as check does."""
        check(site)
        nosniff = (("X-Content-Type-Options", "nosniff"),) if site.nosniff else ()
        hsts = (("Strict-Transport-Security", _hsts(site.hsts)),) if site.hsts else ()
        self._always: Fields = nosniff + hsts
        self._cache = [(matcher_of(rule), _of_cache(rule)) for rule in site.cache]
        self._hashed_names = site.hashed_names
        self._downloads = [compile_glob(pattern) for pattern in site.downloads]
        self._any_by_kind = bool(self._cache or self._hashed_names or self._downloads)
        own = (
            HeaderRule(matcher_of(rule), tuple(rule.set.items()), rule.remove, default=tuple(rule.default.items()))
            for rule in site.header
        )
        self._rules = (*extra, *own)
        by_path = self._any_by_kind or self._rules
        self._constants = None if by_path else (nosniff, nosniff + hsts)
        # To compare a path with few rules takes no longer than to keep what came out.
        few = len(self._rules) <= _FEW_RULES and not self._any_by_kind
        self._edit = self._make_edit if few else lru_cache(maxsize=_MOST_EDITS)(self._make_edit)
        self._combined = lru_cache(maxsize=_MOST_EDITS)(self._combine)

    @property
    def by_path(self) -> bool:
        """Whether they are not the same for all paths."""
        return self._constants is None

    def apply(
        self,
        path: str,
        status: int,
        fields: Fields,
        secure: bool,
        file: str | None = None,
        origin: Origin = Origin.OWN,
    ) -> Fields:
        """The fields of a response to a request for `path` (decoded), from those that the server gives it.

        `secure` says whether the response goes over TLS; `file` is the path of the file that answers where it is not
        the one that was asked for (an index file): rules for what is in a file match that one. `origin` says how it
        was found.
        """
        if self._constants is not None:
            return fields + self._constants[secure]
        kind = _KINDS.get(status) or (_Kind.ERROR if status >= _FIRST_ERROR else _Kind.OTHER)
        make = self._edit if len(path) <= _LONGEST_KEPT else self._make_edit
        edit = make(path, file or path, kind, origin, secure)
        changed = None if edit.kept_seconds is None else dict(fields).get("Last-Modified")
        if edit.defaults and (given := edit.defaults.intersection(name.lower() for name, _ in fields)):
            fields = without(fields, edit.drop - given) + without(edit.put, given)
        elif edit.drop.isdisjoint([name.lower() for name, _ in fields]):
            fields += edit.put
        else:
            fields = without(fields, edit.drop) + edit.put
        if edit.kept_seconds is not None and (second := parse_http_date(changed or "")) is not None:
            fields += (("Expires", http_date(second + edit.kept_seconds)),)
        return fields if edit.vary is None else add_vary(fields, edit.vary)

    def _make_edit(self, path: str, file: str, kind: _Kind, origin: Origin, secure: bool) -> _Edit:
        for_file = kind in _OF_FILES and bool(origin.value)
        always = self._always + self._by_kind(file, kind) if self._any_by_kind else self._always
        of_path = always, *[rule.fields(path) if rule.matches(path) else None for rule in self._rules]
        of_file: _Matched = ()
        if for_file:
            of_file = always, *[rule.fields(file) if rule.matches(file) else None for rule in self._rules]
        # Rules with placeholders set parts of the path.
        combine = self._combined if len(path) <= _LONGEST_KEPT else self._combine
        return combine(of_path, of_file, kind, origin, secure)

    def _combine(self, paths: _Matched, files: _Matched, kind: _Kind, origin: Origin, secure: bool) -> _Edit:
        """The edit of what all rules set, in their order, for the path of a request and for the file that answers, if
        that has a say; many paths have the same."""
        # A client must not learn HSTS from what anyone on the way could have written (RFC 6797 section 7.2).
        kept = frozenset[str]() if secure else frozenset({_HSTS})
        if kind is not _Kind.CONTENT:
            kept |= _OF_CONTENT
        if kind is _Kind.ERROR:
            # Rules for a file, "immutable" above all, are wrong for the response that there is none.
            kept |= _OF_CACHES
        # Neither is it for a redirect.
        is_file = kind in _OF_FILES
        by_file = origin.value if is_file else _OF_CACHES
        drop: set[str] = set()
        put: Fields = ()
        defaults: set[str] = set()
        for of_path, of_file, rule in zip(paths, files or len(paths) * (None,), (None, *self._rules), strict=True):
            remove, default = ((), ()) if rule is None else (rule.remove, rule.default)
            news: Fields = ()
            removed: set[str] = set()
            if of_path is not None:
                # A rule may always forbid caching: private content stays private, regardless of the file served.
                news += tuple(
                    (name, value)
                    for name, value in of_path
                    if name.lower() not in by_file or (of_file is None and forbids_caching(name, value))
                )
                removed |= {name.lower() for name in remove} - (by_file if is_file else kept)
            if of_file is not None:
                news += tuple(field for field in of_file if field[0].lower() in by_file)
                removed |= {name.lower() for name in remove} & by_file
            removed -= kept
            news = without(news, kept)
            put = merge(without(put, removed), news)
            drop |= removed
            defaults -= {name.lower() for name, _ in news}
            for name, value in without(default, kept.union(name.lower() for name, _ in put)):
                if (of_file if name.lower() in by_file else of_path) is not None:
                    put += ((name, value),)
                    defaults.add(name.lower())
        vary, expires = dict(put).get("Vary"), dict(put).get("Expires", "")
        kept_seconds = None
        put = without(put, {"vary"})
        if expires.startswith(_AFTER_CHANGE):
            kept_seconds = int(expires.removeprefix(_AFTER_CHANGE))
            put = without(put, {"expires"})
        dropped = frozenset(drop.union(name.lower() for name, _ in put))
        return _Edit(dropped, put, vary, frozenset(defaults - drop), kept_seconds)

    def _by_kind(self, path: str, kind: _Kind) -> Fields:
        """Fields that depend on the existence of the file."""
        fields: Fields = ()
        name = path.rpartition("/")[2]
        if kind in (_Kind.CONTENT, _Kind.UNCHANGED):
            of_rule = next((fields for matches, fields in self._cache if matches(path)), None)
            if of_rule is None and self._hashed_names and has_content_hash(name):
                of_rule = (("Cache-Control", IMMUTABLE),)
            fields += of_rule or ()
        # A listing has no name, and an archive of a folder one of its own.
        if kind is _Kind.CONTENT and name and any(matches(path) for matches in self._downloads):
            fields += (("Content-Disposition", attachment(name)),)
        return fields


def forbids_caching(name: str, value: str) -> bool:
    """Whether a field for caches only says that they must not answer with what they kept, or not without asking."""
    if name.lower() in ("expires", "x-accel-expires"):
        return value in _NO_DATES
    members = [member.strip().lower() for member in value.split(",")]
    if "no-store" in members or "no-cache" in members:
        return name.lower() in _OF_CACHES
    lifetimes = [age.strip('"') for key, _, age in (member.partition("=") for member in members) if key in _LIFETIMES]
    stale = any(member.startswith("stale-") for member in members)
    return name.lower() in _OF_CACHES and bool(lifetimes) and set(lifetimes) == {"0"} and not stale


def _hsts(options: HstsOptions) -> str:
    """RFC 6797 section 6.1; preload is what browsers' lists ask for."""
    directives = [f"max-age={options.max_age}"]
    if options.include_subdomains:
        directives.append("includeSubDomains")
    if options.preload:
        directives.append("preload")
    return "; ".join(directives)


def attachment(name: str) -> str:
    """A Content-Disposition to save a file as `name` (RFC 6266, RFC 8187 section 3.2).

    A byte that is no UTF-8 becomes U+FFFD.
    """
    # A percent sign or backslash in the quoted form is not read alike by all (RFC 6266 appendix D).
    plain = _NOT_PLAIN.sub("_", name)
    value = f'attachment; filename="{plain}"'
    if plain != name:
        text = fsencode(name).decode("utf-8", "replace")
        value += f"; filename*=UTF-8''{quote(text, safe=_ATTR_CHAR)}"
    return value


def has_content_hash(name: str) -> bool:
    """Whether a file name carries a hash of the content, as bundlers write it, so that it never changes.

    What could be words or a date does not count, and by chance some hashes could: of those with 8 characters about 6%
    in hexadecimal, 20% in base64url (Vite) and 30% in base32 (esbuild).
    """
    match = _HASHED.search(name)
    if match is None:
        return False
    if text := match["hex"]:
        return not _WORD_OR_NUMBER.fullmatch(text)
    text = match["base64"]
    runs = len(_RUNS.findall(text))
    if text.isupper() and text.isalnum():
        return runs >= _BASE32_RUNS and match["code"] is not None
    return runs >= _BASE64_RUNS and text not in (text.lower(), text.upper())

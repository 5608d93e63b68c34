"""The CORS protocol of the Fetch standard (section 3.3), for what a static site serves: pure.

Strategy: an origin is compared, never parsed: it is in the list as a browser writes it, or it is not. Every response
that depends on the origin says Vary, whether or not the origin is allowed, so that no cache gives one origin's answer
to another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from ktlsd.config.options import CorsOptions
from ktlsd.http.fields import Fields, add_vary
from ktlsd.http.path_glob import compile_glob
from ktlsd.http.request_fields import members

ALLOWED_METHODS: Final = "GET, HEAD"
MOST_ASKED_FIELDS: Final = 64
"""Names in an Access-Control-Request-Headers that are repeated to the client."""

_ANY: Final = "*"
# A serialized origin (RFC 6454 section 6.2) is in lower case; "null" stands for all that have none.
_ORIGIN: Final = re.compile(r"null|[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_DEFAULT_PORT: Final = re.compile(r"http://.*:80|https://.*:443")
_FIELD_NAMES: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def check(options: CorsOptions) -> None:
    """Raises ValueError, with a text for the operator, for options that browsers would not follow."""
    if _ANY in options.origins and options.credentials:
        raise ValueError('credentials are for named origins, not for "*"')
    for origin in options.origins:
        if origin != _ANY and (not _ORIGIN.fullmatch(origin) or _DEFAULT_PORT.fullmatch(origin)):
            raise ValueError(
                f"{origin!r} is no origin as browsers send it: "
                "scheme://host in lower case, a port only when it is not the scheme's own, nothing after it"
            )


class Cors:
    """One site's rules for scripts of other origins."""

    def __init__(self, options: CorsOptions) -> None:
        """Raises ValueError as check does."""
        check(options)
        self._matches = compile_glob(options.path)
        self._origins = frozenset(options.origins)
        self._any = _ANY in options.origins
        self._headers = ", ".join(options.headers)
        self._max_age = str(options.max_age)
        self._credentials: Fields = (("Access-Control-Allow-Credentials", "true"),) if options.credentials else ()
        expose = ", ".join(options.expose)
        self._expose: Fields = (("Access-Control-Expose-Headers", expose),) if expose else ()

    def fields(self, path: str, origin: str | None) -> Fields:
        """The fields to add to the response for `path` (decoded); `origin` is the request's Origin. Merge its Vary."""
        if not self._matches(path):
            return ()
        allowed = self._allowed(origin)
        return self._vary(allowed + self._expose if allowed else ())

    def preflight(self, path: str, request_fields: Mapping[str, str]) -> Fields | None:
        """The answer's fields for an OPTIONS that is a preflight for `path`; None for any other.

        `request_fields` has lower-case names. A browser refuses fields without Access-Control-Allow-Origin.
        """
        origin = request_fields.get("origin")
        if origin is None or "access-control-request-method" not in request_fields or not self._matches(path):
            return None
        allowed = self._allowed(origin)
        if not allowed:
            return self._vary(())
        fields = (*allowed, ("Access-Control-Allow-Methods", ALLOWED_METHODS))
        asked = _field_names(request_fields.get("access-control-request-headers", ""))
        if headers := self._headers or asked:
            fields += (("Access-Control-Allow-Headers", headers),)
        fields += (("Access-Control-Max-Age", self._max_age),)
        return self._vary(fields if self._headers else add_vary(fields, "Access-Control-Request-Headers"))

    def _allowed(self, origin: str | None) -> Fields:
        if self._any:
            return (("Access-Control-Allow-Origin", _ANY),)
        if origin is None or origin not in self._origins:
            return ()
        return (("Access-Control-Allow-Origin", origin), *self._credentials)

    def _vary(self, fields: Fields) -> Fields:
        return fields if self._any else add_vary(fields, "Origin")


def _field_names(value: str) -> str:
    """A list of field names as it may be repeated; empty when it is none, or longer than scripts need."""
    names = members(value)
    if len(names) > MOST_ASKED_FIELDS or not all(map(_FIELD_NAMES.fullmatch, names)):
        return ""
    return ", ".join(names)

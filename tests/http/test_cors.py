"""The CORS protocol (the Fetch standard, section 3.3)."""

from __future__ import annotations

from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.config.options import CorsOptions
from ktlsd.http.cors import MOST_ASKED_FIELDS, Cors, check
from ktlsd.http.fields import Fields

ORIGIN = "https://example.org"
VARY = ("Vary", "Origin")
ALLOW = ("Access-Control-Allow-Origin", ORIGIN)
ALLOW_ALL = ("Access-Control-Allow-Origin", "*")
METHODS = ("Access-Control-Allow-Methods", "GET, HEAD")
MAX_AGE = ("Access-Control-Max-Age", "86400")
CREDENTIALS = ("Access-Control-Allow-Credentials", "true")


def cors(*origins: str, **options: Any) -> Cors:
    return Cors(CorsOptions(origins=origins, **options))


@pytest.mark.parametrize(
    ("policy", "path", "origin", "fields"),
    [
        (cors(ORIGIN), "/a", ORIGIN, (ALLOW, VARY)),
        (cors(ORIGIN), "/a", None, (VARY,)),
        (cors(ORIGIN), "/a", "https://evil.example", (VARY,)),
        (cors(ORIGIN), "/a", "https://example.org.evil.example", (VARY,)),
        (cors(ORIGIN), "/a", "HTTPS://EXAMPLE.ORG", (VARY,)),
        (cors(ORIGIN), "/a", "http://example.org", (VARY,)),
        (cors(ORIGIN), "/a", "null", (VARY,)),
        (cors(ORIGIN), "/a", "*", (VARY,)),
        (cors("null"), "/a", "null", (("Access-Control-Allow-Origin", "null"), VARY)),
        (cors("http://a:8080", ORIGIN), "/a", ORIGIN, (ALLOW, VARY)),
        (cors(ORIGIN, credentials=True), "/a", ORIGIN, (ALLOW, CREDENTIALS, VARY)),
        (cors(ORIGIN, credentials=True), "/a", "null", (VARY,)),
        (
            cors(ORIGIN, expose=("ETag", "Content-Range")),
            "/a",
            ORIGIN,
            (ALLOW, ("Access-Control-Expose-Headers", "ETag, Content-Range"), VARY),
        ),
        (cors(ORIGIN, expose=("ETag",)), "/a", None, (VARY,)),
        (cors("*"), "/a", ORIGIN, (ALLOW_ALL,)),
        (cors("*"), "/a", "null", (ALLOW_ALL,)),
        (cors("*"), "/a", None, (ALLOW_ALL,)),
        (cors("*", ORIGIN, expose=("X",)), "/a", ORIGIN, (ALLOW_ALL, ("Access-Control-Expose-Headers", "X"))),
        (cors("*", path="*.json"), "/b/a.json", ORIGIN, (ALLOW_ALL,)),
        (cors("*", path="*.json"), "/a", ORIGIN, ()),
        (cors(ORIGIN, path="/api/**"), "/a", ORIGIN, ()),
    ],
)
def test_fields_of_responses(policy: Cors, path: str, origin: str | None, fields: Fields) -> None:
    assert policy.fields(path, origin) == fields


def asked(origin: str | None = ORIGIN, method: str | None = "GET", headers: str | None = None) -> dict[str, str]:
    fields = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": headers,
    }
    return {name: value for name, value in fields.items() if value is not None}


def headers(value: str) -> tuple[str, str]:
    return ("Access-Control-Allow-Headers", value)


VARY_ECHO = ("Vary", "Access-Control-Request-Headers, Origin")
VARY_ECHO_ALL = ("Vary", "Access-Control-Request-Headers")


@pytest.mark.parametrize(
    ("policy", "request_fields", "fields"),
    [
        (cors(ORIGIN), asked(), (ALLOW, METHODS, MAX_AGE, VARY_ECHO)),
        (cors("*"), asked(), (ALLOW_ALL, METHODS, MAX_AGE, VARY_ECHO_ALL)),
        (cors("*"), asked(headers="x-a,x-b"), (ALLOW_ALL, METHODS, headers("x-a, x-b"), MAX_AGE, VARY_ECHO_ALL)),
        (cors("*"), asked(headers=", x-a,,x-b,"), (ALLOW_ALL, METHODS, headers("x-a, x-b"), MAX_AGE, VARY_ECHO_ALL)),
        (cors("*"), asked(headers="x-a, x b"), (ALLOW_ALL, METHODS, MAX_AGE, VARY_ECHO_ALL)),
        (cors("*"), asked(headers=""), (ALLOW_ALL, METHODS, MAX_AGE, VARY_ECHO_ALL)),
        (
            cors("*", headers=("X-A", "X-B")),
            asked(headers="x-c"),
            (ALLOW_ALL, METHODS, headers("X-A, X-B"), MAX_AGE),
        ),
        (cors(ORIGIN, headers=("X-A",)), asked(), (ALLOW, METHODS, headers("X-A"), MAX_AGE, VARY)),
        (cors(ORIGIN, credentials=True), asked(), (ALLOW, CREDENTIALS, METHODS, MAX_AGE, VARY_ECHO)),
        (cors(ORIGIN, expose=("X",)), asked(method="PUT"), (ALLOW, METHODS, MAX_AGE, VARY_ECHO)),
        (cors("*", max_age=0), asked(), (ALLOW_ALL, METHODS, ("Access-Control-Max-Age", "0"), VARY_ECHO_ALL)),
        (cors(ORIGIN), asked(origin="null"), (VARY,)),
        (cors(ORIGIN), asked(origin=None), None),
        (cors(ORIGIN), asked(method=None), None),
        (cors(ORIGIN, path="/b"), asked(), None),
    ],
)
def test_preflights(policy: Cors, request_fields: dict[str, str], fields: Fields | None) -> None:
    assert policy.preflight("/a", request_fields) == fields


@pytest.mark.parametrize(("count", "allowed"), [(MOST_ASKED_FIELDS, True), (MOST_ASKED_FIELDS + 1, False)])
def test_asked_fields_have_a_bound(count: int, allowed: bool) -> None:
    fields = cors("*").preflight("/a", asked(headers=",".join(["x-a"] * count)))
    assert fields is not None
    assert ("Access-Control-Allow-Headers" in dict(fields)) is allowed


REFUSALS = r"^credentials are for named origins|^'.*' is no origin as browsers send it"


@pytest.mark.parametrize(
    "options",
    [
        {"origins": ("*",), "credentials": True},
        {"origins": (ORIGIN, "*"), "credentials": True},
        {"origins": ("https://example.org/",)},
        {"origins": ("https://Example.org",)},
        {"origins": ("https://example.org:443",)},
        {"origins": ("http://example.org:80",)},
        {"origins": ("https://*.example.org",)},
        {"origins": ("example.org",)},
        {"origins": ("https://",)},
        {"origins": ("https://a b",)},
        {"origins": ("https://example.org\n",)},
        {"origins": ("https://é.example",)},
    ],
)
def test_options_that_browsers_would_not_follow(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=REFUSALS) as refusal:
        check(CorsOptions(**options))
    assert str(refusal.value).isprintable()
    with pytest.raises(ValueError, match=REFUSALS):
        Cors(CorsOptions(**options))


@pytest.mark.parametrize(
    "origin", ["null", "http://localhost:5173", "https://[::1]:8443", "http://example.org:443", "app://a_b", "*"]
)
def test_origins_that_browsers_send(origin: str) -> None:
    check(CorsOptions(origins=(origin,)))


LATIN_1 = st.text(st.characters(max_codepoint=255))


@given(
    st.sampled_from([cors(ORIGIN, "null", credentials=True), cors("*"), cors("*", headers=("X",), expose=("Y",))]),
    LATIN_1 | st.sampled_from([ORIGIN, "null", "*"]),
    LATIN_1 | st.lists(st.sampled_from(["x", "\r\n", ",", " ", "é", "\0", "range"])).map("".join),
)
def test_nothing_that_a_client_sent_breaks_out(policy: Cors, origin: str, names: str) -> None:
    preflight = policy.preflight("/a", asked(origin, "GET", names))
    assert preflight is not None
    for fields in (policy.fields("/a", origin), preflight):
        h11.Response(status_code=204, headers=list(fields))
        assert dict(fields).get("Access-Control-Allow-Origin") in (None, "*", ORIGIN, "null")

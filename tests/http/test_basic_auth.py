"""The Authorization field: what is read, and what is not."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.basic_auth import LONGEST_FIELD, Credentials, challenge, credentials, is_preflight


def basic(pair: bytes) -> bytes:
    return b"Basic " + base64.b64encode(pair)


@pytest.mark.parametrize(
    ("field", "read"),
    [
        (basic(b"bob:secret"), Credentials(b"bob", b"secret")),
        (b"bAsIc  " + base64.b64encode(b"bob:se:cret"), Credentials(b"bob", b"se:cret")),
        (basic("Zoë:pässword".encode()), Credentials("Zoë".encode(), "pässword".encode())),
        (basic(b":"), Credentials(b"", b"")),
        (None, None),
        (b"", None),
        (b"Basic", None),
        (b"Basic ", None),
        (b"Bearer Ym9iOnNlY3JldA==", None),
        (basic(b"bob"), None),
        (basic(b"bob:\0"), None),
        (basic(b"bo\rb:x"), None),
        (b"Basic Ym9iOnNlY3JldA", None),
        (b"Basic Ym9i OnNlY3JldA==", None),
        (basic(b"bob:secret") + b", " + basic(b"eve:x"), None),
        (basic(b"bob:" + b"x" * LONGEST_FIELD), None),
    ],
)
def test_fields(field: bytes | None, read: Credentials | None) -> None:
    assert credentials(field) == read


@given(st.binary(max_size=200))
def test_any_bytes(field: bytes) -> None:
    """A field that is read has what was read."""
    for sent in (field, b"Basic " + field, basic(field)):
        found = credentials(sent)
        if found is not None:
            assert base64.b64decode(sent.split(b" ")[-1]) == found.user + b":" + found.password
            assert b":" not in found.user


def test_challenge() -> None:
    assert challenge("a b") == ("WWW-Authenticate", 'Basic realm="a b", charset="UTF-8"')


def test_preflights() -> None:
    fields = {b"origin": b"https://a.example", b"access-control-request-method": b"GET"}
    assert is_preflight(b"OPTIONS", fields)
    assert not is_preflight(b"GET", fields)
    assert not is_preflight(b"OPTIONS", {b"origin": b"https://a.example"})

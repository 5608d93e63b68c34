"""Signed links: what a signature covers, and what no query gets past it."""

from __future__ import annotations

import hashlib
import hmac
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.signed_links import SignedLink, Unsigned, read_link, sign, without_signatures

KEYS = {b"k1": b"0123456789abcdef" * 2, b"k2": b"fedcba9876543210" * 2}


def signed(path: bytes, query: bytes, key: bytes = b"k1") -> bytes:
    """The query with its signature, as any other program makes it."""
    return query + b"&signature=" + hmac.new(KEYS[key], path + b"?" + query, hashlib.sha256).hexdigest().encode()


def read(path: bytes, query: bytes) -> SignedLink:
    return read_link(path, query, KEYS.get)


@pytest.mark.parametrize(
    ("path", "covers", "query"),
    [
        (b"/a.mp4", b"/a.mp4", b"expires=100&key=k1"),
        (b"/a b/\xc3\xa9", b"/a b/\xc3\xa9", b"key=k1&expires=100"),
        (b"/v/1/a.ts", b"/v/", b"expires=100&prefix=/v/&key=k1"),
        (b"/v/", b"/v/", b"expires=100&prefix=%2Fv%2f&key=k1"),
        (b"/a", b"/a", b"download&expires=100&key=k1&x=&"),
    ],
)
def test_what_a_signature_covers(path: bytes, covers: bytes, query: bytes) -> None:
    right = signed(covers, query)
    link = read(path, right)
    assert (link.starts, link.ends) == (0, 100)
    assert link.is_for(ip_address("192.0.2.1"))
    assert read(path, right + b"&utm=1&expires=999&prefix=/") == read(path, right)
    assert read(path, right[:-64] + right[-64:].upper())
    for other in (path + b"x", b"/v", b"/", path.upper()):
        if other != path and not (b"prefix" in query and other.startswith(covers)):
            with pytest.raises(Unsigned):
                read(other, right)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (b"", "no signature"),
        (b"expires=100&key=k1", "no signature"),
        (b"signature=" + b"0" * 64, "no signature"),
        (signed(b"/a", b"expires=100&key=k1")[:-1], "a malformed signature"),
        (signed(b"/a", b"expires=100&key=k1") + b"0", "a malformed signature"),
        (b"expires=100&key=k1&signature=", "a malformed signature"),
        (b"expires=100&key=k3&signature=" + b"0" * 64, "unknown key"),
        (b"expires=100&signature=" + b"0" * 64, "unknown key"),
        (b"expires=100&key=k1&signature=" + b"0" * 64, "a wrong signature"),
        (signed(b"/a", b"expires=100&key=k1", b"k2"), "a wrong signature"),
        (b"x&" + signed(b"/a", b"expires=100&key=k1"), "a wrong signature"),
        (signed(b"/a", b"expires=100&key=k1").replace(b"100", b"900"), "a wrong signature"),
        (signed(b"/a", b"expires=1&expires=100&key=k1"), "expires twice"),
        (signed(b"/", b"expires=100&key=k1&prefix=/b/"), "a wrong signature"),
        (signed(b"/b/", b"expires=100&key=k1&prefix=/b/"), "another folder"),
        (signed(b"/", b"expires=100&key=k1&prefix="), "a wrong signature"),
        (signed(b"", b"expires=100&key=k1&prefix="), "another folder"),
        (signed(b"/a", b"expires=100&key=k1&prefix=/a"), "another folder"),
        (signed(b"/a", b"key=k1"), "without a valid time"),
        (signed(b"/a", b"expires=-1&key=k1"), "without a valid time"),
        (signed(b"/a", b"expires=999999999999&key=k1"), "without a valid time"),
        (signed(b"/a", b"expires=100&starts=x&key=k1"), "without a valid time"),
        (signed(b"/a", b"expires=100&client=all&key=k1"), "a malformed client"),
        (signed(b"/a", b"expires=100&client=%ff&key=k1"), "a malformed client"),
    ],
)
def test_what_is_not_signed(query: bytes, reason: str) -> None:
    with pytest.raises(Unsigned, match=reason):
        read(b"/a", query)


@pytest.mark.parametrize(
    ("path", "query", "other"),
    [
        (b"/a?b", b"x=1&expires=100&key=k1", b"/a"),
        (b"/v/?prefix=%2Fv%2F&x", b"y&expires=100&key=k1", b"/v/"),
    ],
)
def test_a_signature_is_for_one_path(path: bytes, query: bytes, other: bytes) -> None:
    """Nobody may take a question mark in a path for the beginning of the query."""
    whole = path + b"?" + signed(path, query)
    assert read(path, whole[len(path) + 1 :])
    with pytest.raises(Unsigned, match="question mark"):
        read(other, whole[len(other) + 1 :])


def test_clients_and_beginnings() -> None:
    link = read(b"/a", signed(b"/a", b"expires=100&starts=50&client=192.0.2.0/24&key=k2", b"k2"))
    assert link.starts == 50
    assert link.is_for(ip_address("192.0.2.9"))
    assert not link.is_for(ip_address("198.51.100.1"))
    assert not link.is_for(None)


@given(st.binary(max_size=30), st.binary(max_size=80), st.data())
def test_any_query(path: bytes, query: bytes, data: st.DataObject) -> None:
    """A link is right only if its signature is that of what it covers."""
    for sent in (query, query + b"&key=k1&signature=" + b"0" * 64, signed(path, query + b"&key=k1")):
        try:
            read(path, sent)
        except Unsigned:
            continue
        before, _, after = sent.partition(b"&signature=")
        place = data.draw(st.integers(0, len(before) - 1))
        changed = bytes([before[place] ^ 1])
        with pytest.raises(Unsigned):
            read(path, before[:place] + changed + before[place + 1 :] + b"&signature=" + after)


def test_logs_have_no_whole_signature() -> None:
    whole = b"/a?expires=1&key=k1&signature=" + sign(b"x", b"/a", b"").encode() + b"&x"
    assert without_signatures(whole) == whole[:38] + b"...&x"
    assert without_signatures(b"/a?signature=1234") == b"/a?signature=1234"

"""Files with the keys of signed links."""

from __future__ import annotations

import pytest

from ktlsd.site.signing_keys import parse_keys

SECRET = b"0123456789abcdef0123456789abcdef"


def test_a_file() -> None:
    data = b"# keys\r\n\nnew:" + SECRET + b"\r\nold-1:x:" + SECRET + b"\n"
    assert list(parse_keys(data).items()) == [(b"new", SECRET), (b"old-1", b"x:" + SECRET)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no keys"),
        (b"\n" + SECRET, "line 2: not a line ID:SECRET"),
        (b"k:short", "line 1: a secret has 32 characters at least"),
        (b"k&:" + SECRET, "line 1: not a line"),
        (b"k:" + SECRET + b" " + SECRET, "line 1: not a line"),
        (b"k:" + SECRET + b"\nk:" + SECRET, "line 2: k is in a line above"),
    ],
)
def test_what_refuses_a_file(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        parse_keys(data)
    assert SECRET.decode() not in str(error.value)

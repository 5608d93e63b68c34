"""The host of an authority: what RFC 3986 section 3.2.2 allows, and nothing else."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.http.uri_host import host_of


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("example.org", "example.org"),
        ("Example.ORG:8443", "Example.ORG"),
        ("example.org:", "example.org"),
        ("example.org.", "example.org."),
        ("127.0.0.1:8443", "127.0.0.1"),
        ("", ""),
        (":8443", ""),
        (":", ""),
        ("a_b", "a_b"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a!$&'()*+,;=~-", "a!$&'()*+,;=~-"),
        ("caf%C3%a9.example:1", "caf%C3%a9.example"),
        # The grammar's first match wins, and this is a registered name.
        ("256.256.256.256", "256.256.256.256"),
        ("[::1]", "[::1]"),
        ("[::1]:8443", "[::1]"),
        ("[::1]:", "[::1]"),
        ("[::]", "[::]"),
        ("[2001:DB8::1]:443", "[2001:DB8::1]"),
        ("[1:2:3:4:5:6:7:8]", "[1:2:3:4:5:6:7:8]"),
        ("[1:2:3:4:5:6:7::]", "[1:2:3:4:5:6:7::]"),
        ("[::ffff:192.0.2.1]", "[::ffff:192.0.2.1]"),
        ("[1:2:3:4:5:6:192.0.2.1]", "[1:2:3:4:5:6:192.0.2.1]"),
        ("[v1.a]", "[v1.a]"),
        ("[vFe.a:b]:80", "[vFe.a:b]"),
        ("[V1.-._~!$&'()*+,;=:]", "[V1.-._~!$&'()*+,;=:]"),
    ],
)
def test_a_valid_host_is_given_as_it_was_written(authority: str, host: str) -> None:
    assert host_of(authority) == host


@pytest.mark.parametrize(
    "authority",
    [
        *("[1]", "[:::]", "[1::2::3]", "[1:2:3:4:5:6:7:8:9]", "[12345::]", "[1.2.3.4]", "[v]", "[.]", "[]", "[:]"),
        *(
            "[1:2:3:4:5:6:7]",
            "[1::2:3:4:5:6:7:8]",
            "[::1.2.3]",
            "[::1.2.3.256]",
            "[::1.2.3.04]",
            "[g::]",
            "[::1",
            "::1]",
        ),
        *("[v1]", "[v1.]", "[v.a]", "[vg.a]", "[1.a]", "[v1.a/b]", "[v1.a%20]", "[v1.[]", "[vv1.a]"),
        *(
            "[::1%25eth0]",
            "[fe80::1%eth0]",
            "[ ::1]",
            "[::1 ]",
            "[::1]a",
            "[::1]]",
            "a[::1]",
            "[[::1]]",
            "::1",
            "[::1]:a",
        ),
        *("a%", "a%z", "a%zz", "a%2", "%", "a%2g", "a%%20"),
        *(
            "a b",
            "a:80:80",
            "a:port",
            "a:-1",
            "a:+1",
            "a/b",
            "user@a",
            "a\\b",
            "a#b",
            "a?b",
            'a"b',
            "a<b",
            "a|b",
            "a^b",
        ),
        *("\xfc", "a\xb9", "a:\xb2", "\u212a", "a\0", "a\n", "a:80\n", "[::1]\n", " a", "a ", "\ta"),
    ],
)
def test_what_is_no_host_is_none(authority: str) -> None:
    assert host_of(authority) is None


GROUPS = st.sampled_from(["", "0", "1", "fFfF", "12345", "g", "1.2.3.4", "1.2.3"])


@given(text=st.lists(GROUPS, max_size=10).map(":".join) | st.text("0123456789abcdef:.%", max_size=20))
def test_ipv6_literals_are_those_of_the_c_library(text: str) -> None:
    """inet_pton(3), which is another implementation of RFC 4291 section 2.2."""
    try:
        socket.inet_pton(socket.AF_INET6, text)
    except OSError:
        assert host_of(f"[{text}]") is None
    else:
        assert host_of(f"[{text}]:1") == f"[{text}]"

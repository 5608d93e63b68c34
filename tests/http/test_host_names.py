"""Which site a name belongs to, and what a Host field names."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktlsd.http.host_names import Sites

NAMED = [
    (("example.org", "www.example.org"), "exact"),
    (("*.example.org",), "wild"),
    (("*.sub.example.org", "deep.example.org"), "deep"),
    (("localhost", "127.0.0.1", "[::1]"), "local"),
    (("*.test",), "test"),
]
SITES = Sites("default", NAMED)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("example.org", "exact"),
        ("www.example.org", "exact"),
        # A wildcard is for what is below, and not for the name itself.
        ("a.example.org", "wild"),
        ("a.b.example.org", "wild"),
        (".example.org", "wild"),
        ("sub.example.org", "wild"),
        ("aexample.org", "default"),
        ("example.org.evil", "default"),
        ("xexample.org", "default"),
        # The longest wildcard, and an exact name before any.
        ("a.sub.example.org", "deep"),
        ("a.b.sub.example.org", "deep"),
        ("deep.example.org", "deep"),
        ("a.deep.example.org", "wild"),
        ("a.test", "test"),
        ("test", "default"),
        ("a.test.example", "default"),
        # As they may be written.
        ("EXAMPLE.org", "exact"),
        ("A.Sub.Example.ORG", "deep"),
        ("example.org.", "exact"),
        ("a.example.org.", "wild"),
        ("example.org..", "default"),
        ("localhost", "local"),
        ("127.0.0.1", "local"),
        ("[::1]", "local"),
        ("127.0.0.2", "default"),
        # Names of no site.
        ("", "default"),
        (".", "default"),
        ("..", "default"),
        ("org", "default"),
        (None, "default"),
    ],
)
def test_a_name_belongs_to_a_site(name: str | None, site: str) -> None:
    assert SITES.of_name(name) == site


def test_the_order_of_sites_has_no_say() -> None:
    turned = Sites("default", reversed(NAMED))
    for name in ("example.org", "a.example.org", "a.sub.example.org", "deep.example.org", "a.test", "other"):
        assert turned.of_name(name) == SITES.of_name(name)


def test_without_names_there_is_one_site() -> None:
    alone = Sites("alone")
    for name in (None, "", "example.org", "*.example.org"):
        assert alone.of_name(name) == "alone"
        assert alone.of_request(name, "other.example") == "alone"


LABELS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(".".join)
PATTERNS = st.builds(str.__add__, st.sampled_from(["", "*."]), LABELS)


@settings(deadline=None)
@given(st.sets(PATTERNS), LABELS)
@example({"*.a", "*.b.a"}, "c.b.a")
def test_the_most_particular_name_counts(names: set[str], asked: str) -> None:
    sites = Sites("", [((name,), name) for name in names])
    found = sites.of_name(asked)
    fitting = {name for name in names if name == asked or (name[0] == "*" and asked.endswith(name[1:]))}
    if asked in fitting:
        assert found == asked
    else:
        assert found == max(fitting, key=len, default="")


@settings(deadline=None)
@given(st.text())
def test_any_text_belongs_somewhere(name: str) -> None:
    assert SITES.of_name(name) in {"default", "exact", "wild", "deep", "local", "test"}
    assert SITES.of_name(name.lower()) == SITES.of_name(name)


@pytest.mark.parametrize(
    ("host", "server_name", "site"),
    [
        ("example.org", "example.org", "exact"),
        # Two names of one site share its certificate.
        ("www.example.org", "example.org", "exact"),
        ("a.example.org", "b.example.org", "wild"),
        ("EXAMPLE.ORG.", "example.org", "exact"),
        ("other.example", "another.example", "default"),
        (None, "other.example", "default"),
        # The handshake was for another site (RFC 9110 section 15.5.20).
        ("example.org", "a.example.org", None),
        ("a.example.org", "example.org", None),
        ("example.org", "other.example", None),
        ("other.example", "example.org", None),
        ("127.0.0.1", "example.org", None),
        (None, "example.org", None),
        # Who named none in the handshake may ask for any.
        ("example.org", None, "exact"),
        ("a.example.org", None, "wild"),
        ("other.example", None, "default"),
        (None, None, "default"),
    ],
)
def test_a_request_is_for_the_site_of_its_handshake(
    host: str | None, server_name: str | None, site: str | None
) -> None:
    assert SITES.of_request(host, server_name) == site


def test_sites_are_told_apart_by_identity() -> None:
    """Two sites with the same options are two all the same: their certificates are not."""
    sites = Sites([0], [(("a",), [1]), (("b",), [1])])
    assert sites.of_request("a", "a") == [1]
    assert sites.of_request("a", "b") is None

"""What proxies say about clients: believed from the nearest hop on for as long as those who say it are trusted."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.config.networks import UNIX, Address, Networks, parse_address
from ktlsd.config.values import ForwardedFields
from ktlsd.http.forwarded import FIELDS, MOST_HOPS, Origin, is_https, origin

TRUSTED = Networks(["10.0.0.0/8", "2001:db8::/32", UNIX])
NEAREST = Origin("10.0.0.1:50312", https=False)


def of(written: ForwardedFields = "x-forwarded", nearest: Origin = NEAREST, **fields: str) -> Origin:
    arguments = {name.replace("_", "-"): value for name, value in fields.items()}, nearest, TRUSTED, written
    found = origin(*arguments)
    assert is_https(*arguments) is found.https
    return found


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("", "10.0.0.1:50312"),
        ("192.0.2.7", "192.0.2.7"),
        (" 192.0.2.7 ", "192.0.2.7"),
        ("192.0.2.7:1234", "192.0.2.7"),
        ("2001:db9::1", "2001:db9::1"),
        ("[2001:db9::1]", "2001:db9::1"),
        ("[2001:DB9:0::1]:443", "2001:db9::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("198.51.100.9, 192.0.2.7", "192.0.2.7"),
        ("192.0.2.7, 10.1.1.1", "192.0.2.7"),
        ("192.0.2.7,10.1.1.1,2001:db8::5,unix:", "192.0.2.7"),
        ("198.51.100.9, 192.0.2.7, 10.1.1.1", "192.0.2.7"),
        ("10.2.2.2, 10.1.1.1", "10.2.2.2"),
        ("unix", "unix"),
        ("unknown", "10.0.0.1:50312"),
        ("192.0.2.7, unknown", "10.0.0.1:50312"),
        ("192.0.2.7, unknown, 10.1.1.1", "10.1.1.1"),
        # Empty members do not count (RFC 9110 section 5.6.1.2).
        ("192.0.2.7,", "192.0.2.7"),
        (", 192.0.2.7 , ,\t, 10.1.1.1,,", "192.0.2.7"),
        (",", "10.0.0.1:50312"),
        ("192.0.2.7, 10.1.1.1:", "192.0.2.7"),
        ("192.0.2.7, 10.1.1.1:80:80", "10.0.0.1:50312"),
        ("192.0.2.7, <script>", "10.0.0.1:50312"),
        ("192.0.2.7, " + ", ".join(["10.1.1.1"] * (MOST_HOPS - 1)), "192.0.2.7"),
        ("192.0.2.7, " + ", ".join(["10.1.1.1"] * MOST_HOPS), "10.1.1.1"),
    ],
)
def test_the_client_is_the_first_hop_that_is_not_trusted(nodes: str, expected: str) -> None:
    assert of(x_forwarded_for=nodes).address == expected


@pytest.mark.parametrize(
    ("nodes", "schemes", "expected"),
    [
        ("192.0.2.7", "https", True),
        ("192.0.2.7", "HTTPS", True),
        ("192.0.2.7", "http", False),
        ("192.0.2.7", "", False),
        ("192.0.2.7", "ftp", False),
        ("", "https", True),
        ("", "https, http", False),
        ("198.51.100.9, 192.0.2.7", "https", True),
        ("192.0.2.7, 10.1.1.1", "https, http", True),
        ("192.0.2.7, 10.1.1.1", "http, https", False),
        ("198.51.100.9, 192.0.2.7", "https, http", False),
        ("192.0.2.7, 10.1.1.1, 10.1.1.2", "https, http", False),
        (",192.0.2.7,, 10.1.1.1", "https, http,", True),
        (",192.0.2.7,, 10.1.1.1", "https,, http, http", False),
        ("unknown", "https", True),
    ],
)
def test_the_scheme_is_what_was_said_of_that_client(nodes: str, schemes: str, expected: bool) -> None:
    assert of(x_forwarded_for=nodes, x_forwarded_proto=schemes).https is expected


def test_what_a_proxy_says_of_the_scheme_wins_over_the_connection_to_it() -> None:
    own = Origin("10.0.0.1:1", https=True)
    assert of(nearest=own).https
    assert not of(nearest=own, x_forwarded_proto="http").https


@pytest.mark.parametrize(
    ("value", "address", "https"),
    [
        ("for=192.0.2.7", "192.0.2.7", False),
        ("For=192.0.2.7;Proto=HTTPS;by=10.0.0.1;host=a.example", "192.0.2.7", True),
        ('for="192.0.2.7:1234" ; proto=https', "192.0.2.7", True),
        ('for="[2001:db9::1]:_port"', "2001:db9::1", False),
        ('for="\\1\\92.0.2.7"', "192.0.2.7", False),
        ("for=198.51.100.9;proto=https, for=192.0.2.7", "192.0.2.7", False),
        ("for=192.0.2.7;proto=https, for=10.1.1.1;proto=http", "192.0.2.7", True),
        ("for=192.0.2.7;proto=http,for=10.1.1.1;proto=https", "192.0.2.7", False),
        ("for=192.0.2.7, for=_hidden", "10.0.0.1:50312", False),
        ("for=unknown;proto=https", "10.0.0.1:50312", True),
        ("proto=https", "10.0.0.1:50312", True),
        ("for=192.0.2.7;proto=https, by=10.1.1.1", "10.0.0.1:50312", False),
        ('secret="a, for=1.1.1.1";for=192.0.2.7', "192.0.2.7", False),
        ('secret="\\", for=1.1.1.1";for=192.0.2.7', "192.0.2.7", False),
        # Malformed anywhere: a quote that a client leaves open swallows what the proxy adds.
        ('for=", for=192.0.2.7', "10.0.0.1:50312", False),
        ('for="1.1.1.1, for="192.0.2.7";proto=https', "10.0.0.1:50312", False),
        ("for=1.1.1.1;for=192.0.2.7", "10.0.0.1:50312", False),
        ("for = 192.0.2.7", "10.0.0.1:50312", False),
        # Elements and pairs may be empty (RFC 7239 section 4, RFC 9110 section 5.6.1.2).
        ("for=192.0.2.7;", "192.0.2.7", False),
        (" ;; for=192.0.2.7 ; ;proto=https;, ,;,", "192.0.2.7", True),
        (",for=192.0.2.7;proto=https,,for=10.1.1.1,", "192.0.2.7", True),
        (";", "10.0.0.1:50312", False),
        ('for=192.0.2.7, "', "10.0.0.1:50312", False),
        ("for=192.0.2.7;;for=192.0.2.8", "10.0.0.1:50312", False),
        ("for=192.0.2.7 proto=https", "10.0.0.1:50312", False),
        ("for=2001:db9::1", "10.0.0.1:50312", False),
        ("for", "10.0.0.1:50312", False),
        ("", "10.0.0.1:50312", False),
    ],
)
def test_forwarded_is_read_as_the_rfc_has_it(value: str, address: str, https: bool) -> None:
    assert of("forwarded", forwarded=value) == Origin(address, https)


def test_only_what_the_proxies_write_is_read() -> None:
    fields = {"x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "https", "forwarded": "for=192.0.2.2"}
    assert fields.keys() < FIELDS
    assert origin(fields, NEAREST, TRUSTED, "x-forwarded") == Origin("192.0.2.1", https=True)
    assert origin(fields, NEAREST, TRUSTED, "forwarded") == Origin("192.0.2.2", https=False)


@pytest.mark.parametrize(
    "sane", ["a", "7f9c2ba4-e88f-827d-6160-4550b0ee", "C0A80001:C350_01:01BB_5:3", "a" * 128, "A+/=="]
)
def test_a_request_id_is_taken_as_it_is(sane: str) -> None:
    assert of(x_request_id=sane).request_id == sane


@pytest.mark.parametrize("other", ["", "a" * 129, "a b", "a, b", "a\x1b[2J", "\xe4", "a\n", '"a"', "<a>"])
def test_what_is_no_request_id_is_left_out(other: str) -> None:
    assert of(x_request_id=other).request_id is None


NODES = st.ip_addresses() | st.sampled_from(["unknown", "_x", "", "10.0.0.9", UNIX, "[", "]:", "::", "1.2.3.4:5"])
INSIDE = st.integers(0x0A000000, 0x0AFFFFFF).map(IPv4Address)
OUTSIDE = st.ip_addresses().filter(lambda address: not TRUSTED.holds(parse_address(str(address))))


@settings(deadline=None)
@given(
    invented=st.lists(NODES.map(str), max_size=5),
    client=OUTSIDE,
    hops=st.lists(INSIDE, max_size=5),
    scheme=st.sampled_from(["http", "https"]),
)
def test_what_a_client_invents_changes_nothing(
    invented: Sequence[str], client: Address, hops: Sequence[Address], scheme: str
) -> None:
    known = [str(client), *map(str, hops)]
    told = of(x_forwarded_for=", ".join([*invented, *known]), x_forwarded_proto=scheme)
    assert told == of(x_forwarded_for=", ".join(known), x_forwarded_proto=scheme)
    assert told == Origin(str(parse_address(str(client))), scheme == "https")


QUOTED = st.text(st.characters(min_codepoint=32, max_codepoint=126)).map(
    lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
)


@settings(deadline=None)
@given(invented=st.lists(QUOTED, max_size=3), client=OUTSIDE, hops=st.lists(INSIDE, max_size=3))
def test_quoted_inventions_change_nothing(invented: Sequence[str], client: Address, hops: Sequence[Address]) -> None:
    known = [f'for="{f"[{node}]" if isinstance(node, IPv6Address) else node}"' for node in (client, *hops)]
    value = ", ".join([*(f"for={text};proto=https" for text in invented), *known])
    assert of("forwarded", forwarded=value) == Origin(str(parse_address(str(client))), https=False)


@settings(deadline=None)
@given(value=st.text(max_size=200), schemes=st.text(max_size=40), request_id=st.text(max_size=140))
def test_anything_has_an_origin(value: str, schemes: str, request_id: str) -> None:
    for written, fields in (
        ("x-forwarded", {"x-forwarded-for": value, "x-forwarded-proto": schemes, "x-request-id": request_id}),
        ("forwarded", {"forwarded": value, "x-request-id": request_id}),
    ):
        kind: ForwardedFields = "forwarded" if written == "forwarded" else "x-forwarded"
        told = origin(fields, NEAREST, TRUSTED, kind)
        assert is_https(fields, NEAREST, TRUSTED, kind) is told.https
        assert told.address in (NEAREST.address, UNIX) or parse_address(told.address)
        assert told.request_id in (None, request_id)


# --- networks


@pytest.mark.parametrize(
    ("networks", "peer", "inside"),
    [
        ([], "10.0.0.1", False),
        (["10.0.0.0/8"], "10.255.0.1", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", True),
        (["10.0.0.1"], "10.0.0.1", True),
        (["10.0.0.1"], "10.0.0.2", False),
        (["::1", "10.0.0.0/8"], "::1", True),
        (["0.0.0.0/0"], "::1", False),
        (["::/0"], "10.0.0.1", False),
        (["0.0.0.0/0", "::/0"], None, False),
        (["unix"], None, True),
        (["unix"], "127.0.0.1", False),
    ],
)
def test_a_network_holds_its_addresses(networks: Sequence[str], peer: str | None, inside: bool) -> None:
    made = Networks(networks)
    assert made.holds(None if peer is None else parse_address(peer)) is inside
    assert bool(made) is bool(networks)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10/8", "localhost", "", "10.0.0.0/33", "unix:", "10.0.0.0/8 "])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Networks([text])

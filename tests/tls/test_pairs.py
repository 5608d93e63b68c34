"""What is said of certificates, and which of them refuse a configuration: pure."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktlsd.config.certificate_files import authorities_trouble, certificate_trouble, key_trouble, revoked_trouble
from ktlsd.openssl.errors import PairError
from ktlsd.settings import load
from ktlsd.ssl_ffi import Library, Pair
from ktlsd.tls.pairs import Fault, out_of_time, refused_for
from tests.authority import Authority

DAY = 86400
NOT_SERVED = Fault("b", ("site", 1, "cert", 0), "b.pem", ("b.pem", "b.key"), "wrong", former=False, served=False)
KEPT = NOT_SERVED._replace(former=True, served=True)
PARTLY = NOT_SERVED._replace(site="c", file="c.pem", served=True)


def test_what_is_said_of_a_fault() -> None:
    assert NOT_SERVED.line("f:3: ") == "site b is not served: f:3: wrong"
    assert KEPT.line("f:3: ") == "certificate of b not reloaded, the old one stays in force: f:3: wrong"
    assert PARTLY.line("") == "site c is served without one of its certificates: wrong"


@pytest.mark.parametrize(
    ("faults", "served", "strict", "before", "expected"),
    [
        ((), True, True, None, None),
        # A start.
        ((NOT_SERVED,), True, False, None, None),
        ((PARTLY, NOT_SERVED), True, True, None, NOT_SERVED),
        ((PARTLY,), True, True, None, PARTLY),
        ((NOT_SERVED,), False, False, None, NOT_SERVED),
        # A reload: what was so may stay, and what is in force.
        ((KEPT,), True, False, (), None),
        ((KEPT,), True, True, (), KEPT),
        ((NOT_SERVED,), True, False, (), NOT_SERVED),
        ((NOT_SERVED,), True, False, (NOT_SERVED,), None),
        ((NOT_SERVED, PARTLY), True, False, (NOT_SERVED,), PARTLY),
        ((NOT_SERVED,), False, False, (NOT_SERVED,), NOT_SERVED),
    ],
)
def test_which_fault_refuses_a_configuration(
    faults: tuple[Fault, ...], served: bool, strict: bool, before: tuple[Fault, ...] | None, expected: Fault | None
) -> None:
    known = None if before is None else [fault.key for fault in before]
    assert refused_for(faults, served=served, strict=strict, before=known) == expected


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (DAY, ""),
        (10 * DAY - 1, ""),
        (10 * DAY, "expired less than a day ago, on 1970-01-11 00:00 UTC: renew it"),
        (11 * DAY, "expired 1 day ago, on 1970-01-11 00:00 UTC: renew it"),
        (13 * DAY + 5, "expired 3 days ago, on 1970-01-11 00:00 UTC: renew it"),
        (DAY - 1, "is not valid before 1970-01-02 00:00 UTC: look at the clock, or have another one made"),
    ],
)
def test_what_is_said_of_a_certificates_time(now: float, said: str) -> None:
    assert out_of_time(DAY, 10 * DAY, now) == said


CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
KEY = b"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n"
LIST = b"-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "No such file or directory"),
        (CERTIFICATE, "No such file or directory"),
        (CERTIFICATE[:30], "it is cut short"),
        (CERTIFICATE[:-30], "it is cut short"),
        (KEY, "there is no certificate in it, but PRIVATE KEY"),
        (KEY + LIST + KEY, "there is no certificate in it, but PRIVATE KEY, X509 CRL"),
        (b"\x30\x82\x01", "it is not PEM: convert DER by `openssl x509 -inform DER -in FILE -out NEW`"),
        (b"nonsense", "it is not PEM"),
    ],
)
def test_what_is_said_of_a_file_that_is_no_certificate(content: bytes, said: str) -> None:
    assert certificate_trouble(content, "No such file or directory") == said
    assert authorities_trouble(content, "No such file or directory") == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Permission denied"),
        (KEY, "Permission denied"),
        (KEY.replace(b"PRIVATE", b"EC PRIVATE"), "Permission denied"),
        (KEY[:40], "it is cut short"),
        (CERTIFICATE, "there is no private key in it, but CERTIFICATE"),
        (KEY.replace(b"PRIVATE", b"ENCRYPTED PRIVATE"), "it is encrypted: .*"),
        (KEY.replace(b"MIIB", b"Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIB"), "it is encrypted: .*"),
        (b"\x30\x82\x01", "it is not PEM: convert DER by `openssl pkey -inform DER -in FILE -out NEW`"),
    ],
)
def test_what_is_said_of_a_file_that_is_no_key(content: bytes, said: str) -> None:
    found = key_trouble(content, "Permission denied")
    assert found == said or (said.endswith(".*") and found.startswith(said.removesuffix(".*")))


def test_what_is_said_of_a_file_that_has_no_revocation_lists() -> None:
    assert revoked_trouble(CERTIFICATE, "no start line") == "there is no revocation list in it, but CERTIFICATE"
    assert revoked_trouble(b"", "no start line") == "there is no PEM block in it"


def test_which_names_a_certificate_covers(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    path = str(authority.issue("cn.example", ["a.example", "*.b.example", "f*.c.example"]))
    pair = Pair(Library(), path, path)
    covered = ("a.example", "A.Example", "x.b.example")
    # Clients look at no common name, at no part of a label, and a wildcard is one label.
    uncovered = ("cn.example", "b.example", "x.y.b.example", "foo.c.example", "127.0.0.1")
    assert [name for name in (*covered, *uncovered) if pair.covers(name)] == list(covered)
    assert (pair.key_type, pair.kind) == ("EC", "EC prime256v1")
    assert pair.ends - pair.begins == 3 * DAY
    second = pair.shared()
    pair.close()
    assert second.covers("a.example")
    second.close()
    with pytest.raises(PairError, match="it is not PEM"):
        Pair(Library(), "/etc/passwd", "/etc/passwd")


def test_where_a_key_was_given(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    site = "[[site]]\nnames = '{}'\n"
    own = "cert = ['a', 'b']\nkey = ['a', 'b']\n"
    config.write_text(f"root = '.'\ncert = 'c'\nkey = 'c'\n{site.format('x')}{site.format('y')}{own}")
    found = load({"config": str(config)}, {})
    assert found.where(("site", 1, "cert", 1)) == f"{config}:8: site[1].cert[1]: "
    assert found.where(("site", 0, "cert", 0)) == found.where(("cert", 0)) == f"{config}:2: cert: "
    assert found.where(("client_ca",)) == found.where(()) == ""
    given = load({"config": str(config), "cert": ["d"], "key": ["d"]}, {})
    assert given.where(("cert", 0)) == given.where(("site", 0, "cert", 0)) == "--cert: "
    assert given.where(("site", 1, "key", 0)) == f"{config}:9: site[1].key[0]: "
    assert load({"root": str(tmp_path)}, {}).where(("cert", 0)) == ""

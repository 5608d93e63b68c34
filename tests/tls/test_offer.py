"""Lists of ciphers and groups that a configuration chooses."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest

from ktlsd.config.options import Settings
from ktlsd.config.values import Mode
from ktlsd.openssl.algorithms import CIPHER_LIST, CIPHERSUITES, TLS_1_2, TLS_1_3
from ktlsd.ssl_ffi import Library
from ktlsd.tls import offer
from ktlsd.tls.ktls import Support
from ktlsd.tls.pairs import offering, probing_client
from ktlsd.tls.policy import POLICIES, policy_of

CBC = "ECDHE-RSA-AES128-SHA256"


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


def test_without_lists_the_policy_is_as_it_is() -> None:
    for name, policy in POLICIES.items():
        assert policy_of(Settings(tls_policy=name)) is policy


def test_each_list_takes_the_place_of_the_policys() -> None:
    settings = Settings(
        tls_policy="modern",
        tls_min_version="1.2",
        tls_ciphers=CBC,
        tls_ciphersuites="TLS_AES_256_GCM_SHA384",
        tls_groups="secp384r1",
    )
    policy = policy_of(settings)
    assert (policy.oldest, policy.ciphersuites, policy.groups) == (TLS_1_2, "TLS_AES_256_GCM_SHA384", ("secp384r1",))
    assert policy.ciphers.split(":")[0] == CBC
    assert policy_of(Settings(tls_min_version="1.3")).oldest == TLS_1_3


@pytest.mark.parametrize("ciphers", ["ALL", "ALL:eNULL:aNULL", "COMPLEMENTOFDEFAULT:HIGH"])
def test_no_list_brings_a_server_without_a_certificate_or_encryption(library: Library, ciphers: str) -> None:
    with contextlib.closing(offering(library, policy_of(Settings(tls_ciphers=ciphers)))) as context:
        names = context.ciphers()
    assert "ECDHE-ECDSA-AES128-GCM-SHA256" in names
    assert not [name for name in names if name.startswith(("ADH", "AECDH", "PSK", "SRP")) or "NULL" in name]


@pytest.mark.parametrize(
    ("lists", "complaint"),
    [
        ({"tls_ciphers": f"{CBC}:NONSENSE"}, ("tls_ciphers", "OpenSSL has no cipher NONSENSE for a server with .*")),
        ({"tls_ciphers": "aNULL"}, ("tls_ciphers", "OpenSSL has no cipher aNULL for a server with a certificate: .*")),
        ({"tls_ciphers": "!ALL"}, ("tls_ciphers", "OpenSSL takes nothing of the list !ALL")),
        ({"tls_ciphersuites": "TLS_NONSENSE"}, ("tls_ciphersuites", "OpenSSL has no cipher suite TLS_NONSENSE: .*")),
        ({"tls_groups": "X25519:nonsense"}, ("tls_groups", "OpenSSL has no group nonsense: write names such as .*")),
        ({"tls_ciphers": f"HIGH:+AES256:!SHA1:-ARIA:@STRENGTH:{CIPHER_LIST}"}, None),
        ({"tls_ciphersuites": CIPHERSUITES, "tls_groups": "secp521r1:X25519"}, None),
        ({"tls_min_version": "1.3"}, None),
    ],
)
def test_what_openssl_does_not_know_is_told(
    library: Library, lists: dict[str, Any], complaint: tuple[str, str] | None
) -> None:
    found = list(offer.complaints(library, Settings(**lists)))
    if complaint is None:
        assert found == []
        return
    key, text = found[0]
    assert key == complaint[0]
    assert re.fullmatch(complaint[1], text)


@pytest.mark.parametrize("groups", ["secp384r1", "prime256v1", "X448:P-521", "X25519"])
def test_a_client_that_tries_the_offer_has_what_it_asks_for(library: Library, groups: str) -> None:
    policy = policy_of(Settings(tls_groups=groups, tls_ciphers=CBC))
    with contextlib.closing(probing_client(library, TLS_1_2, policy)) as client:
        assert CBC in client.ciphers()


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        ({"tls_ciphers": f"{CIPHER_LIST}:{CBC}"}, f"tls_ciphers: kTLS carries no {CBC}: connections .*"),
        (
            {"tls_ciphers": CIPHER_LIST, "tls_ciphersuites": "TLS_AES_128_CCM_8_SHA256:TLS_AES_128_GCM_SHA256"},
            "tls_ciphers and tls_ciphersuites: kTLS carries no TLS_AES_128_CCM_8_SHA256: .*",
        ),
        ({"tls_ciphers": CIPHER_LIST}, ""),
        # The policy's own are in its documentation.
        ({"tls_policy": "compatible"}, ""),
    ],
)
def test_ciphers_without_ktls_are_told_at_the_start(library: Library, lists: dict[str, Any], told: str) -> None:
    settings = Settings(**lists)
    with contextlib.closing(offering(library, policy_of(settings))) as context:
        engaged = Support(Mode.AUTO, (3, 5, 0), True, True)
        assert re.fullmatch(told, offer.describe(context, settings, engaged))
        # There is another line if there is no kTLS at all.
        assert offer.describe(context, settings, Support(Mode.AUTO, (3, 5, 0), True, False)) == ""

"""Why a direction is not offloaded: every reason, from the most general to the most special."""

from __future__ import annotations

import itertools

import pytest

from ktlsd.config.values import Mode
from ktlsd.openssl.results import Handshake
from ktlsd.tls.ktls import Direction, Offload, Path, Reason, Support, explain

GOOD = Support(mode=Mode.AUTO, openssl=(3, 5, 0), compiled_in=True, ulp=True)


def handshake(
    *,
    protocol: str = "TLSv1.3",
    cipher: str = "TLS_AES_128_GCM_SHA256",
    max_fragment_length: bool = False,
    tx: bool = False,
    rx: bool = False,
) -> Handshake:
    return Handshake(protocol, cipher, False, max_fragment_length, tx, rx)


# From the most general to the most special: (reason, support, handshake), where everything below is wrong as well.
_OLD = (3, 0, 0)
_WRONG = handshake(cipher="TLS_AES_128_CCM_8_SHA256", max_fragment_length=True)
ORDER = [
    (Reason.SWITCHED_OFF, Support(Mode.OFF, _OLD, False, False), _WRONG),
    (Reason.OPENSSL_WITHOUT_KTLS, Support(Mode.AUTO, _OLD, False, False), _WRONG),
    (Reason.NO_ULP, Support(Mode.AUTO, _OLD, True, False), _WRONG),
    (Reason.CIPHER_NEVER_CARRIED, Support(Mode.AUTO, _OLD, True, True), _WRONG),
    (Reason.MAX_FRAGMENT_LENGTH, Support(Mode.AUTO, _OLD, True, True), handshake(max_fragment_length=True)),
    (Reason.TLS13_RX_NEEDS_OPENSSL_3_2, Support(Mode.AUTO, _OLD, True, True), handshake()),
    (Reason.REFUSED, Support(Mode.AUTO, (3, 2, 0), True, True), handshake()),
]


@pytest.mark.parametrize(("reason", "support", "settled"), ORDER, ids=[row[0].name for row in ORDER])
def test_the_most_general_reason_is_told(reason: Reason, support: Support, settled: Handshake) -> None:
    assert explain(support, settled, Direction.RX) == Path(Offload.NONE, reason)


@pytest.mark.parametrize(("reason", "support", "settled"), ORDER, ids=[row[0].name for row in ORDER])
def test_sends_have_the_same_reasons_but_for_the_age_of_openssl(
    reason: Reason, support: Support, settled: Handshake
) -> None:
    expected = Reason.REFUSED if reason is Reason.TLS13_RX_NEEDS_OPENSSL_3_2 else reason
    assert explain(support, settled, Direction.TX) == Path(Offload.NONE, expected)


def test_every_reason_stands_in_the_order() -> None:
    assert [row[0] for row in ORDER] == list(Reason)


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.REQUIRE])
@pytest.mark.parametrize(
    ("protocol", "openssl", "reason"),
    [
        ("TLSv1.3", (3, 0, 0), Reason.TLS13_RX_NEEDS_OPENSSL_3_2),
        ("TLSv1.3", (3, 1, 8), Reason.TLS13_RX_NEEDS_OPENSSL_3_2),
        ("TLSv1.3", (3, 2, 0), Reason.REFUSED),
        ("TLSv1.3", (3, 10, 0), Reason.REFUSED),
        ("TLSv1.3", (4, 0, 0), Reason.REFUSED),
        ("TLSv1.2", (3, 0, 0), Reason.REFUSED),
    ],
)
def test_receiving_tls_1_3_needs_openssl_3_2(
    mode: Mode, protocol: str, openssl: tuple[int, int, int], reason: Reason
) -> None:
    cipher = "ECDHE-RSA-AES128-GCM-SHA256" if protocol == "TLSv1.2" else "TLS_AES_128_GCM_SHA256"
    settled = handshake(protocol=protocol, cipher=cipher, tx=True)
    assert explain(Support(mode, openssl, True, True), settled, Direction.RX).reason is reason


@pytest.mark.parametrize(
    ("protocol", "cipher", "carried"),
    [
        ("TLSv1.3", "TLS_AES_128_GCM_SHA256", True),
        ("TLSv1.3", "TLS_AES_256_GCM_SHA384", True),
        ("TLSv1.3", "TLS_CHACHA20_POLY1305_SHA256", True),
        ("TLSv1.3", "TLS_AES_128_CCM_SHA256", True),
        ("TLSv1.3", "TLS_AES_128_CCM_8_SHA256", False),
        ("TLSv1.3", "TLS_SHA256_SHA256", False),
        ("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", True),
        ("TLSv1.2", "ECDHE-RSA-AES256-GCM-SHA384", True),
        ("TLSv1.2", "AES128-GCM-SHA256", True),
        ("TLSv1.2", "ECDHE-RSA-CHACHA20-POLY1305", True),
        ("TLSv1.2", "ECDHE-ECDSA-AES128-CCM", True),
        ("TLSv1.2", "ECDHE-ECDSA-AES128-CCM8", False),
        ("TLSv1.2", "ECDHE-ECDSA-AES256-CCM", False),
        ("TLSv1.2", "ECDHE-ECDSA-AES256-CCM8", False),
        ("TLSv1.2", "ECDHE-ARIA128-GCM-SHA256", False),
        ("TLSv1.2", "ECDHE-RSA-CAMELLIA128-SHA256", False),
        ("TLSv1.2", "ECDHE-RSA-AES128-SHA256", False),
        ("TLSv1.2", "ECDHE-RSA-AES256-SHA384", False),
        ("TLSv1.2", "AES128-SHA", False),
        ("TLSv1.2", "", False),
    ],
)
@pytest.mark.parametrize("direction", Direction)
def test_which_ciphers_ktls_carries(protocol: str, cipher: str, carried: bool, direction: Direction) -> None:
    path = explain(GOOD, handshake(protocol=protocol, cipher=cipher), direction)
    assert path.reason is (Reason.REFUSED if carried else Reason.CIPHER_NEVER_CARRIED)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("kind", [Offload.SOFTWARE, Offload.DEVICE, Offload.KERNEL])
def test_what_is_engaged_has_no_reason(direction: Direction, kind: Offload) -> None:
    """Whatever the tables hold: OpenSSL itself says that it is."""
    settled = handshake(tx=direction is Direction.TX, rx=direction is Direction.RX)
    other = Direction.RX if direction is Direction.TX else Direction.TX
    assert explain(GOOD, settled, direction, kind) == Path(kind, None)
    assert explain(GOOD, settled, other, kind) == Path(Offload.NONE, Reason.REFUSED)


def test_an_engaged_direction_is_software_unless_the_kernel_tells_otherwise() -> None:
    assert explain(GOOD, handshake(tx=True), Direction.TX) == Path(Offload.SOFTWARE, None)


@pytest.mark.parametrize(("mode", "direction"), list(itertools.product(Mode, Direction)))
def test_a_reason_is_given_exactly_where_nothing_is_engaged(mode: Mode, direction: Direction) -> None:
    ciphers = ("TLS_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-SHA256")
    yes_or_no = (False, True)
    for compiled_in, ulp, cipher, short, tx, rx in itertools.product(
        yes_or_no, yes_or_no, ciphers, yes_or_no, yes_or_no, yes_or_no
    ):
        settled = handshake(cipher=cipher, max_fragment_length=short, tx=tx, rx=rx)
        path = explain(Support(mode, (3, 0, 0), compiled_in, ulp), settled, direction)
        engaged = tx if direction is Direction.TX else rx
        assert (path.reason is None) == engaged
        assert (path.offload is Offload.NONE) == (not engaged)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (Path(Offload.SOFTWARE, None), "software"),
        (Path(Offload.KERNEL, None), "software or device"),
        (Path(Offload.NONE, Reason.NO_ULP), "none (the kernel has no tls ULP)"),
    ],
)
def test_a_path_reads_as_in_the_log(path: Path, text: str) -> None:
    assert str(path) == text

"""The path of a connection's bytes, and the reason if it is not the kernel's: pure, no sockets.

Strategy: Support has the abilities of this process (found once, by ktls_probe), Handshake the outcome on one
connection. The reason for a missing offload is the first row of a table whose condition holds, from the most to the
least general.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from ktlsd.config.values import Mode
from ktlsd.openssl.results import Handshake

# The ciphers that OpenSSL can hand to Linux (ssl/ktls.c and include/internal/ktls.h, OpenSSL 3.0 to 3.5): the GCM
# suites, ChaCha20 and AES-128-CCM with a full tag.
_CARRIED: Final = re.compile(r"AES.?(128|256).GCM|CHACHA20|AES.?128.CCM(_SHA256)?$")
_TLS13_RX_SINCE: Final = (3, 2, 0)


class Offload(enum.Enum):
    """Encryption (TX) or decryption (RX) path of records: user space (none), the kernel's software, or a network
    device."""

    NONE = "none"
    SOFTWARE = "software"
    DEVICE = "device"
    KERNEL = "software or device"
    """One of both: before Linux 6.15 the kernel shows which one only to processes with CAP_NET_ADMIN."""

    # Each connection is counted by it, and Enum's own is Python code.
    __hash__ = object.__hash__


class Reason(enum.Enum):
    """Reasons why a direction of a connection is not offloaded; the value is the text in logs and of the doctor."""

    SWITCHED_OFF = "switched off by --ktls off"
    OPENSSL_WITHOUT_KTLS = "OpenSSL was built without kTLS"
    NO_ULP = "the kernel has no tls ULP"
    CIPHER_NEVER_CARRIED = "kTLS carries no such cipher"
    MAX_FRAGMENT_LENGTH = "the client negotiated max_fragment_length"
    TLS13_RX_NEEDS_OPENSSL_3_2 = "TLS 1.3 RX needs OpenSSL 3.2"
    REFUSED = "this kernel and OpenSSL do not offload this cipher with this protocol"

    __hash__ = object.__hash__


class Support(Struct, frozen=True):
    """The abilities of a process: option, OpenSSL's build, kernel."""

    mode: Mode
    openssl: tuple[int, int, int]
    compiled_in: bool
    ulp: bool

    @property
    def engages(self) -> bool:
        """Whether kTLS is there and not switched off."""
        return self.lacking is None

    @property
    def lacking(self) -> Reason | None:
        """The reason why no connection has kTLS; None if it depends on the connection."""
        if self.mode is Mode.OFF:
            return Reason.SWITCHED_OFF
        if not self.compiled_in:
            return Reason.OPENSSL_WITHOUT_KTLS
        return None if self.ulp else Reason.NO_ULP


class Direction(enum.Enum):
    """TX is what the server sends, RX what it receives."""

    TX = "tx"
    RX = "rx"


class Path(Struct, frozen=True):
    """The path one direction of a connection takes; `reason` is None exactly when it is offloaded."""

    offload: Offload
    reason: Reason | None

    def __str__(self) -> str:
        return self.offload.value if self.reason is None else f"{self.offload.value} ({self.reason.value})"


def is_carried(cipher: str) -> bool:
    """Whether OpenSSL can hand connections with a cipher of this name to Linux."""
    return _CARRIED.search(cipher) is not None


_REASONS: Final[tuple[tuple[Reason, Callable[[Support, Handshake, Direction], bool]], ...]] = (
    (Reason.CIPHER_NEVER_CARRIED, lambda support, handshake, direction: not is_carried(handshake.cipher)),
    (Reason.MAX_FRAGMENT_LENGTH, lambda support, handshake, direction: handshake.max_fragment_length),
    (
        Reason.TLS13_RX_NEEDS_OPENSSL_3_2,
        lambda support, handshake, direction: (
            direction is Direction.RX and handshake.protocol == "TLSv1.3" and support.openssl < _TLS13_RX_SINCE
        ),
    ),
    (Reason.REFUSED, lambda support, handshake, direction: True),
)


def explain(
    support: Support, handshake: Handshake, direction: Direction, engaged_as: Offload = Offload.SOFTWARE
) -> Path:
    """The path of one direction; `engaged_as` is the kind of an engaged offload, from the kernel."""
    engaged = handshake.ktls_tx if direction is Direction.TX else handshake.ktls_rx
    if engaged:
        return Path(engaged_as, None)
    reason = support.lacking or next(reason for reason, holds in _REASONS if holds(support, handshake, direction))
    return Path(Offload.NONE, reason)

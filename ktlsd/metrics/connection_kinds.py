"""The kinds of TLS connections seen so far, so that the log has the first of each and not every connection.

Strategy: a flag for each kind in memory that workers share, as rows of metrics are. Two workers that see a kind for the
first time at the same moment may both report it.
"""

from __future__ import annotations

import functools
import mmap
from typing import Final

from ktlsd.metrics.metrics import CIPHERS
from ktlsd.tls.ktls import Offload, Path, Reason

_SUITES: Final = {suite: number for number, suite in enumerate(CIPHERS)}
_PATHS: Final = {
    path: number
    for number, path in enumerate(
        (
            *(Path(offload, None) for offload in Offload if offload is not Offload.NONE),
            *(Path(Offload.NONE, reason) for reason in Reason),
        )
    )
}


class ConnectionKinds:
    """The kinds seen by this process and by processes forked later; a kind is protocol, cipher and both paths."""

    def __init__(self) -> None:
        self._seen = mmap.mmap(-1, (len(_SUITES) + 1) * len(_PATHS) ** 2 + 1)

    def is_new(self, protocol: str, cipher: str, tx: Path, rx: Path) -> bool:
        """True for the first connection of a kind."""
        return self._is_first(_flag(protocol, cipher, tx, rx))

    def is_first_beside_nic(self) -> bool:
        """True for the first connection that the kernel encrypts though its NIC encrypts for others."""
        return self._is_first(-1)

    def _is_first(self, flag: int) -> bool:
        new = not self._seen[flag]
        self._seen[flag] = 1
        return new


@functools.lru_cache(256)
def _flag(protocol: str, cipher: str, tx: Path, rx: Path) -> int:
    suite = _SUITES.get((protocol, cipher), len(_SUITES))
    return (suite * len(_PATHS) + _PATHS[tx]) * len(_PATHS) + _PATHS[rx]

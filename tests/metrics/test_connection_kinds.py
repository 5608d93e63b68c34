"""Each kind of connection is new once, for all processes together."""

from __future__ import annotations

import itertools
import os

from ktlsd.metrics.connection_kinds import ConnectionKinds
from ktlsd.metrics.metrics import CIPHERS
from ktlsd.tls.ktls import Offload, Path, Reason

PATHS = (
    *(Path(offload, None) for offload in Offload if offload is not Offload.NONE),
    *(Path(Offload.NONE, reason) for reason in Reason),
)
KIND = ("TLSv1.3", "TLS_AES_128_GCM_SHA256", Path(Offload.SOFTWARE, None), Path(Offload.NONE, Reason.NO_ULP))


def test_each_kind_is_new_once() -> None:
    kinds = ConnectionKinds()
    every = [(*suite, tx, rx) for suite, tx, rx in itertools.product((*CIPHERS, ("SSLv9", "NEW")), PATHS, PATHS)]
    assert all(kinds.is_new(*kind) for kind in every)
    assert not any(kinds.is_new(*kind) for kind in every)


def test_processes_forked_later_share_them() -> None:
    kinds = ConnectionKinds()
    child = os.fork()
    if not child:
        os._exit(0 if kinds.is_new(*KIND) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not kinds.is_new(*KIND)

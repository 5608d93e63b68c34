"""The callback by which OpenSSL goes on with a handshake whatever it finds about a client's certificate, for sites that
only ask for one: SSL_get_verify_result(3) keeps the fault.

Strategy: made by ctypes at import, before workers are forked, for the reasons in alpn.py.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

_Verify: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)


def _go_on(_verified: int, _store: int) -> int:
    # ctypes takes an exception for 0, which ends the handshake.
    return 1


def _made() -> Any:
    try:
        return _Verify(_go_on)
    except (MemoryError, OSError):
        return None


_callback: Final = _made()
ADDRESS: Final[int | None] = None if _callback is None else ctypes.cast(_callback, ctypes.c_void_p).value
"""The callback of SSL_CTX_set_verify(3); None if this process may not have one."""

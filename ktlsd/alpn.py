"""The protocol of a connection by ALPN (RFC 7301): the callback by which OpenSSL lets a server choose it.

Strategy: OpenSSL has no other way, and cffi's callbacks need a page that is writable and executable, which systemd's
MemoryDenyWriteExecute forbids; ctypes' closures do without one. They are made when this module is imported: before
workers are forked, since they share the memory of closures, and are never freed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any, Final

HTTP_2: Final = b"h2"
HTTP_1_1: Final = b"http/1.1"
ACME_TLS_1: Final = b"acme-tls/1"
"""A challenge of an ACME server (RFC 8737)."""
PREFERENCE: Final = (HTTP_2, HTTP_1_1)
"""The protocols of a server with HTTP/2, the preferred one first."""

_EPHEMERAL: Final = (b"ECDHE-", b"DHE-", b"TLS_")
"""How OpenSSL's names of ciphers begin whose keys are not those of the certificate; the last is TLS 1.3's."""
_TAKEN: Final = 0
"""SSL_TLSEXT_ERR_OK"""
_NONE_TAKEN: Final = 3
"""SSL_TLSEXT_ERR_NOACK: the handshake goes on, as if the client had not asked."""


def choose(offered: bytes, known: tuple[bytes, ...] = PREFERENCE) -> bytes | None:
    """The protocol for a client's list, names each after their length; None if it has none that is known."""
    names = set()
    position = 0
    while position < len(offered):
        begin = position + 1
        position = begin + offered[position]
        names.add(offered[begin:position])
    return next((name for name in known if name in names), None)


# OpenSSL copies the name that the callback points to.
_names: Final = {name: ctypes.create_string_buffer(name, len(name)) for name in (*PREFERENCE, ACME_TLS_1)}


def _select(
    _ssl: int, chosen: Any, length: Any, offered: int, count: int, _argument: int, known: tuple[bytes, ...] = PREFERENCE
) -> int:
    # ctypes takes an exception for 0, and OpenSSL that for a choice.
    try:
        name = choose(ctypes.string_at(offered, count), known)
        if name is None:
            return _NONE_TAKEN
        chosen[0] = ctypes.addressof(_names[name])
        length[0] = len(name)
    except BaseException:
        return _NONE_TAKEN
    return _TAKEN


def _select_by_cipher(ssl: int, chosen: Any, length: Any, offered: int, count: int, functions: int) -> int:
    """No HTTP/2 with a cipher that it refuses (RFC 9113 appendix A): OpenSSL chooses the cipher of TLS 1.2 first.

    `functions` is where Context.choose_protocols_by() has them.
    """
    try:
        found = _CipherFunctions.from_address(functions)
        cipher = found.pending_cipher(ssl)
        suits = cipher and found.is_aead(cipher) and found.get_name(cipher).startswith(_EPHEMERAL)
        known = PREFERENCE if suits else (HTTP_1_1,)
    except BaseException:
        return _NONE_TAKEN
    return _select(ssl, chosen, length, offered, count, functions, known)


class _CipherFunctions(ctypes.Structure):
    """SSL_get_pending_cipher(3), SSL_CIPHER_is_aead(3) and SSL_CIPHER_get_name(3)."""

    _fields_ = (
        ("pending_cipher", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)),
        ("is_aead", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)),
        ("get_name", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)),
    )


_Select: Final = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_ubyte),
    ctypes.c_void_p,
    ctypes.c_uint,
    ctypes.c_void_p,
)


def _made(select: Callable[..., int]) -> tuple[Any, str]:
    """The closure, or None and the reason why there is none."""
    try:
        return _Select(select), ""
    except (MemoryError, OSError) as error:
        return None, str(error) or "no memory that is executable"


def _address(callback: Any) -> int | None:
    return None if callback is None else ctypes.cast(callback, ctypes.c_void_p).value


_callback, REASON = _made(_select)
_by_cipher_callback, _ = _made(_select_by_cipher)
_acme_callback, _ = _made(partial(_select, known=(ACME_TLS_1,)))
ADDRESS: Final[int | None] = _address(_callback)
"""The callback of SSL_CTX_set_alpn_select_cb(3); None if this process may not have one, for a REASON."""
BY_CIPHER_ADDRESS: Final[int | None] = _address(_by_cipher_callback)
"""The same, for a server that has ciphers with which clients may refuse HTTP/2: these get HTTP/1.1."""
ACME_ADDRESS: Final[int | None] = _address(_acme_callback)
"""The same, for the handshakes of ACME servers."""

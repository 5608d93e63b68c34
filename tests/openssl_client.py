"""A TLS client over ctypes that does what Python's ssl module has no call for: KeyUpdates and renegotiation."""

from __future__ import annotations

import ctypes
import socket
import ssl
from types import TracebackType
from typing import Self

from tests.serving import WAIT_SECONDS

_UPDATE_NOT_REQUESTED, _UPDATE_REQUESTED = 0, 1
_SET_MAX_PROTO_VERSION = 124

# Python's own ssl module has it loaded.
_C = ctypes.CDLL("libssl.so.3")
for _name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
    getattr(_C, _name).restype = ctypes.c_void_p
_C.SSL_CTX_ctrl.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]
_C.SSL_CTX_new.argtypes = _C.SSL_new.argtypes = [ctypes.c_void_p]
for _name in ("SSL_CTX_free", "SSL_free", "SSL_connect", "SSL_do_handshake", "SSL_renegotiate"):
    getattr(_C, _name).argtypes = [ctypes.c_void_p]
_C.SSL_set_fd.argtypes = _C.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
_C.SSL_write.argtypes = _C.SSL_read.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]


class OpenSSLClient:
    """A connection to a port of this machine. What fails raises ConnectionError."""

    def __init__(self, port: int, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
        # Blocking for OpenSSL too, and for so long only.
        self._socket.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, int(WAIT_SECONDS).to_bytes(8, "little") + bytes(8))
        self._context = _C.SSL_CTX_new(_C.TLS_client_method())
        _C.SSL_CTX_ctrl(self._context, _SET_MAX_PROTO_VERSION, newest.value, None)
        self._ssl = _C.SSL_new(self._context)
        _C.SSL_set_fd(self._ssl, self._socket.fileno())
        if _C.SSL_connect(self._ssl) != 1:
            self.close()
            raise ConnectionError("no handshake")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        if _C.SSL_write(self._ssl, data, len(data)) != len(data):
            raise ConnectionError("not sent")

    def read(self) -> bytes:
        """Some bytes; b"" at any end."""
        buffer = ctypes.create_string_buffer(65536)
        return buffer.raw[: max(_C.SSL_read(self._ssl, buffer, len(buffer)), 0)]

    def update_keys(self, *, requested: bool) -> None:
        """Send one KeyUpdate (RFC 8446 section 4.6.3)."""
        kind = _UPDATE_REQUESTED if requested else _UPDATE_NOT_REQUESTED
        if _C.SSL_key_update(self._ssl, kind) != 1 or _C.SSL_do_handshake(self._ssl) != 1:
            raise ConnectionError("no KeyUpdate")

    def renegotiate(self) -> bool:
        """Ask for another handshake (RFC 5246 section 7.4.1.1); whether there was one."""
        return bool(_C.SSL_renegotiate(self._ssl) == 1 and _C.SSL_do_handshake(self._ssl) == 1 and self.read())

    def close(self) -> None:
        if self._ssl:
            _C.SSL_free(self._ssl)
            _C.SSL_CTX_free(self._context)
            self._ssl = None
        self._socket.close()

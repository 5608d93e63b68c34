"""Password hashes: bcrypt, SHA-2 crypt and yescrypt by the system's libcrypt (libxcrypt), Argon2id by `cryptography`.

Strategy: the form of a hash is checked when it is read, and so is its cost: a single login must not occupy a thread for
long. Both libraries release the interpreter while they compute.
"""

from __future__ import annotations

import ctypes
import hmac
import re
import secrets
from functools import lru_cache
from typing import Any, Final, Literal, get_args

Algorithm = Literal["bcrypt", "argon2id", "sha512"]
ALGORITHMS: Final = get_args(Algorithm)

BCRYPT_BYTES: Final = 72
"""Bytes of a password that bcrypt takes into account."""

_BASE64: Final = "[./A-Za-z0-9]"
_BCRYPT: Final = re.compile(rf"\$2[aby]\$([0-9]{{2}})\${_BASE64}{{53}}")
_SHA2: Final = re.compile(rf"\$(?:5|6)\$(?:rounds=([0-9]+)\$)?[^$:]{{0,16}}\$(?:{_BASE64}{{43}}|{_BASE64}{{86}})")
_YESCRYPT: Final = re.compile(rf"\$y\${_BASE64}{{3,}}\${_BASE64}{{0,86}}\${_BASE64}{{43}}")
_ARGON2ID: Final = re.compile(
    r"\$argon2id\$v=19\$m=([0-9]{1,9}),t=([0-9]{1,9}),p=[0-9]{1,3}\$[A-Za-z0-9+/]{11,}\$[A-Za-z0-9+/]{22,}"
)
_MOST_BCRYPT: Final = 15
_MOST_ROUNDS: Final = 5_000_000
_MOST_KIB_ROUNDS: Final = 4 << 20
_COSTLY: Final = "its cost would keep a processor busy for seconds"

_UNSAFE: Final = (
    ("$apr1$", "Apache's MD5"),
    ("$1$", "MD5"),
    ("{SHA}", "SHA-1 without salt"),
    ("{SSHA}", "SHA-1"),
    ("{PLAIN}", "a plain password"),
)

# No file may have such a hash: check() refuses it.
_QUICK: Final = "$quick$"
_QUICK_KEY: Final = secrets.token_bytes(32)

_LIBRARIES: Final = ("libcrypt.so.2", "libcrypt.so.1", None)
# That of libxcrypt has 32 KiB, glibc's had 128 KiB.
_CRYPT_DATA_BYTES: Final = 1 << 18

_BCRYPT_COST: Final = 12
_SHA512_ROUNDS: Final = 600_000
_SALT: Final = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def check(stored: str) -> None:
    """Raises ValueError, with a text for the operator, for a hash that cannot be used; the text does not have it."""
    for beginning, name in _UNSAFE:
        if stored.startswith(beginning):
            raise ValueError(f"{name} ({beginning}) is not safe")
    if found := _ARGON2ID.fullmatch(stored):
        if int(found[1]) * int(found[2]) > _MOST_KIB_ROUNDS:
            raise ValueError(_COSTLY)
        try:
            _argon2id()
        except ImportError:
            raise ValueError("Argon2 needs version 45 of the Python package cryptography, or later") from None
        return
    if not (_BCRYPT.fullmatch(stored) or _SHA2.fullmatch(stored) or _YESCRYPT.fullmatch(stored)):
        raise ValueError("not a hash of bcrypt, SHA-2 crypt, yescrypt or Argon2id")
    bcrypt, sha2 = _BCRYPT.fullmatch(stored), _SHA2.fullmatch(stored)
    if (bcrypt and int(bcrypt[1]) > _MOST_BCRYPT) or (sha2 and int((sha2[1] or "0")[:9]) > _MOST_ROUNDS):
        raise ValueError(_COSTLY)
    _crypt_r()


def verify(stored: str, password: bytes) -> bool:
    """Whether a hash that was checked is a password's. Takes up to some seconds."""
    if stored.startswith(_QUICK):
        return hmac.compare_digest(quick(password), stored)
    if stored.startswith("$argon2id$"):
        from cryptography.exceptions import InvalidKey

        try:
            _argon2id().verify_phc_encoded(password, stored)
        except (InvalidKey, ValueError):
            return False
        return True
    return hmac.compare_digest(_crypt(password, stored.encode("ascii")), stored.encode("ascii"))


def quick(password: bytes) -> str:
    """A hash, for this process only, of a password that stands in a file as it is: no work can protect it."""
    return _QUICK + hmac.digest(_QUICK_KEY, password, "sha256").hex()


def make(password: bytes, algorithm: Algorithm) -> str:
    """A new hash. Raises ValueError for a password that the algorithm does not take."""
    match algorithm:
        case "bcrypt":
            if len(password) > BCRYPT_BYTES:
                raise ValueError(f"bcrypt takes passwords of up to {BCRYPT_BYTES} bytes: choose another --algorithm")
            # Four bits of the last character are not part of the salt.
            return _made(password, f"$2y${_BCRYPT_COST}${_letters(21)}{secrets.choice('.Oeu')}")
        case "sha512":
            return _made(password, f"$6$rounds={_SHA512_ROUNDS}${_letters(16)}$")
        case "argon2id":
            try:
                kind = _argon2id()
            except ImportError:
                raise ValueError("Argon2 needs version 45 of the Python package cryptography, or later") from None
            # The least that OWASP's Password Storage Cheat Sheet recommends.
            made: str = kind(
                salt=secrets.token_bytes(16), length=32, iterations=2, lanes=1, memory_cost=19456
            ).derive_phc_encoded(password)
            return made


def _letters(count: int) -> str:
    return "".join(secrets.choice(_SALT) for _ in range(count))


def _made(password: bytes, setting: str) -> str:
    made = _crypt(password, setting.encode("ascii")).decode("ascii")
    if not made.startswith(setting[:3]):
        raise ValueError("the system's libcrypt does not know this algorithm")
    return made


def _crypt(password: bytes, setting: bytes) -> bytes:
    """crypt(3); b"" or b"*0" if it fails."""
    return _crypt_r()(password, setting, ctypes.create_string_buffer(_CRYPT_DATA_BYTES)) or b""


@lru_cache(maxsize=1)
def _crypt_r() -> Any:
    """Raises ValueError if there is none."""
    for name in _LIBRARIES:
        try:
            function = ctypes.CDLL(name).crypt_r
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_char_p
        function.argtypes = ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p
        return function
    raise ValueError("the system has no libcrypt (libxcrypt)")


@lru_cache(maxsize=1)
def _argon2id() -> Any:
    """Raises ImportError."""
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    if not hasattr(Argon2id, "verify_phc_encoded"):
        raise ImportError
    return Argon2id

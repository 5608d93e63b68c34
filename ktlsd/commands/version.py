"""`ktlsd --version`: ktlsd, the OpenSSL that it finds and its kTLS, and the kernel's, a line for each.

Strategy: it only looks. The doctor asks the kernel for the tls ULP, which loads the module where the process may; here
the kernel's list of loaded ones is read. A missing part is a word in its line, and no error.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

from ktlsd import __version__
from ktlsd.config.printable import one_line
from ktlsd.openssl.errors import LibraryError
from ktlsd.ssl_ffi import Library

_KNOWN_ULPS: Final = Path("/proc/sys/net/ipv4/tcp_available_ulp")


def version_text(libssl: str | None) -> str:
    """Three lines, the first of them only `ktlsd X.Y.Z`; `libssl` is as in Library."""
    return "\n".join((f"ktlsd {__version__}", _openssl(libssl), _kernel()))


def _openssl(libssl: str | None) -> str:
    try:
        library = Library(libssl)
    except LibraryError as error:
        return f"OpenSSL: {one_line(str(error))}"
    state = "compiled in" if library.ktls_compiled_in else "not compiled in (OPENSSL_NO_KTLS)"
    return f"{library.version_text} ({library.path}), kTLS {state}"


def _kernel() -> str:
    try:
        present = "tls" in _KNOWN_ULPS.read_text(encoding="ascii").split()
    except OSError as error:
        state = f"tls ULP unknown ({_KNOWN_ULPS}: {error.strerror})"
    else:
        state = f"tls ULP {'loaded' if present else 'not loaded (`ktlsd doctor` tells what to do)'}"
    return f"{platform.system()} {platform.release()}, {state}"

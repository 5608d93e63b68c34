"""The lists of ciphers and groups that a configuration chooses: names unknown to OpenSSL, and ciphers without kTLS.

Strategy: OpenSSL leaves unknown names of a list out without a word, so it is asked about each by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

from ktlsd.config.options import Settings
from ktlsd.openssl.errors import ContextError
from ktlsd.ssl_ffi import Context, Library
from ktlsd.tls.ktls import Support, is_carried
from ktlsd.tls.policy import allowed, policy_of


def complaints(library: Library, settings: Settings) -> Iterator[tuple[str, str]]:
    """Keys whose lists OpenSSL does not take, and why."""
    for name in re.split("[:, ]+", settings.tls_ciphers or ""):
        # These take away, or change the order.
        if name and name[0] not in "!-+@" and not _takes(partial(Context, library, ciphers=allowed(name))):
            yield "tls_ciphers", f"OpenSSL has no cipher {name} for a server with a certificate: see openssl ciphers -v"
    for name in (settings.tls_ciphersuites or "").split(":"):
        if name and not _takes(partial(Context, library, ciphersuites=name)):
            yield "tls_ciphersuites", f"OpenSSL has no cipher suite {name}: see openssl ciphers -s -tls1_3"
    for name in re.split("[:/]", settings.tls_groups or ""):
        # OpenSSL 3.5: a group that may be unknown, and signs of preference.
        if name and not name.startswith("?") and not _takes(partial(Context, library, groups=(name.strip("*"),))):
            yield "tls_groups", f"OpenSSL has no group {name}: write names such as X25519:secp256r1"
    for key in ("tls_ciphers", "tls_ciphersuites", "tls_groups"):
        if getattr(settings, key) is None:
            continue
        chosen = policy_of(Settings(**{key: getattr(settings, key)}))
        context = partial(
            Context, library, ciphers=chosen.ciphers, ciphersuites=chosen.ciphersuites, groups=chosen.groups
        )
        if not _takes(context):
            yield key, f"OpenSSL takes nothing of the list {getattr(settings, key)}"


def describe(context: Context, settings: Settings, support: Support) -> str:
    """The line for the start about chosen ciphers that kTLS never carries; "" if there are none."""
    if not support.engages or (settings.tls_ciphers is None and settings.tls_ciphersuites is None):
        return ""
    without = [name for name in context.ciphers() if not is_carried(name)]
    if not without:
        return ""
    keys = " and ".join(key for key in ("tls_ciphers", "tls_ciphersuites") if getattr(settings, key) is not None)
    return f"{keys}: kTLS carries no {', '.join(without)}: connections with these are encrypted in user space"


def _takes(make: Callable[[], Context]) -> bool:
    try:
        make().close()
    except ContextError:
        return False
    return True

"""The certificate that a worker shows to an ACME server which asks for one by tls-alpn-01 (RFC 8737).

Strategy: the client that orders writes it to the state folder, where any worker finds it by the server name of the
handshake. Each such handshake has a context of its own, without kTLS and tickets; none comes near those of the sites.
"""

from __future__ import annotations

from pathlib import Path

from ktlsd import alpn
from ktlsd.acme.folder import file_name
from ktlsd.openssl.errors import PairError
from ktlsd.ssl_ffi import Context, Library, Pair


def challenge_context(library: Library, folder: Path, name: str | None) -> Context | None:
    """The context for one handshake that asks for `name`, which the caller closes; None if there is no such challenge.

    Reads a small file of the state folder. Raises ContextError, OSError.
    """
    if name is None or alpn.ACME_ADDRESS is None:
        return None
    path = folder / f"{file_name(name)}.pem"
    if not path.exists():
        return None
    try:
        pair = Pair(library, str(path), str(path))
    except PairError:
        # It was removed meanwhile.
        return None
    try:
        context = Context(library, ktls=False)
        try:
            context.use_pair(pair)
            context.use_no_tickets()
            context.choose_protocols_by(alpn.ACME_ADDRESS)
        except BaseException:
            context.close()
            raise
        return context
    finally:
        pair.close()

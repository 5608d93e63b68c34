"""What kTLS does here with the certificates in force, in a few words, before anything is served.

Strategy: a handshake of each protocol on loopback (ktls_probe.py) tells it; --ktls require refuses to go on without.
"""

from __future__ import annotations

from ktlsd.config.refusal import Refusal, cause
from ktlsd.config.values import Mode
from ktlsd.openssl.errors import TLSError
from ktlsd.ssl_ffi import Context, Library
from ktlsd.tls import ktls_probe
from ktlsd.tls.ktls import Direction, Support, explain
from ktlsd.tls.pairs import PROTOCOLS, probing_client


def support(library: Library, mode: Mode) -> Support:
    """What OpenSSL and the kernel have of kTLS. Raises Refusal."""
    try:
        return ktls_probe.support(library, mode)
    except OSError as error:
        raise Refusal(f"cannot try kTLS on loopback ({cause(error)}): bring the interface lo up") from error


def describe(library: Library, context: Context, support: Support) -> str:
    """The state with the certificates of `context`. Raises Refusal: also where kTLS is required and there is none."""
    states, engaged, tx = [], False, None
    for name, version in (protocol for protocol in PROTOCOLS if protocol[1] >= context.oldest):
        client = probing_client(library, version)
        try:
            handshake = ktls_probe.loopback_handshake(context, client)
        except TLSError as error:
            # A key may be good for one of them: pairs.py has tried that there is one.
            states.append(f"{name} has no handshake with this certificate ({error})")
            continue
        except OSError as error:
            raise Refusal(f"no {name} handshake with this certificate on loopback: {cause(error)}") from error
        finally:
            client.close()
        engaged |= handshake.ktls_tx
        tx, rx = (explain(support, handshake, direction) for direction in Direction)
        states.append(f"{name} tx={tx} rx={rx}")
    if tx is None:
        raise Refusal(f"no handshake with this certificate on loopback: {'; '.join(states)}")
    if support.mode is Mode.REQUIRE and not engaged:
        raise Refusal(f"--ktls require, but sends cannot be offloaded here: {tx}: `ktlsd doctor` tells what to do")
    hint = "" if engaged or support.mode is Mode.OFF else "; `ktlsd doctor` tells what to do"
    return f"{library.version_text} ({library.path}); kTLS: {', '.join(states)}{hint}"

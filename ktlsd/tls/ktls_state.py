"""The line at the start about kTLS on this machine, with the certificates in force.

Strategy: a handshake of each protocol on loopback (ktls_probe.py); --ktls require refuses the start without kTLS.
"""

from __future__ import annotations

from ktlsd.config.refusal import Refusal, cause
from ktlsd.config.values import Mode
from ktlsd.openssl.errors import TLSError
from ktlsd.ssl_ffi import Context, Library
from ktlsd.tls import ktls_probe
from ktlsd.tls.ktls import Direction, Path, Support, explain
from ktlsd.tls.pairs import PROTOCOLS, probing_client


def support(library: Library, mode: Mode) -> Support:
    """The kTLS of OpenSSL and the kernel. Raises Refusal."""
    try:
        return ktls_probe.support(library, mode)
    except OSError as error:
        raise Refusal(f"cannot try kTLS on loopback ({cause(error)}): bring the interface lo up") from error


def describe(library: Library, context: Context, support: Support) -> str:
    """The line for the start, with the certificates of `context`.

    Raises Refusal, also if kTLS is required and sends cannot be offloaded.
    """
    paths: dict[str, list[str]] = {}
    failed, engaged, tx = [], False, None
    for name, version in (protocol for protocol in PROTOCOLS if protocol[1] >= context.oldest):
        client = probing_client(library, version)
        try:
            handshake = ktls_probe.loopback_handshake(context, client)
        except TLSError as error:
            # A key may be good for one of them: pairs.py has tried that there is one.
            failed.append(f"{name} has no handshake with this certificate ({error})")
            continue
        except OSError as error:
            raise Refusal(f"no {name} handshake with this certificate on loopback: {cause(error)}") from error
        finally:
            client.close()
        engaged |= handshake.ktls_tx
        tx, rx = (explain(support, handshake, direction) for direction in Direction)
        paths.setdefault(_both(tx, rx), []).append(name)
    if tx is None:
        raise Refusal(f"no handshake with this certificate on loopback: {'; '.join(failed)}")
    if support.mode is Mode.REQUIRE and not engaged:
        raise Refusal(f"--ktls require, but sends cannot be offloaded here: {tx}: `ktlsd doctor` tells what to do")
    hint = "" if engaged or support.mode is Mode.OFF else "; `ktlsd doctor` tells what to do"
    states = [*(f"{' and '.join(names)} {both}" for both, names in paths.items()), *failed]
    return f"kTLS: {', '.join(states)}; {library.version_text} ({library.path}){hint}"


def _both(tx: Path, rx: Path) -> str:
    """Both paths, with a reason that they share once."""
    return f"tx={tx.offload.value} rx={rx}" if tx.reason is rx.reason else f"tx={tx} rx={rx}"

"""The line at the start about kTLS on this machine, with the certificates in force.

Strategy: a handshake of each protocol on loopback (ktls_probe.py); --ktls require refuses the start without kTLS.
"""

from __future__ import annotations

from ktlsd.config.refusal import Refusal, cause
from ktlsd.config.values import Mode
from ktlsd.openssl.algorithms import TLS_1_2
from ktlsd.openssl.errors import TLSError
from ktlsd.ssl_ffi import Context, Library
from ktlsd.tls import ktls_probe, nic
from ktlsd.tls.ktls import Path, Support
from ktlsd.tls.pairs import PROTOCOLS, probing_client
from ktlsd.tls.policy import Policy


def support(library: Library, mode: Mode) -> Support:
    """The kTLS of OpenSSL and the kernel. Raises Refusal."""
    try:
        return ktls_probe.support(library, mode)
    except OSError as error:
        raise Refusal(f"cannot try kTLS on loopback ({cause(error)}): bring the interface lo up") from error


def describe(library: Library, context: Context, support: Support, policy: Policy) -> str:
    """The line for the start, with the certificates of `context` and its offer.

    Raises Refusal, also if kTLS is required and sends cannot be offloaded.
    """
    paths: dict[str, list[str]] = {}
    failed, engaged, tx = [], False, None
    for name, version in (protocol for protocol in PROTOCOLS if protocol[1] >= context.oldest):
        client = probing_client(library, version, policy)
        try:
            handshake, tx, rx = ktls_probe.loopback_paths(context, client, support)
        except TLSError as error:
            # A key may be good for one of them: pairs.py has tried that there is one.
            failed.append(f"{name} has no handshake with this certificate ({error})")
            continue
        except OSError as error:
            raise Refusal(f"no {name} handshake with this certificate on loopback: {cause(error)}") from error
        finally:
            client.close()
        engaged |= handshake.ktls_tx
        paths.setdefault(_both(tx, rx), []).append(name)
    if tx is None:
        raise Refusal(f"no handshake with this certificate on loopback: {'; '.join(failed)}")
    if support.mode is Mode.REQUIRE and not engaged:
        raise Refusal(f"--ktls require, but sends cannot be offloaded here: {tx}: `ktlsd doctor` tells what to do")
    hint = ""
    if engaged:
        hint = nic.summary()
    elif support.mode is not Mode.OFF:
        hint = "`ktlsd doctor` tells what to do"
    states = [*(f"{' and '.join(names)} {both}" for both, names in paths.items()), *failed]
    return f"kTLS: {', '.join(states)}; {library.version_text} ({library.path})" + (f"; {hint}" if hint else "")


def describe_zero_copy(library: Library, context: Context, support: Support, policy: Policy) -> str:
    """The line for the start with zerocopy_sendfile: what it does, or why it does nothing. Raises Refusal."""
    lacking = _lacking(support)
    if not lacking:
        client = probing_client(library, TLS_1_2, policy)
        try:
            lacking = ktls_probe.zero_copy_refusal(context, client) or ""
        except (TLSError, OSError) as error:
            lacking = f"no TLS 1.2 handshake with this certificate on loopback: {error}"
        finally:
            client.close()
    if lacking := lacking or _no_nic():
        return f"zerocopy_sendfile has no effect: {lacking}"
    return (
        "zerocopy_sendfile: NICs read files with fs-verity, and files on squashfs, EROFS, ISO 9660 and cramfs, with no"
        " copy: a change of their storage beneath the file system could break records, mix files or"
        " weaken encryption"
    )


def describe_policy(support: Support) -> str:
    """The line for the start with tls_policy = "nic" that says why it does nothing; "" if it can do something."""
    lacking = _lacking(support) or _no_nic()
    return f'tls_policy = "nic" has no effect: {lacking}' if lacking else ""


def _lacking(support: Support) -> str:
    if support.mode is Mode.OFF:
        return "kTLS is switched off"
    return f"sends are not offloaded ({support.lacking.value})" if support.lacking is not None else ""


def _no_nic() -> str:
    if any(interface.tx == "on" for interface in nic.interfaces()):
        return ""
    return "no network interface encrypts: ethtool -K INTERFACE tls-hw-tx-offload on"


def _both(tx: Path, rx: Path) -> str:
    """Both paths, with a reason that they share once."""
    return f"tx={tx.offload.value} rx={rx}" if tx.reason is rx.reason else f"tx={tx} rx={rx}"

"""`ktlsd doctor`: the chain from kernel to cipher that kTLS needs, link by link, with the remedy for each missing
link.

Strategy: examine() tries every link for real and returns one Report; a Report prints itself for a terminal or as JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ktlsd import __version__, alpn
from ktlsd.config.console import print_output
from ktlsd.config.refusal import cause
from ktlsd.config.state import SERVICE_STATE, state_folder
from ktlsd.config.values import Mode
from ktlsd.openssl.algorithms import CIPHER_LIST, CIPHERSUITES, TLS_1_2, TLS_1_3
from ktlsd.openssl.errors import ContextError, LibraryError, TLSError
from ktlsd.ssl_ffi import Context, Library
from ktlsd.tls import ktls_probe, nic, tls_stat
from ktlsd.tls.ktls import Support
from ktlsd.tls.nic import Interface, Taken

AEAD_CIPHERS: Final = {
    "TLSv1.3": (
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
        "TLS_AES_128_CCM_SHA256",
        "TLS_AES_128_CCM_8_SHA256",
    ),
    "TLSv1.2": (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-ECDSA-AES128-CCM",
        "ECDHE-ECDSA-AES256-CCM",
        "ECDHE-ECDSA-AES128-CCM8",
        "ECDHE-ECDSA-AES256-CCM8",
        "ECDHE-ECDSA-ARIA128-GCM-SHA256",
        "ECDHE-ECDSA-ARIA256-GCM-SHA384",
    ),
}
_VERSIONS: Final = {"TLSv1.2": TLS_1_2, "TLSv1.3": TLS_1_3}
# openat2 came with 5.6; kTLS TX for TLS 1.3 with 5.1, RX with 5.2, ChaCha20-Poly1305 with 5.11.
_OLDEST_KERNEL: Final = (5, 6)
_MODULE: Final = "kernel/net/tls/tls.ko"
_LOAD_AT_BOOT: Final = "at every boot: echo tls > /etc/modules-load.d/ktlsd.conf"


@dataclass(frozen=True, slots=True)
class Link:
    """One link of the chain; `advice` says what to do when it is missing."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    needed: bool = True
    """Whether sends are not offloaded without it."""


@dataclass(frozen=True, slots=True)
class CipherRow:
    """The kTLS of one protocol and cipher, by a handshake on loopback; `error` if it failed."""

    protocol: str
    cipher: str
    tx: str
    tx_reason: str | None
    rx: str
    rx_reason: str | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class NicRow:
    """The path of one protocol and cipher on connections over one interface, by keys that its device was given."""

    interface: str
    protocol: str
    cipher: str
    tx: str
    rx: str


@dataclass(frozen=True, slots=True)
class Report:
    """All that the doctor found."""

    ktlsd: str
    links: tuple[Link, ...]
    ciphers: tuple[CipherRow, ...]
    interfaces: tuple[Interface, ...]
    nics: tuple[NicRow, ...]
    counters: dict[str, int] | None
    sends_offloaded: bool

    def to_json(self) -> str:
        named = [dict(zip(("name", "tx_offload", "rx_offload"), row, strict=True)) for row in self.interfaces]
        return json.dumps(dataclasses.asdict(self) | {"interfaces": named}, indent=2)

    def to_text(self) -> str:
        """For a terminal: no line depends on colour."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        width = max(len(link.name) for link in self.links)
        for link in self.links:
            answer = "yes" if link.ok else "NO" if link.needed else "no"
            yield f"{answer:3}  {link.name:{width}}  {link.found}"
            if not link.ok:
                yield f"     {'':{width}}  -> {link.advice}"
        if self.ciphers:
            yield ""
            width = max(len(row.cipher) for row in self.ciphers)
            yield f"{'protocol':8}  {'cipher':{width}}  {'TX':8}  {'RX':8}  why not"
            for row in self.ciphers:
                reasons = [
                    f"TX: {row.tx_reason}" if row.tx_reason else "",
                    f"RX: {row.rx_reason}" if row.rx_reason else "",
                ]
                if row.tx_reason == row.rx_reason:
                    reasons = [row.tx_reason or ""]
                why = row.error or "; ".join(filter(None, reasons))
                yield f"{row.protocol:8}  {row.cipher:{width}}  {row.tx:8}  {row.rx:8}  {why}".rstrip()
        if self.nics:
            yield ""
            width = max(9, *(len(nic_row.interface) for nic_row in self.nics))
            yield f"{'interface':{width}}  {'protocol':8}  {'cipher':17}  {'TX':8}  RX"
            for nic_row in self.nics:
                name, protocol, cipher, tx, rx = dataclasses.astuple(nic_row)
                yield f"{name:{width}}  {protocol:8}  {cipher:17}  {tx:8}  {rx}"
        yield ""
        if self.interfaces:
            width = max(9, *(len(interface.name) for interface in self.interfaces))
            yield f"{'interface':{width}}  tls-hw-tx-offload  tls-hw-rx-offload"
            for interface in self.interfaces:
                yield f"{interface.name:{width}}  {interface.tx:17}  {interface.rx}"
        else:
            yield "no network interface but loopback"
        yield ""
        if self.counters is None:
            yield f"no {tls_stat.TLS_STAT}: the tls module is not loaded"
        else:
            yield f"{tls_stat.TLS_STAT}: " + ", ".join(f"{name} {value}" for name, value in self.counters.items())
        yield ""
        yield f"sends are {'' if self.sends_offloaded else 'NOT '}offloaded to the kernel"


def run(libssl: str | None, *, as_json: bool) -> int:
    """Examine this machine and print the report; 0 when sends are offloaded, 1 when not."""
    report = examine(libssl)
    print_output(report.to_json() if as_json else report.to_text())
    return 0 if report.sends_offloaded else 1


def examine(libssl: str | None = None) -> Report:
    """Try every link. A missing one never hides those that can still be tried."""
    links = [_kernel()]
    try:
        ulp = ktls_probe.has_ulp()
    except OSError as error:
        ulp = False
        links.append(Link("loopback", False, f"TCP on loopback fails: {error}", "bring it up: ip link set lo up"))
    links.append(_ulp(ulp))
    ciphers: tuple[CipherRow, ...] = ()
    interfaces = tuple(interface for interface in nic.interfaces() if interface.name != "lo")
    try:
        library = Library(libssl)
    except LibraryError as error:
        links.append(Link("OpenSSL", False, str(error), "install OpenSSL 3.0 or later"))
    else:
        links.append(Link("OpenSSL", True, f"{library.version_text} ({library.path})"))
        links.append(_compiled_in(library))
        support = Support(Mode.AUTO, library.version, library.ktls_compiled_in, ulp)
        # `cryptography` loads the system's libcrypto: --libssl comes first.
        from ktlsd.tls.certificate import localhost_certificate

        with tempfile.TemporaryDirectory(prefix="ktlsd-doctor-") as folder:
            certificate = os.fspath(localhost_certificate(Path(folder)))
            ciphers = tuple(_ciphers(library, support, certificate))
            links.append(_handshakes(ciphers))
            links.append(_sendfile(library, certificate, offloaded=any(row.tx != "none" for row in ciphers)))
            links.append(_zero_copy(library, certificate, interfaces))
            links.append(_compression(library, certificate))
    nics, taken = _nics(interfaces)
    links += (_device(interfaces, taken), _alpn(), *_orders())
    sends = next((link.ok for link in links if link.name == _SENDFILE), False)
    return Report(__version__, tuple(links), ciphers, interfaces, nics, tls_stat.counters(), sends)


_SENDFILE: Final = "SSL_sendfile"


def _kernel() -> Link:
    release = platform.release()
    match = re.match(r"(\d+)\.(\d+)", release)
    new_enough = match is not None and (int(match[1]), int(match[2])) >= _OLDEST_KERNEL
    return Link("kernel", new_enough, f"Linux {release}", "ktlsd needs Linux 5.6 or later (openat2)")


def _ulp(present: bool) -> Link:
    if present:
        return Link("tls ULP", True, 'the kernel accepts TCP_ULP "tls"')
    modules = Path("/lib/modules") / platform.release()
    if any((modules / (_MODULE + ending)).exists() for ending in ("", ".xz", ".zst", ".gz")):
        return Link("tls ULP", False, "the module is there but not loaded", f"modprobe tls (as root); {_LOAD_AT_BOOT}")
    if modules.exists():
        found = f"no module tls in {modules}"
        return Link("tls ULP", False, found, "use a kernel built with CONFIG_TLS; every Debian and Ubuntu kernel is")
    advice = "in a container: modprobe tls on the host; else use a kernel built with CONFIG_TLS"
    return Link("tls ULP", False, f"the kernel has none, and {modules} is not there to load it from", advice)


def _compiled_in(library: Library) -> Link:
    found = "compiled in" if library.ktls_compiled_in else "compiled without (OPENSSL_NO_KTLS)"
    return Link(
        "kTLS in OpenSSL", library.ktls_compiled_in, found, "use the distribution's OpenSSL, or build with enable-ktls"
    )


@contextlib.contextmanager
def _contexts(library: Library, certificate: str, protocol: str, cipher: str) -> Iterator[tuple[Context, Context]]:
    version = _VERSIONS[protocol]
    ciphers, ciphersuites = (CIPHER_LIST, cipher) if protocol == "TLSv1.3" else (cipher, CIPHERSUITES)
    make = functools.partial(
        Context, library, oldest=version, newest=version, ciphers=ciphers, ciphersuites=ciphersuites
    )
    server = make()
    try:
        server.use_certificate(certificate, certificate)
        client = make(server=False, ktls=False)
        try:
            yield server, client
        finally:
            client.close()
    finally:
        server.close()


def _ciphers(library: Library, support: Support, certificate: str) -> Iterator[CipherRow]:
    for protocol, ciphers in AEAD_CIPHERS.items():
        for cipher in ciphers:
            try:
                with _contexts(library, certificate, protocol, cipher) as (server, client):
                    _, tx, rx = ktls_probe.loopback_paths(server, client, support)
            except (ContextError, TLSError, OSError) as error:
                yield CipherRow(protocol, cipher, "none", None, "none", None, f"no handshake: {error}")
                continue
            reasons = [path.reason.value if path.reason else None for path in (tx, rx)]
            yield CipherRow(protocol, cipher, tx.offload.value, reasons[0], rx.offload.value, reasons[1])


def _handshakes(rows: tuple[CipherRow, ...]) -> Link:
    engaged = [row for row in rows if row.tx != "none"]
    found = f"TX engages for {len(engaged)} of {len(rows)} AEAD ciphers, RX for {sum(row.rx != 'none' for row in rows)}"
    reasons = sorted({row.tx_reason or row.error or "" for row in rows if row.tx == "none"})
    return Link("handshakes", bool(engaged), found, "; ".join(reasons))


def _sendfile(library: Library, certificate: str, *, offloaded: bool) -> Link:
    advice = "see the first link above that says NO"
    if not offloaded:
        return Link(_SENDFILE, False, "cannot be used without kTLS TX", advice)
    try:
        with _contexts(library, certificate, "TLSv1.3", AEAD_CIPHERS["TLSv1.3"][0]) as (server, client):
            arrived = ktls_probe.sends_files(server, client)
    except (ContextError, TLSError, OSError) as error:
        return Link(_SENDFILE, False, f"failed: {error}", advice)
    found = (
        "a file sent over loopback arrived unchanged"
        if arrived
        else "a file sent over loopback did not arrive as it is"
    )
    return Link(_SENDFILE, arrived, found, "report this: kernel and OpenSSL disagree")


def _compression(library: Library, certificate: str) -> Link:
    advice = "full handshakes take some hundred bytes more: it needs OpenSSL 3.2, built with zlib, brotli or zstd"
    with contextlib.closing(Context(library)) as context:
        context.use_certificate(certificate, certificate)
        algorithms = context.compressed_sizes()
    found = f"by {', '.join(algorithms)}" if algorithms else "OpenSSL has none"
    return Link("certificate compression", bool(algorithms), found, advice, needed=False)


def _zero_copy(library: Library, certificate: str, interfaces: tuple[Interface, ...]) -> Link:
    """Off unless zerocopy_sendfile asks for it: this says whether it would have an effect."""
    name = "zero-copy sendfile"
    try:
        with _contexts(library, certificate, "TLSv1.2", AEAD_CIPHERS["TLSv1.2"][0]) as (server, client):
            refusal = ktls_probe.zero_copy_refusal(server, client)
    except (ContextError, TLSError, OSError) as error:
        refusal = f"no handshake: {error}"
    if refusal is not None:
        return Link(name, False, refusal, "needs kTLS TX and Linux 5.19", needed=False)
    if all(interface.tx != "on" for interface in interfaces):
        advice = "nothing to do: it saves a copy only where a NIC encrypts"
        return Link(name, False, "the kernel has it, but no interface encrypts", advice, needed=False)
    found = "zerocopy_sendfile = true has it for files that can never change (docs/nic.md)"
    return Link(name, True, found, needed=False)


def _nics(interfaces: tuple[Interface, ...]) -> tuple[tuple[NicRow, ...], str]:
    """A row for each protocol and cipher of each NIC with its offload on; and the outcome in words, or why it was not
    tried."""
    rows: list[Taken] = []
    for interface in interfaces:
        if "on" in (interface.tx, interface.rx):
            try:
                rows += nic.taken_by(interface.name)
            except OSError as error:
                advice = (
                    "that needs CAP_NET_ADMIN: run it as root"
                    if error.errno == errno.EPERM
                    else f"{interface.name}: {error.strerror}"
                )
                return (), f"what it takes was not tried: {advice}"
    return tuple(NicRow(*row[:3], row.tx.value, row.rx.value) for row in rows), nic.in_words(rows)


def _alpn() -> Link:
    found = "OpenSSL can ask ktlsd for the protocol" if alpn.ADDRESS is not None else f"no callback: {alpn.REASON}"
    advice = "HTTP/2 needs it; a sandbox forbids executable memory, also from memfd_create(2)"
    return Link("ALPN", alpn.ADDRESS is not None, found, advice, needed=False)


def _orders() -> Iterator[Link]:
    """The certificates by ACME of this user's ktlsd, and of the service."""
    folders = {SERVICE_STATE}
    with contextlib.suppress(RuntimeError):
        folders.add(state_folder())
    for folder in sorted(folders):
        if not (folder / "acme").is_dir():
            continue
        from ktlsd.acme.folder import AcmeFolder
        from ktlsd.acme.words import state

        advice = "docs/certificates.md, If there is no certificate"
        try:
            for name, record in AcmeFolder(folder / "acme").records():
                yield Link("ACME", not record.failures, f"{name}: {state(record, time.time())}", advice, needed=False)
        except OSError as error:
            yield Link("ACME", False, cause(error), "ask as the user of ktlsd, or as root", needed=False)


def _device(interfaces: tuple[Interface, ...], taken: str) -> Link:
    on = [interface.name for interface in interfaces if interface.tx == "on"]
    off = [interface.name for interface in interfaces if interface.tx == "off"]
    if on:
        return Link("NIC offload", True, f"{', '.join(on)}: {taken}; the rest is the kernel's (docs/nic.md)")
    if off:
        return Link("NIC offload", False, "offered but off", f"ethtool -K {off[0]} tls-hw-tx-offload on", needed=False)
    return Link(
        "NIC offload", False, "no interface offers it", "nothing to do: the kernel encrypts in software", needed=False
    )

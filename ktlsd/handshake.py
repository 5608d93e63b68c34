"""TLS handshakes: ClientHello -> site and certificate -> handshake -> path of the bytes, kernel or user space.

Strategy: look at the ClientHello, choose the context of the site that it names, let OpenSSL shake hands, then ask the
kernel for the path. A handshake that fails is counted and logged here, and its client gets an alert or an answer.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from http import HTTPStatus
from typing import Final

import trio

from ktlsd.config.limits import Limit
from ktlsd.config.values import Mode
from ktlsd.connection import driver
from ktlsd.connection.page_cache import PageCache
from ktlsd.connection.peers import Peer
from ktlsd.connection.sni import peek_allows_tls_1_2, peek_client_hello
from ktlsd.connection.tls_transport import Transport
from ktlsd.metrics.metrics import CLIENT_CERTIFICATES, FAILED, LIMITED, Failure, count_handshake
from ktlsd.openssl.errors import ConnectionLost, PlainHTTP, TLSError
from ktlsd.openssl.results import Handshake
from ktlsd.protocol.client import Secured
from ktlsd.protocol.refusals import last_words
from ktlsd.protocol.shared import Shared
from ktlsd.service import Hosted, unknown_name
from ktlsd.tls.client_hello import NOTHING, Asked
from ktlsd.tls.ktls import Direction, Offload, Path, explain
from ktlsd.tls.nic import Nics
from ktlsd.tls.policy import FOR_NICS
from ktlsd.tls.tls_stat import Offloads

log = logging.getLogger("ktlsd")

_SPEAK_HTTPS: Final = (HTTPStatus.BAD_REQUEST, "this port speaks HTTPS, use an https:// address")


class _NoCertificate(TLSError):
    """The site that the client asked for is refused."""


class _UnknownName(TLSError):
    """No site has the name that the client asked for, and such clients are to be refused."""


class Handshakes:
    """One for each process. The creator closes it."""

    def __init__(self, shared: Shared, page_cache: PageCache) -> None:
        self._shared = shared
        self._page_cache = page_cache
        self._offloads = Offloads()
        self._nics = Nics()
        self._watch_nics()
        self._not_offloaded: dict[tuple[str, str, bool], tuple[Path, Path]] = {}
        """The paths of connections without kTLS, by what decides about them."""

    def close(self) -> None:
        self._offloads.close()
        self._nics.close()

    def settings_changed(self) -> None:
        """Another service is in force."""
        self._not_offloaded.clear()
        self._watch_nics()

    def _watch_nics(self) -> None:
        service = self._shared.service
        for_nics, by_kernel = service.settings.tls_policy == "nic", service.support.engages
        self._prefers_nic = for_nics and by_kernel
        self._tells_of_idle_nic = not for_nics and by_kernel and bool(self._nics.encrypting())

    # --- the steps of a handshake -------------------------------------------------------------------------------------

    async def complete(self, sock: socket.socket, peer: Peer, began: float) -> tuple[Transport, Secured] | None:
        """Shake hands within a time that began when the connection was accepted; the caller closes the transport.

        None once the connection is finished instead. Raises TLSError.
        """
        shared, asked, hosted = self._shared, NOTHING, self._shared.service.sites.default
        row, seconds = shared.row, shared.service.settings.limits.handshake_seconds
        transport = None
        try:
            try:
                with driver.within(seconds, began):
                    asked = await self._read_hello(sock)
                if asked.acme:
                    # A thread reads its file, and the time limit of an inline task ends with it.
                    await driver.become_task()
                    with driver.within(seconds, began):
                        if await self._answer_challenge(sock, asked.server_name, peer):
                            return None
                with driver.within(seconds, began):
                    service = shared.service
                    hosted = service.sites.of_name(asked.server_name)
                    transport = Transport(hosted.context, sock, self._page_cache, row, service.settings.limits)
                    unnamed = service.refuses_unknown_names and not service.knows(asked.server_name)
                    # OpenSSL says what is wrong with a ClientHello that is none.
                    if unnamed and asked is not NOTHING and not asked.plain_http:
                        raise _UnknownName
                    if self._prefers_nic and self._suits_nic(sock, hosted):
                        transport.allow_only_tls_1_2()
                    if not hosted.refused:
                        handshake = await transport.handshake(service.older_ticket_key(asked.ticket_key_name))
                    elif asked.server_name is None:
                        # No ticket is good for a site that is refused.
                        handshake = await transport.handshake()
                    else:
                        raise _NoCertificate
            except (trio.TooSlowError, TLSError) as error:
                if transport is None and isinstance(error, TLSError):
                    raise
                await self._end_failed(error, transport, hosted, asked, peer)
                return None
            if unnamed:
                self._count_unknown_name(asked, peer)
                await transport.finish()
                return None
            tx, rx = self._paths(sock, handshake)
            if handshake.ktls_tx and tx.offload is not Offload.SOFTWARE:
                if shared.service.settings.zerocopy_sendfile:
                    transport.use_zero_copy()
                transport.nic_encrypts = handshake.alpn == "h2" and self._nic_encrypts(sock, handshake, tx)
            if self._tells_of_idle_nic and handshake.protocol == "TLSv1.3":
                self._tell_of_idle_nic(sock, tx)
            count_handshake(row, driver.current_time() - began, handshake, tx, rx)
            secured = Secured(handshake, tx, rx, asked.server_name, hosted.context.clients)
            if secured.clients:
                outcome = "none" if handshake.client is None else "verified"
                row[CLIENT_CERTIFICATES["refused" if handshake.client_fault else outcome]] += 1
            if not self._may_go_on(peer, secured, optional=hosted.context.optional):
                await transport.finish()
                return None
            opened, transport = transport, None
            return opened, secured
        finally:
            if transport is not None:
                transport.close()

    async def _read_hello(self, sock: socket.socket) -> Asked:
        """The ClientHello on a fresh socket."""
        silent = self._shared.idle.silent
        silent[sock] = time.monotonic()
        try:
            # Peeked at, since OpenSSL does not give the name after a resumed TLS 1.2 handshake.
            return await peek_client_hello(sock, acme=self._shared.service.acme is not None)
        finally:
            silent.pop(sock, None)

    async def _answer_challenge(self, sock: socket.socket, name: str | None, peer: Peer) -> bool:
        """Show an ACME server the certificate of a challenge (RFC 8737), and end; False if there is none for this name.

        Raises TLSError.
        """
        from ktlsd.acme.challenge import challenge_context

        service = self._shared.service
        if service.acme is None:
            return False
        folder = service.acme.tls_answers
        context = await trio.to_thread.run_sync(challenge_context, service.library, folder, name)
        if context is None:
            return False
        with contextlib.closing(context), contextlib.closing(Transport(context, sock, self._page_cache)) as transport:
            await transport.handshake()
            log.info("%s ACME challenge answered for %s", peer, name)
            await transport.finish()
        return True

    def _suits_nic(self, sock: socket.socket, hosted: Hosted) -> bool:
        """Whether TLS 1.2 has a NIC encrypt for a client that could have TLS 1.3.

        Not if client certificates are demanded: TLS 1.2 shows them to everyone on the way.
        """
        if hosted.context.clients or self._nics.carrying(sock) is None:
            return False
        taken: frozenset[int] = frozenset()
        return peek_allows_tls_1_2(sock, taken.union(*(FOR_NICS.get(kind, ()) for kind in hosted.context.key_types)))

    def _nic_encrypts(self, sock: socket.socket, handshake: Handshake, tx: Path) -> bool:
        """Whether a NIC encrypts what is sent, as far as is known.

        Kernels that do not tell it to every process, those before 6.15, give NICs nothing but TLS 1.2 with AES-GCM.
        """
        if tx.offload is Offload.DEVICE:
            return True
        may_be = handshake.protocol == "TLSv1.2" and "GCM" in handshake.cipher
        return may_be and self._nics.carrying(sock) is not None

    def _tell_of_idle_nic(self, sock: socket.socket, tx: Path) -> None:
        """One line, once, if a NIC would encrypt for clients that had TLS 1.2."""
        if tx.offload not in (Offload.SOFTWARE, Offload.KERNEL):
            return
        name = self._nics.carrying(sock)
        if name is not None:
            self._tells_of_idle_nic = False
            if self._shared.kinds.is_first_beside_nic():
                log.warning(
                    "%s encrypts TLS 1.2 with AES-GCM, but clients negotiate TLS 1.3, which the kernel encrypts in"
                    ' software: for clients over %s, tls_policy = "nic" prefers TLS 1.2',
                    name,
                    name,
                )

    async def _end_failed(
        self, error: Exception, transport: Transport | None, hosted: Hosted, asked: Asked, peer: Peer
    ) -> None:
        """Count and log a handshake that failed, and send its client an alert or a response."""
        shared, row = self._shared, self._shared.row
        if transport is None or isinstance(error, trio.TooSlowError):
            seconds = shared.service.settings.limits.handshake_seconds
            row[FAILED[Failure.TIMEOUT]] += 1
            row[LIMITED[Limit.HANDSHAKE]] += 1
            log.info("%s handshake failed: not complete within %g s", peer, seconds)
        elif isinstance(error, _NoCertificate):
            row[FAILED[Failure.NO_CERTIFICATE]] += 1
            log.info("%s handshake refused: no usable certificate for %s", peer, asked.server_name)
            await transport.refuse_name()
        elif isinstance(error, _UnknownName):
            self._count_unknown_name(asked, peer)
            await transport.refuse_name()
        elif isinstance(error, ConnectionLost):
            row[FAILED[Failure.LOST]] += 1
            log.info("%s handshake failed: %s", peer, error)
        elif asked.plain_http or isinstance(error, PlainHTTP):
            row[FAILED[Failure.PLAIN_HTTP]] += 1
            log.info("%s handshake failed: plain HTTP on the HTTPS port", peer)
            date, server_field = shared.clock.date(), shared.service.server_field
            await transport.answer_plain_http(last_words(*_SPEAK_HTTPS, date=date, server_field=server_field))
        else:
            row[FAILED[Failure.NO_CERTIFICATE if hosted.refused else Failure.TLS_ERROR]] += 1
            log.info("%s handshake failed: %s", peer, error)
            await transport.end_refused()

    def _count_unknown_name(self, asked: Asked, peer: Peer) -> None:
        self._shared.row[FAILED[Failure.UNKNOWN_NAME]] += 1
        log.info("%s handshake refused: %s", peer, unknown_name(asked.server_name))

    def _may_go_on(self, peer: Peer, secured: Secured, *, optional: bool) -> bool:
        """True if the paths of a connection and its client certificate, which may be `optional`, are allowed; logs
        both."""
        handshake, tx, row = secured.handshake, secured.tx, self._shared.row
        first = self._shared.kinds.is_new(handshake.protocol, handshake.cipher, tx, secured.rx)
        level = logging.INFO if first else logging.DEBUG
        if log.isEnabledFor(level):
            cipher, resumed = handshake.cipher, " resumed" if handshake.resumed else ""
            whose = "" if handshake.client is None else f" client={handshake.client or '(no subject)'}"
            spoken = "" if handshake.alpn is None else f" alpn={handshake.alpn}"
            log.log(
                *(level, "%s %s %s%s ktls tx=%s rx=%s%s%s"),
                *(peer, handshake.protocol, cipher, resumed, tx, secured.rx, whose, spoken),
            )
        if secured.clients and handshake.client is None and not optional:
            row[FAILED[Failure.CLIENT_CERTIFICATE]] += 1
            log.warning("%s closed: its session has no verified client certificate", peer)
        elif self._shared.service.support.mode is Mode.REQUIRE and tx.reason is not None:
            row[FAILED[Failure.KTLS_REQUIRED]] += 1
            log.warning("%s closed: --ktls require, and sends are not offloaded: %s", peer, tx.reason.value)
        else:
            return True
        return False

    # --- the path of the bytes ----------------------------------------------------------------------------------------

    def _paths(self, sock: socket.socket, handshake: Handshake) -> tuple[Path, Path]:
        """The path of sent and of received bytes."""
        if handshake.ktls_tx or handshake.ktls_rx:
            return self._log_paths(sock, handshake)
        key = handshake.protocol, handshake.cipher, handshake.max_fragment_length
        if (paths := self._not_offloaded.get(key)) is None:
            paths = self._not_offloaded[key] = self._log_paths(sock, handshake)
        return paths

    def _log_paths(self, sock: socket.socket, handshake: Handshake) -> tuple[Path, Path]:
        support = self._shared.service.support
        tx, rx = (
            explain(support, handshake, direction, self._offloads.of(sock, direction) if engaged else Offload.NONE)
            for direction, engaged in ((Direction.TX, handshake.ktls_tx), (Direction.RX, handshake.ktls_rx))
        )
        return tx, rx

"""The service of a process from its settings, with the kTLS of this machine tried; and its session ticket keys."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from msgspec.structs import replace

from ktlsd.config.options import Settings, by_acme
from ktlsd.config.refusal import PlacedError, SettingsError, cause
from ktlsd.config.state import state_folder
from ktlsd.process.configuration import validate_service
from ktlsd.process.privileges import Identity
from ktlsd.service import Service
from ktlsd.settings import Loaded
from ktlsd.ssl_ffi import Library
from ktlsd.tls import ktls_state, offer
from ktlsd.tls.ktls import Support
from ktlsd.tls.pairs import FaultKey
from ktlsd.tls.ticket_file import FILE, TicketFile, TicketFileError

log = logging.getLogger("ktlsd")


def make_service(
    library: Library,
    support: Support,
    identity: Identity | None,
    upgraded: Iterable[FaultKey] | None,
    loaded: Loaded,
    former: Service | None = None,
    *,
    renewing: bool = False,
) -> Service:
    """What Configuration has built (configuration.Build). `upgraded` are the faults of the process before this one, at
    an upgrade."""
    settings = loaded.settings
    support = replace(support, mode=settings.ktls)
    if by_acme(settings) and not renewing:
        from ktlsd.process import acme_folder

        acme_folder.make(loaded, identity)
    if not renewing:
        refuse_lists(library, loaded)
    with loaded.placed():
        service = Service(library, settings, support, former, renewing=renewing)
    try:
        if not renewing:
            validate_service(service, loaded, upgraded if former is None else [fault.key for fault in former.faults])
            if service.tried is not None:
                service.ktls_state = ktls_state.describe(library, service.tried, support, service.policy)
                ciphers = offer.describe(service.tried, settings, support)
                policy = ktls_state.describe_policy(support) if settings.tls_policy == "nic" else ""
                zero_copy = ""
                if settings.zerocopy_sendfile:
                    zero_copy = ktls_state.describe_zero_copy(library, service.tried, support, service.policy)
                service.tls_states = tuple(filter(None, (ciphers, policy, zero_copy)))
    except BaseException:
        service.close()
        raise
    return service


def refuse_lists(library: Library, loaded: Loaded) -> None:
    """Raise SettingsError for lists of ciphers and groups that OpenSSL does not take."""
    for key, complaint in offer.complaints(library, loaded.settings):
        raise SettingsError(f"{loaded.where((key,))}{complaint}")


def open_tickets(settings: Settings) -> TicketFile | None:
    """The session ticket keys; in memory if the state folder cannot be used. None for no tickets."""
    if not settings.session_tickets:
        return None
    if settings.ticket_keys is not None:
        try:
            return TicketFile(settings.ticket_keys)
        except TicketFileError as error:
            raise PlacedError((), "ticket_keys", f"ticket_keys {error}") from error
    try:
        folder = state_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return TicketFile(folder / FILE)
    except (TicketFileError, OSError, RuntimeError) as error:
        log.info("TLS sessions will not be resumed after a restart: %s", cause(error))
        return TicketFile(None)

"""The configuration in force, and how another one comes to be: built whole, beside the old one, or not at all.

Strategy: an error is one line and changes nothing; only certificates are loaded one by one, and an unusable one keeps
its former version. The same steps serve a single process, which builds in a thread, and the parent of
workers, which builds first so that workers reload only what can be loaded.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from ktlsd.config.listener_kind import Kind
from ktlsd.config.options import Settings, by_acme
from ktlsd.config.printable import printable
from ktlsd.config.refusal import PlacedError, Refusal, SettingsError, cause
from ktlsd.metrics.site_names import SiteNames
from ktlsd.openssl.errors import ContextError
from ktlsd.process.cores import worker_count
from ktlsd.process.listeners import https_port
from ktlsd.process.opened import Opened, Opening
from ktlsd.service import Service, name_of
from ktlsd.settings import Loaded
from ktlsd.tls.pairs import Fault, FaultKey, out_of_time, refused_for
from ktlsd.tls.ticket_file import TicketFile
from ktlsd.tls.ticket_keys import Ring

if TYPE_CHECKING:
    from ktlsd.process.acme_orders import Orders

log = logging.getLogger("ktlsd")

WATCH_SECONDS: Final = 2.0
"""Interval of looks for changed certificates."""
_ORDER_SECONDS: Final = 0.2
"""Interval of looks at an order under way."""
REPEAT_SECONDS: Final = 3600.0
"""Least interval of equal lines about a certificate, and interval of trying an unusable one again."""
RETRY_SECONDS: Final = 30.0
"""Pause after a renewal that failed as a whole, for lack of memory or descriptors."""
RESTART_ONLY: Final = ("user", "group", "libssl")
"""Keys of which a running ktlsd takes no other values."""
_OF_TICKETS: Final = ("session_tickets", "ticket_keys")

WHAT: Final = {True: "configuration", False: "certificates"}
"""The subject of a reload in log lines, by `anew`."""

_DAY: Final = 86400


class Build(Protocol):
    """Makes a service; `former` is the one that it is to replace, of which only the certificates change if `renewing`.

    Raises Refusal, ContextError, OSError and ValueError.
    """

    def __call__(self, loaded: Loaded, former: Service | None = None, *, renewing: bool = False) -> Service: ...


OpenTickets = Callable[[Settings], TicketFile | None]
_Version = tuple[int, int, int, int, int, bool] | None
_Versions = dict[Path, _Version]


class Configuration:
    """The service in force. The creator closes it."""

    def __init__(
        self,
        read: Callable[[], Loaded],
        loaded: Loaded,
        build: Build,
        open_tickets: OpenTickets,
    ) -> None:
        """`read` gives the settings as they are now, `loaded` are what it gave first.

        Raises what `build` and `open_tickets` raise.
        """
        self._read = read
        self._build = build
        self._opened: Opened | None = None
        self._opening: Opening | None = None
        """What is opened for the service that take() gets next."""
        self._tried = self._seen = _versions(loaded.settings)
        self._https_port = 443
        self._loaded = loaded
        self._sites: SiteNames | None = None
        self.alone = True
        """False if this is the parent of workers, or one of them."""
        self.quiet = False
        """True if another process logs missing folders and faults of certificates."""
        self._told: dict[Hashable, float] = {}
        """When a line was logged, in seconds of the monotonic clock."""
        self._next_report = self._next_try = time.monotonic() + REPEAT_SECONDS
        self._not_before = -math.inf
        """When a renewal may be tried, after one that failed as a whole."""
        self.service = build(loaded)
        self._open_tickets = open_tickets
        with loaded.placed():
            self._tickets = open_tickets(loaded.settings)
        self._new_tickets: TicketFile | None = None
        """Those of the service that take() gets next."""
        self._former_tickets: TicketFile | None = None
        """Closed by the next load(): a thread may have begun to read them."""
        if (ring := self.ring()) is not None:
            self.service.use_ring(ring)
        self._orders: Orders | None = None
        self._orders_by_http: bool | None = None
        """Whether http-01 is possible; None if another process orders certificates."""
        self.service.log_missing_folders()
        self._report(self.service, loaded)

    def count_by(self, sites: SiteNames) -> None:
        """Give each site of this service, and of those to come, its number in metrics."""
        self._sites = sites
        self._number_sites()

    def _number_sites(self) -> None:
        if self._sites is not None:
            for hosted in self.service.all:
                hosted.site.number = self._sites.number(name_of(hosted.site.options))

    def change_with(self, opened: Opened) -> None:
        """Let a reload change this, too."""
        self._opened = opened
        self.listeners_changed()

    def listeners_changed(self) -> None:
        """Have redirects lead to the present port, and orders use the present way."""
        if self._opened is None:
            return
        listeners = self._opened.listeners
        if any(listener.socket.fileno() < 0 for listener in listeners):
            # The server drains.
            return
        self.serve_https_on(https_port(listeners))
        http = any(listener.kind is Kind.REDIRECT for listener in listeners)
        if self._orders_by_http not in (None, http):
            self._end_orders()
            self.may_order(http=http)

    def may_order(self, *, http: bool) -> None:
        """Let this process order certificates by ACME; `http` is whether plain HTTP is served."""
        self._orders_by_http = http

    def order(self) -> bool:
        """Order certificates that are due, and see which have come; True for a new one. Waits for nothing."""
        settings, http = self.service.settings, self._orders_by_http
        if http is None or self.quiet:
            return False
        if not by_acme(settings):
            self._end_orders()
            return False
        if self._orders is None:
            from ktlsd.process.acme_orders import Orders

            self._orders = Orders(settings, http=http)
        self._orders.use(settings)
        return self._orders.tick()

    def order_seconds(self) -> float:
        """Seconds until the next call of order()."""
        return _ORDER_SECONDS if self._orders is not None and self._orders.running else WATCH_SECONDS

    def troubles(self) -> str:
        """The troubles with orders of certificates; "" for none."""
        return "" if self._orders is None else self._orders.note

    def stop_orders(self) -> None:
        """Leave orders to another process."""
        self._orders_by_http = None
        self._end_orders()

    def _end_orders(self) -> None:
        if self._orders is not None:
            self._orders.close()
            self._orders = None

    def serve_https_on(self, port: int) -> None:
        """Have redirects lead to this port of this machine, unless the settings name another."""
        self._https_port = port
        self._lead_to_https(self.service)

    def files(self) -> Iterator[Path]:
        """The files that a reload reads."""
        yield from certificate_files(self.service.settings)
        if self._loaded.document.path != Path():
            yield self._loaded.document.path
        if (tickets := self.service.settings.ticket_keys) is not None:
            yield tickets

    def settle(self) -> None:
        """Take the certificates for unchanged that this process may not read any longer, as another user."""
        now = _versions(self.service.settings)
        readable = {path for path, version in now.items() if version is not None and version[-1]}
        self._tried = self._seen = now | {path: self._tried[path] for path in readable}

    def _lead_to_https(self, service: Service) -> None:
        service.https_redirect.port = service.settings.https_port or self._https_port

    def ring(self) -> Ring | None:
        """The session ticket keys that are to be used now; None for no tickets. Raises OSError."""
        return None if self._tickets is None else self._tickets.ring()

    def load(self, *, anew: bool) -> Service | None:
        """A new service: from settings that are read `anew`, or from the same and the certificates as they are now.

        None for what cannot be served, after a line in the log. Blocks for some milliseconds; safe in a thread.
        """
        old = self.service.settings
        what = WHAT[anew]
        self._next_try = time.monotonic() + REPEAT_SECONDS
        try:
            loaded = self._read() if anew else self._loaded
            settings = loaded.settings
            with loaded.placed():
                self._refuse_changes(old, settings)
            self._close_former_tickets()
            versions = _versions(settings)
            with contextlib.ExitStack() as stack, loaded.placed():
                tickets = self._tickets_for(old, settings)
                if tickets is not None and tickets is not self._tickets:
                    stack.callback(tickets.close)
                ring = None if tickets is None else tickets.ring()
                service = self._build(loaded, self.service, renewing=not anew)
                stack.callback(service.close)
                if anew and self._opened is not None:
                    self._opening = self._opened.prepare(settings)
                stack.pop_all()
        except (Refusal, ContextError, OSError, ValueError) as error:
            if not anew:
                self._not_before = time.monotonic() + RETRY_SECONDS
            if anew or self._is_due(("failed", cause(error)), REPEAT_SECONDS):
                log.error("%s not reloaded, the old one stays in force: %s", what, cause(error))
            return None
        except Exception:
            log.exception("%s not reloaded by a defect in ktlsd, please report it", what)
            return None
        if ring is not None:
            service.use_ring(ring)
        self._new_tickets = tickets
        self._lead_to_https(service)
        service.renewed = anew or _is_renewed(service.faults, self._tried, versions)
        # Only here: certificates that changed are loaded even where another configuration, read at the same time, is
        # refused.
        self._tried = self._seen = versions
        self._loaded = loaded
        if anew and not self.quiet:
            service.log_missing_folders()
            for state in service.tls_states:
                log.warning(state)
        self._report(service, loaded)
        return service

    def _refuse_changes(self, old: Settings, new: Settings) -> None:
        """Raises PlacedError for changes that this process cannot make."""
        changed = [name for name in RESTART_ONLY if getattr(new, name) != getattr(old, name)]
        if changed:
            raise PlacedError((), changed[0], f"{', '.join(changed)}: a change needs a restart")
        if self.alone and new.workers != old.workers and worker_count(new.workers) > 1:
            complaint = "workers: a change from 1, where one process does everything, needs a restart"
            raise PlacedError((), "workers", complaint)

    def _tickets_for(self, old: Settings, new: Settings) -> TicketFile | None:
        """The session ticket keys by other settings. Raises Refusal."""
        if all(getattr(new, name) == getattr(old, name) for name in _OF_TICKETS):
            return self._tickets
        tickets = self._open_tickets(new)
        if tickets is not None and tickets.in_memory and not self.alone:
            tickets.close()
            complaint = "session_tickets: a change needs a restart if the state folder cannot be written"
            raise PlacedError((), "session_tickets", complaint)
        return tickets

    def take(self, service: Service) -> None:
        """Put a service into force; the server retires the old one."""
        self.service = service
        self._number_sites()
        if self._tickets is not self._new_tickets:
            self._former_tickets, self._tickets = self._tickets, self._new_tickets
        opening, self._opening = self._opening, None
        if self._opened is not None and opening is not None:
            self._opened.take(opening)
            self.listeners_changed()

    def certificates_changed(self) -> bool:
        """Whether certificates or keys are others than those that were loaded, or tried, last.

        False while they still change between two calls. True also when it is time to try again one that could not be
        used. Blocks shortly; safe in a thread.
        """
        now = time.monotonic()
        if now >= self._next_report:
            self._report(self.service, self._loaded)
        before, self._seen = self._seen, _versions(self.service.settings)
        if self._seen != before or now < self._not_before:
            return False
        return before != self._tried or (bool(self.service.faults) and now >= self._next_try)

    def _report(self, service: Service, loaded: Loaded) -> None:
        """Log what is wrong with certificates, each no more than once an hour, or a day if all that is wrong is its
        time."""
        self._next_report = time.monotonic() + REPEAT_SECONDS
        if self.quiet:
            return
        for fault in service.faults:
            if self._is_due(fault, REPEAT_SECONDS):
                log.error("%s", fault.line(loaded.where(fault.place)))
        now = time.time()
        for validity in service.validities:
            line = out_of_time(validity.begins, validity.ends, now)
            if line and self._is_due((*validity, line[:3]), _DAY):
                log.warning("the certificate %s of site %s %s", validity.file, validity.site, line)

    def _is_due(self, key: Hashable, seconds: float) -> bool:
        """Whether a line was not logged for so long; it counts as logged then."""
        now = time.monotonic()
        if now - self._told.get(key, -seconds) < seconds:
            return False
        # Those that are due anyhow need no room.
        self._told = {known: at for known, at in self._told.items() if now - at < _DAY}
        self._told[key] = now
        return True

    def close(self) -> None:
        self._end_orders()
        self.service.close()
        if self._tickets is not None:
            self._tickets.close()
        self._close_former_tickets()

    def _close_former_tickets(self) -> None:
        former, self._former_tickets = self._former_tickets, None
        if former is not None:
            former.close()


def validate_service(service: Service, loaded: Loaded, before: Iterable[FaultKey] | None) -> None:
    """Raise SettingsError where a start, or a reload of the configuration, is to be refused for a certificate.

    `before` are the faults of the service in force, at a reload or an upgrade.
    """
    served = any(not hosted.refused for hosted in service.all)
    fault = refused_for(service.faults, served=served, strict=loaded.settings.strict, before=before)
    if fault is not None:
        raise SettingsError(f"{loaded.where(fault.place)}{fault.text}")


def certificate_files(settings: Settings) -> Iterator[Path]:
    """The files of all certificates, keys, authorities and revocation lists."""
    sites = (settings, *settings.site)
    paths = (path for site in sites for path in (*site.cert, *site.key, site.client_ca, site.client_crl))
    return iter(dict.fromkeys(path for path in paths if path is not None))


def _is_renewed(faults: tuple[Fault, ...], before: _Versions, after: _Versions) -> bool:
    """Whether anything that changed went live."""
    changed = {printable(str(path)) for path, version in after.items() if before.get(path) != version}
    return not faults or not changed <= {file for fault in faults for file in fault.files}


def _versions(settings: Settings) -> _Versions:
    """The versions of certificates, keys and revocation lists; links are followed, so a swapped link is a change."""
    return {path: _version(path) for path in certificate_files(settings)}


def _version(path: Path) -> _Version:
    """The ctime shows another mode or owner too, by which a file becomes readable."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, *times, os.access(path, os.R_OK)

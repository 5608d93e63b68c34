"""The configuration in force, and how another one comes to be: built whole, beside the old one, or not at all.

Strategy: what is wrong is said in one line and changes nothing. The same steps serve a single process, which builds in
a thread, and the parent of workers, which builds first so that they are told of nothing that cannot be had.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ktlsd.refusal import Refusal, cause
from ktlsd.service import Service
from ktlsd.settings import Settings, SettingsError
from ktlsd.ssl_ffi import ContextError
from ktlsd.ticket_file import TicketFile
from ktlsd.ticket_keys import Ring

log = logging.getLogger("ktlsd")

WATCH_SECONDS: Final = 2.0
"""How often to look whether certificates have changed."""
RESTART_ONLY: Final = (
    *("listen", "http_listen", "backend_listen", "backend_mode", "workers", "user", "group"),
    *("ktls", "libssl", "session_tickets", "ticket_keys"),
    *("metrics_listen", "access_log", "access_log_format", "error_log"),
)
"""Keys of which a running ktlsd takes no other values."""

WHAT: Final = {True: "configuration", False: "certificates"}
"""What is read `anew`, and what is read otherwise, in the operator's words."""

Build = Callable[[Settings], Service]
OpenTickets = Callable[[Settings], TicketFile | None]
_Version = tuple[int, int, int, int] | None
_Versions = dict[Path, _Version]


class Configuration:
    """The service in force. Whoever makes one closes it."""

    def __init__(
        self, read: Callable[[], Settings], settings: Settings, build: Build, open_tickets: OpenTickets
    ) -> None:
        """`read` gives the settings as they are now, `settings` are what it gave first.

        Raises what `build` and `open_tickets` raise.
        """
        self._read = read
        self._build = build
        self._tried = self._seen = _versions(settings)
        self._https_port = 443
        self.service = build(settings)
        self._tickets = open_tickets(settings)
        if (ring := self.ring()) is not None:
            self.service.use_ring(ring)

    def serve_https_on(self, port: int) -> None:
        """Have redirects lead to this port of this machine, unless the settings name another."""
        self._https_port = port
        self._lead_to_https(self.service)

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
        try:
            settings = self._read() if anew else old
            if changed := [name for name in RESTART_ONLY if getattr(settings, name) != getattr(old, name)]:
                raise SettingsError(f"{', '.join(changed)}: a change needs a restart")
            self._tried = self._seen = _versions(settings)
            ring = self.ring()
            service = self._build(settings)
        except (Refusal, ContextError, OSError, ValueError) as error:
            log.error("%s not reloaded, the old one stays in force: %s", what, cause(error))
            return None
        except Exception:
            log.exception("%s not reloaded by a defect in ktlsd, please report it", what)
            return None
        if ring is not None:
            service.use_ring(ring)
        self._lead_to_https(service)
        return service

    def take(self, service: Service) -> None:
        """Put a service into force; whoever serves the old one retires it."""
        self.service = service
        logging.getLogger().setLevel(service.settings.log_level.upper())

    def certificates_changed(self) -> bool:
        """Whether certificates or keys are others than those that were loaded, or tried, last.

        False while they still change between two calls. Blocks shortly; safe in a thread.
        """
        before, self._seen = self._seen, _versions(self.service.settings)
        return self._seen == before != self._tried

    def close(self) -> None:
        self.service.close()
        if self._tickets is not None:
            self._tickets.close()


def _versions(settings: Settings) -> _Versions:
    """What tells the versions of certificates, keys and revocation lists; links are followed, so one swapped counts."""
    sites = (settings, *settings.site)
    paths = (path for site in sites for path in (*site.cert, *site.key, site.client_ca, site.client_crl))
    return {path: _version(path) for path in paths if path is not None}


def _version(path: Path) -> _Version:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

"""What one ktlsd serves, made from its settings: sites with their certificates, and the answers on plain HTTP.

Strategy: everything that a setting can get wrong on this machine is tried here, before anything is bound; sites that
have neither a certificate nor a demand on clients of their own share the default site's SSL_CTX. A service that another
replaced is closed by its last user.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ktlsd.head_cache import HeadCache
from ktlsd.https_redirect import HttpsRedirect
from ktlsd.ktls import Mode, Support
from ktlsd.networks import Networks
from ktlsd.options import NamedSiteOptions, SiteOptions, TlsPolicy
from ktlsd.refusal import cause
from ktlsd.settings import Settings, SettingsError, default_site
from ktlsd.site import SERVER_FIELD, Site
from ktlsd.sites import Sites
from ktlsd.ssl_ffi import TICKET_KEY_BYTES, Context, Library
from ktlsd.state import state_folder
from ktlsd.ticket_keys import SESSION_SECONDS, Ring
from ktlsd.tls_policy import POLICIES

if TYPE_CHECKING:
    # The module that makes certificates takes long to import.
    from ktlsd.certificate import Expiry

log = logging.getLogger("ktlsd")

DEFAULT_SITE: Final = "default"
"""What the site at the top level is called where names of sites are shown."""


class Hosted(Struct, frozen=True):
    """A site, and the SSL_CTX for the handshakes that ask for it."""

    site: Site
    context: Context


class Service:
    """All that outlives a server, and can be replaced while one runs. Whoever makes one closes it."""

    def __init__(self, library: Library, settings: Settings, support: Support) -> None:
        """Raises SettingsError, ContextError, and ValueError for rules that contradict themselves."""
        self.library = library
        self.support = support
        self.settings = settings
        self.notice = ""
        """What to tell the operator about a certificate that was made."""
        self.ktls_state = ""
        """What kTLS does here, where whoever made this has tried it (ktls_state.py)."""
        self.heads = HeadCache(library)
        """Answers under the rules of this service."""
        self._ring = Ring(os.urandom(TICKET_KEY_BYTES), {})
        self.expiries: tuple[Expiry, ...] = ()
        """When the certificates end; empty where no metrics are asked for."""
        self._ktls = settings.ktls is not Mode.OFF
        self._resuming: list[Context] = []
        self._users = 0
        self._retired = False
        with contextlib.ExitStack() as stack:
            self._opened = stack
            self._make(settings)
            self._opened = stack.pop_all()

    def _make(self, settings: Settings) -> None:
        default_options = default_site(settings)
        context = self._context(default_options, default_options)
        default = Hosted(self._site(default_options), context)
        named = []
        for options in settings.site:
            own = context if _handshakes_as(options, default_options) else self._context(options, default_options)
            hosted = default if options is default_options else Hosted(self._site(options), own)
            named.append((options.names, hosted))
        self.sites = Sites(default, named)
        self.all = tuple({id(hosted): hosted for hosted in (default, *(hosted for _, hosted in named))}.values())
        self.server_field = SERVER_FIELD if default_options.server_header else ()
        """For responses that no site gives."""
        self.speak_proxy = Networks(settings.proxy_protocol)
        """Whose connections begin with a PROXY header."""
        self.trusted = Networks(settings.trusted_proxies)
        """Whose fields about the client are believed."""
        self.exempt = Networks(settings.limits.exempt_clients)
        """Whose clients are not limited by network."""
        self.forwarded = settings.forwarded
        try:
            self.https_redirect = HttpsRedirect(self.library, settings.acme_challenges)
        except OSError as error:
            reason = f"acme_challenges {settings.acme_challenges}: cannot be served: {_folder_advice(error)}"
            raise SettingsError(reason) from error
        self._opened.callback(self.https_redirect.close)

    def use_ring(self, ring: Ring) -> None:
        """Take other session ticket keys from now on; those of the beginning are nobody else's."""
        if ring != self._ring:
            self._ring = ring
            for context in self._resuming:
                context.use_ticket_key(ring.current)

    def older_ticket_key(self, name: bytes | None) -> bytes | None:
        """The key by which to read a ticket, by the name in it; None for the key that makes tickets now."""
        return None if name is None else self._ring.others.get(name)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep what is open, even if retire() is called meanwhile."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._retired and not self._users:
                self.close()

    def retire(self) -> None:
        """Close as soon as nobody uses it."""
        self._retired = True
        if not self._users:
            self.close()

    def close(self) -> None:
        self._opened.close()

    def _site(self, options: SiteOptions) -> Site:
        try:
            site = Site(self.library, options)
        except OSError as error:
            raise SettingsError(f"root {options.root}: cannot be served: {_folder_advice(error)}") from error
        self._opened.callback(site.close)
        return site

    def _context(self, options: SiteOptions, default: SiteOptions) -> Context:
        name = self.settings.tls_policy
        policy = POLICIES[name]
        context = Context(self.library, ktls=self._ktls, oldest=policy.oldest, ciphers=policy.ciphers)
        self._opened.callback(context.close)
        holder = options if options.cert else default
        pairs = zip(holder.cert, holder.key, strict=True) if holder.cert else (self._own_certificate(),)
        for cert, key in pairs:
            context.use_certificate(os.fspath(cert), os.fspath(key))
            if self.settings.metrics_listen is not None:
                self._note_expiry(options, cert)
        if options.client_ca is not None:
            revoked = None if options.client_crl is None else os.fspath(options.client_crl)
            context.require_client(os.fspath(options.client_ca), options.client_names, revoked)
        if self.settings.session_tickets:
            context.use_sessions(_kind(options, holder, name, context.clients), SESSION_SECONDS, self._ring.current)
            self._resuming.append(context)
        else:
            context.use_no_tickets()
        return context

    def _note_expiry(self, options: SiteOptions, cert: Path) -> None:
        # Now and not when somebody asks: a file that is renewed is not served before it is loaded.
        from ktlsd.certificate import expiry

        site = options.names[0] if isinstance(options, NamedSiteOptions) else DEFAULT_SITE
        try:
            self.expiries += (expiry(site, cert),)
        except (OSError, ValueError) as error:
            log.warning("%s: when it ends cannot be read: %s", cert, cause(error))

    def _own_certificate(self) -> tuple[Path, Path]:
        from ktlsd.certificate import fingerprint, localhost_certificate

        try:
            folder = state_folder()
        except RuntimeError as error:
            reason = "no place to keep a self-signed certificate: this user has no home"
            raise SettingsError(f"{reason}: give --cert and --key, or set XDG_STATE_HOME") from error
        try:
            path = localhost_certificate(folder)
        except OSError as error:
            reason = f"{folder}: cannot keep a self-signed certificate there ({cause(error)})"
            raise SettingsError(f"{reason}: give --cert and --key, or set XDG_STATE_HOME") from error
        self.notice = (
            f"no --cert: using the self-signed certificate for localhost in {path}, "
            f"SHA-256 fingerprint {fingerprint(path)}"
        )
        return path, path


def _kind(options: SiteOptions, holder: SiteOptions, policy: TlsPolicy, clients: bytes) -> bytes:
    """What tells the sessions of one SSL_CTX from those of others that have the same ticket keys: the names, the places
    of the certificates, which a renewal does not change, the policy, whose ciphers a session may have, and what is
    demanded of clients."""
    names = options.names if isinstance(options, NamedSiteOptions) else ()
    return hashlib.sha256(repr((names, [os.fspath(path) for path in holder.cert], policy, clients)).encode()).digest()


def _handshakes_as(options: SiteOptions, default: SiteOptions) -> bool:
    """Whether a site can share the default site's SSL_CTX."""
    same_clients = all(getattr(options, key) == getattr(default, key) for key in _OF_CLIENTS)
    return same_clients and (not options.cert or options.cert == default.cert)


_OF_CLIENTS: Final = ("client_ca", "client_names", "client_crl")


def _folder_advice(error: OSError) -> str:
    if isinstance(error, NotADirectoryError) and os.path.exists(error.filename):
        return "this is a file, not a folder: name the folder that it is in"
    if isinstance(error, (NotADirectoryError, FileNotFoundError)):
        return "there is no such folder"
    if error.errno in (errno.ENOSYS, errno.EPERM):
        sandboxes = "systemd's DynamicUser= and RestrictSUIDSGID= do"
        return f"this kernel has no openat2 (it came with Linux 5.6), or a sandbox forbids it ({sandboxes})"
    return error.strerror or str(error)

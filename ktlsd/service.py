"""What one ktlsd serves, made from its settings: sites with their certificates, and the answers on plain HTTP.

Strategy: everything that a setting can get wrong on this machine is tried here, before anything is bound; sites that
have neither a certificate nor a demand on clients of their own share the default site's SSL_CTX.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ktlsd.https_redirect import HttpsRedirect
from ktlsd.ktls import Mode, Support
from ktlsd.networks import Networks
from ktlsd.options import SiteOptions
from ktlsd.settings import Settings, SettingsError, default_site
from ktlsd.site import SERVER_FIELD, Site
from ktlsd.sites import Sites
from ktlsd.ssl_ffi import Context, Library


@dataclass(frozen=True, slots=True)
class Hosted:
    """A site, and the SSL_CTX for the handshakes that ask for it."""

    site: Site
    context: Context


class Service:
    """All that outlives a server. Whoever makes one closes it."""

    def __init__(self, library: Library, settings: Settings, support: Support) -> None:
        """Raises SettingsError, ContextError."""
        self.library = library
        self.support = support
        self.notice = ""
        """What to tell the operator about a certificate that was made."""
        self._ktls = settings.ktls is not Mode.OFF
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
        self.several = len(self.all) > 1
        """Whether it matters which site a client names in the handshake."""
        self.server_field = SERVER_FIELD if default_options.server_header else ()
        """For responses that no site gives."""
        self.speak_proxy = Networks(settings.proxy_protocol)
        """Whose connections begin with a PROXY header."""
        self.trusted = Networks(settings.trusted_proxies)
        """Whose fields about the client are believed."""
        self.forwarded = settings.forwarded
        self.https_redirect = HttpsRedirect(library, settings.acme_challenges)

    def close(self) -> None:
        for hosted in self.all:
            hosted.site.close()
            hosted.context.close()
        self.https_redirect.close()

    def _site(self, options: SiteOptions) -> Site:
        try:
            return Site(self.library, options)
        except OSError as error:
            raise SettingsError(f"root {options.root}: cannot be served: {_root_advice(error)}") from error

    def _context(self, options: SiteOptions, default: SiteOptions) -> Context:
        context = Context(self.library, ktls=self._ktls)
        holder = options if options.cert else default
        pairs = zip(holder.cert, holder.key, strict=True) if holder.cert else (self._own_certificate(),)
        for cert, key in pairs:
            context.use_certificate(os.fspath(cert), os.fspath(key))
        if options.client_ca is not None:
            revoked = None if options.client_crl is None else os.fspath(options.client_crl)
            context.require_client(os.fspath(options.client_ca), options.client_names, revoked)
        return context

    def _own_certificate(self) -> tuple[Path, Path]:
        from ktlsd.certificate import fingerprint, localhost_certificate, state_folder

        folder = state_folder()
        try:
            path = localhost_certificate(folder)
        except OSError as error:
            reason = f"{folder}: cannot keep a self-signed certificate there ({error})"
            raise SettingsError(f"{reason}: give --cert and --key, or set XDG_STATE_HOME") from error
        self.notice = (
            f"no --cert: using the self-signed certificate for localhost in {path}, "
            f"SHA-256 fingerprint {fingerprint(path)}"
        )
        return path, path


def _handshakes_as(options: SiteOptions, default: SiteOptions) -> bool:
    """Whether a site can share the default site's SSL_CTX."""
    same_clients = all(getattr(options, key) == getattr(default, key) for key in _OF_CLIENTS)
    return same_clients and (not options.cert or options.cert == default.cert)


_OF_CLIENTS: Final = ("client_ca", "client_names", "client_crl")


def _root_advice(error: OSError) -> str:
    if isinstance(error, (NotADirectoryError, FileNotFoundError)):
        return "there is no such folder"
    if error.errno in (errno.ENOSYS, errno.EPERM):
        return "this kernel has no openat2 (it came with Linux 5.6), or a sandbox forbids it"
    return error.strerror or str(error)

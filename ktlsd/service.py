"""The sites with their certificates, and the answers on plain HTTP, made from the settings of a process.

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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from msgspec import Struct

from ktlsd import alpn, client_verification
from ktlsd.config.findings import Place
from ktlsd.config.networks import Networks
from ktlsd.config.options import NamedSiteOptions, Settings, SiteOptions, by_acme, default_site
from ktlsd.config.printable import printable
from ktlsd.config.refusal import PlacedError, SettingsError, cause
from ktlsd.config.state import state_folder
from ktlsd.config.values import Mode, TlsPolicy
from ktlsd.file_threads import Patience
from ktlsd.http.client_networks import ClientNetworks
from ktlsd.http.host_names import Sites
from ktlsd.http.uri_host import host_of
from ktlsd.openssl.algorithms import TICKET_KEY_BYTES
from ktlsd.openssl.errors import ContextError, PairError, RevokedError
from ktlsd.site.followed_root import START_SECONDS, FollowedRoot, absolute
from ktlsd.site.https_redirect import HttpsRedirect
from ktlsd.site.passwords import Passwords
from ktlsd.site.response_cache import ResponseCache
from ktlsd.site.site import SERVER_FIELD, Site
from ktlsd.ssl_ffi import Context, Library
from ktlsd.tls.ktls import Support
from ktlsd.tls.pairs import Fault, Found, Pairs, Validity, offering
from ktlsd.tls.policy import POLICIES, Policy, policy_of
from ktlsd.tls.ticket_keys import SESSION_SECONDS, Ring

if TYPE_CHECKING:
    from ktlsd.acme.folder import AcmeFolder

log = logging.getLogger("ktlsd")

DEFAULT_SITE: Final = "default"
"""Name of the site at the top level, for logs and metrics."""
_MOST_HOSTS: Final = 1024
"""Values of Host of which the site is kept."""
_LONGEST_HOST: Final = 256
"""Bytes of one that is kept."""
_REFUSAL_BYTES: Final = 1 << 20
_OWN_SECONDS: Final = 30 * 86400
"""Time before its end at which the self-signed certificate is replaced."""

_Kind = tuple[object, ...]


class Demanded(Protocol):
    """What the client of a connection has asked for in its handshake."""

    @property
    def server_name(self) -> str | None:
        """The name of a site."""

    @property
    def clients(self) -> bytes:
        """Digest of the requirements on the client's certificate (Context.clients)."""


class Hosted(Struct, frozen=True):
    """A site, and the SSL_CTX for the handshakes that ask for it."""

    site: Site
    context: Context
    refused: bool = False
    """Whether handshakes that ask for it are refused, since no certificate of its own can be used. The context has no
    certificate then."""


class _Offer(NamedTuple):
    context: Context
    refused: bool


class _Error(NamedTuple):
    """A fault, before it is known whether its site is served."""

    place: Place
    file: Path
    files: tuple[Path, ...]
    text: str
    former: bool


class _ServedFolders:
    """The served folders, which a renewal of certificates leaves as they are. Closed by its last user."""

    def __init__(self, settings: Settings, former: _ServedFolders | None) -> None:
        """Folders that are missing refuse the settings if they are `strict`, if no root is there, or if the `former`
        service did not miss them already.

        Raises SettingsError, and ValueError for rules that contradict themselves.
        """
        self._users = 1
        known = None if former is None else {followed.path for followed in former.followed if followed.missing}

        def may_be_missing(folder: Path | None) -> bool:
            return not settings.strict and (known is None or (folder is not None and absolute(folder) in known))

        # Hundreds of roots may be on the same file system that hangs.
        patience = Patience(START_SECONDS)
        networks = ClientNetworks(settings.limits, settings.trusted_proxies)
        passwords = Passwords(settings.limits, networks)
        self.sites: dict[Place, Site] = {}
        self.followed: tuple[FollowedRoot, ...] = ()
        """As their paths lead to them."""
        self.acme = _acme_folder(settings)
        with contextlib.ExitStack() as stack:
            default_options = default_site(settings)
            for place, options in ((default_place(settings), default_options), *_named(settings)):
                if place not in self.sites:
                    self.sites[place] = site = _site(
                        place,
                        options,
                        settings.limits.file_seconds,
                        may_be_missing=may_be_missing(options.root),
                        patience=patience,
                        networks=networks,
                        passwords=passwords,
                    )
                    stack.callback(site.close)
            try:
                own = None if self.acme is None or settings.acme_challenges is not None else self.acme.http_answers
                answers = own or settings.acme_challenges
                self.https_redirect = HttpsRedirect(
                    answers,
                    settings.limits.file_seconds,
                    own=own is not None,
                    may_be_missing=may_be_missing(answers),
                    patience=patience,
                )
            except OSError as error:
                reason = f"acme_challenges {answers}: cannot be served: {_folder_advice(error)}"
                raise PlacedError((), "acme_challenges", reason) from error
            stack.callback(self.https_redirect.close)
            missing = [(at, site, site.followed.fault) for at, site in self.sites.items() if site.followed.fault]
            if len(missing) == len(self.sites):
                at, site, fault = missing[0]
                raise _unservable(at, site.options, fault) from fault
            challenges = self.https_redirect.followed
            followed = [site.followed for site in self.sites.values()]
            self.followed = (*followed, challenges) if challenges is not None else tuple(followed)
            self._opened = stack.pop_all()

    def shared(self) -> _ServedFolders:
        """The same for one more user."""
        self._users += 1
        return self

    def close(self) -> None:
        self._users -= 1
        if not self._users:
            self._opened.close()


class Service:
    """The state that outlives a server and can be replaced while one runs. The creator closes it."""

    def __init__(
        self,
        library: Library,
        settings: Settings,
        support: Support,
        former: Service | None = None,
        *,
        renewing: bool = False,
    ) -> None:
        """`former` is the service that this one is to replace, whose certificates it keeps where new ones cannot be
        used; when `renewing`, everything but the certificates is the former's.

        Raises SettingsError, ContextError, OSError where the machine is at fault, and ValueError for rules that
        contradict themselves. Certificates that cannot be used are `faults`, for the caller to judge.
        """
        self.library = library
        self.support = support
        self.settings = settings
        self.notice = ""
        """A line for the operator about a certificate that was made."""
        self.ktls_state = ""
        """The line about kTLS for the start, if it was tried (ktls_state.py)."""
        self.tls_states: tuple[str, ...] = ()
        """The lines about chosen ciphers, tls_policy = "nic" and zerocopy_sendfile for the start."""
        self.policy = policy_of(settings)
        """The offer in handshakes."""
        self.response_cache = ResponseCache()
        """Answers under the rules of this service."""
        self._ring: Ring = Ring(os.urandom(TICKET_KEY_BYTES), {}) if former is None else former._ring
        self.renewed = True
        """True if anything differs from the former service."""
        self.faults: tuple[Fault, ...] = ()
        """The certificates that cannot be used."""
        self.validities: tuple[Validity, ...] = ()
        """The certificates that are served; sites that share one have it once."""
        self._ktls = settings.ktls is not Mode.OFF
        self._resuming: list[Context] = []
        self.http2 = settings.http2 and alpn.ADDRESS is not None
        """Whether clients may choose HTTP/2."""
        if settings.http2 and not self.http2:
            log.warning("http2: only HTTP/1.1 is served, since ALPN needs a callback: %s", alpn.REASON)
        self._contexts: dict[_Kind, _Offer] = {}
        self._own: Path | None = None
        """The file with the self-signed certificate and its key, where one is used."""
        self._users = 0
        self._retired = False
        with contextlib.ExitStack() as stack:
            self._opened = stack
            same = former if renewing else None
            earlier = None if former is None else former._served_folders
            if same is not None:
                self._served_folders: _ServedFolders = same._served_folders.shared()
            else:
                self._served_folders = _ServedFolders(settings, earlier)
            stack.callback(self._served_folders.close)
            known = None if former is None else former._pairs
            self._pairs: Pairs = Pairs(library, self.policy, known)
            stack.callback(self._pairs.close)
            self._make(settings, former)
            self._pairs.settled()
            self._opened = stack.pop_all()
        if same is not None and self._demands() == same._demands():
            self.response_cache = same.response_cache

    def _make(self, settings: Settings, former: Service | None) -> None:
        default_options, place = default_site(settings), default_place(settings)
        sites = self._served_folders.sites
        offer = self._offer(default_options, place, default_options, place, former)
        default = Hosted(sites[place], *offer)
        named = []
        for site_place, options in _named(settings):
            own = offer
            if not _handshakes_as(options, default_options):
                own = self._offer(options, site_place, default_options, place, former)
            hosted = default if site_place == place else Hosted(sites[site_place], *own)
            named.append((options.names, hosted))
        self.sites = Sites(default, named)
        self.all = tuple({id(hosted): hosted for hosted in (default, *(hosted for _, hosted in named))}.values())
        self.server_field = SERVER_FIELD if default_options.server_header else ()
        """For responses that no site gives."""
        self._plain_sites: dict[tuple[bytes, str | None, bytes], Site | None] = {}
        """By Host, and what the client of a connection has asked for."""
        self.refuses_unknown_names = settings.unknown_names == "refuse"
        """Whether requests and handshakes get nothing unless they name a site."""
        rates = any(options.rate for options in (settings, *settings.site))
        self.refusals = ResponseCache(_REFUSAL_BYTES) if rates else None
        """Refusals of clients at a limit of a rate; None if no site has rates."""
        self._default_names: Sites[Hosted | None] = Sites(None, [(_acme_names(settings), default)])
        self.speak_proxy = Networks(settings.proxy_protocol)
        """Networks whose connections begin with a PROXY header."""
        self.trusted = Networks(settings.trusted_proxies)
        """Proxies trusted for client address, scheme and request id."""
        self.exempt = Networks(settings.limits.exempt_clients)
        """Networks without limits for each network."""
        self.forwarded = settings.forwarded
        self.https_redirect = self._served_folders.https_redirect
        self.acme = self._served_folders.acme
        """The state folder of ACME, with the answers to challenges; None if certificates are not got by ACME."""
        self.followed = self._served_folders.followed
        """The folders that are served, as their paths lead to them."""

    def _demands(self) -> list[bytes]:
        """The requirements on client certificates, on which cached responses depend."""
        return [hosted.context.clients for hosted in self.all]

    def hosted(self, host: str | None, client: Demanded) -> Hosted | str:
        """The site of a request that names a host; or the reason why its client gets none on this connection (421)."""
        # HTTP/1.0 may leave the host out: then only the handshake names the site.
        name, server_name = host or client.server_name, client.server_name
        hosted = self.sites.of_request(name, server_name)
        if hosted is None:
            return f"{host} is not of the site {server_name} that the handshake was for"
        if self.refuses_unknown_names and not self.knows(name):
            return unknown_name(host)
        demanded = hosted.context.clients
        if demanded and demanded != client.clients and not hosted.context.optional:
            return f"{host} demands a client certificate, and the handshake was for another site or none"
        return hosted

    def plain_site(self, host: bytes, client: Demanded) -> Site | None:
        """The site of a request with this Host, if there is one that has plain files."""
        if len(host) > _LONGEST_HOST:
            return None
        key = host, client.server_name, client.clients
        if key not in self._plain_sites:
            if len(self._plain_sites) >= _MOST_HOSTS:
                self._plain_sites.clear()
            found = self.hosted(host_of(host.decode("latin-1")) or None, client)
            site = found.site if isinstance(found, Hosted) else None
            self._plain_sites[key] = site if site is not None and site.plain_files is not None else None
        return self._plain_sites[key]

    def knows(self, name: str | None) -> bool:
        """Whether a site has this host name; the default site has those of its certificate by ACME."""
        return self.sites.named(name) is not None or self._default_names.named(name) is not None

    def log_missing_folders(self) -> None:
        """A line for each folder that was missing when this service was made."""
        for followed in self.followed:
            if followed.fault is not None:
                advice = _folder_advice(followed.fault)
                log.error("%s: %s: requests get 503 until it exists", followed.path, advice)

    @property
    def tried(self) -> Context | None:
        """The SSL_CTX by which to try kTLS: the default site's, or the first that has a certificate."""
        usable = (hosted.context for hosted in (self.sites.default, *self.all) if not hosted.refused)
        return next(usable, None)

    def use_ring(self, ring: Ring) -> None:
        """Use other session ticket keys from now on; no other process has the initial ones."""
        if ring != self._ring:
            self._ring = ring
            for context in self._resuming:
                context.use_ticket_key(ring.current)

    def older_ticket_key(self, name: bytes | None) -> bytes | None:
        """The key by which to read a ticket, by the name in it; None for the key that makes tickets now."""
        return None if name is None else self._ring.others.get(name)

    def in_use(self) -> Service:
        """A context that keeps what is open, even if retire() is called meanwhile."""
        return self

    def __enter__(self) -> None:
        self._users += 1

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if self._retired and not self._users:
            self.close()

    def retire(self) -> None:
        """Close after its last use."""
        self._retired = True
        if not self._users:
            self.close()

    def close(self) -> None:
        self._opened.close()

    def _offer(
        self, options: SiteOptions, place: Place, default: SiteOptions, default_place: Place, former: Service | None
    ) -> _Offer:
        """The SSL_CTX of a site, with its usable pairs; unusable ones become faults."""
        holder, holder_place = (options, place) if options.cert else (default, default_place)
        site, kind = name_of(options), _kind_of(options, holder)
        context = self._bare_context()
        usable: list[Validity] = []
        errors: list[_Error] = []
        for number, (cert, key, found) in enumerate(self._found(holder, former)):
            error, stays = found.error, found.pair is not None
            if found.pair is not None:
                try:
                    context.use_pair(found.pair)
                    usable.append(Validity(site, printable(str(cert)), found.pair.begins, found.pair.ends))
                except PairError as second:
                    error, stays = second, False
            if error is not None:
                of, file = ("key", key) if error.of_key else ("cert", cert)
                errors.append(_Error((*holder_place, of, number), file, (cert, key), str(error), stays))
        offer = _Offer(context, refused=not usable)
        if usable and (wrong := _demand(context, options, place)) is not None:
            kept = None if former is None else former._contexts.get(kind)
            offer = _Offer(self._bare_context(), refused=True) if kept is None or kept.refused else self._shared(kept)
            errors.append(wrong._replace(former=not offer.refused))
        self._finish(offer, options, holder)
        if not offer.refused:
            self.validities += tuple(usable)
        self.faults += tuple(
            Fault(
                *(site, error.place, printable(str(error.file)), tuple(printable(str(file)) for file in error.files)),
                *(error.text, error.former),
                served=not offer.refused,
            )
            for error in errors
        )
        self._contexts[kind] = offer
        return offer

    def _shared(self, offer: _Offer) -> _Offer:
        context = offer.context.shared()
        self._opened.callback(context.close)
        return _Offer(context, refused=False)

    def _finish(self, offer: _Offer, options: SiteOptions, holder: SiteOptions) -> None:
        """Set up sessions; none for a refused site."""
        context = offer.context
        if offer.refused and options.client_ca is not None:
            context.refuse_clients()
        if offer.refused or not self.settings.session_tickets:
            context.use_no_tickets()
            return
        # Tickets of a policy by its name stay good.
        policy = self.settings.tls_policy if self.policy is POLICIES[self.settings.tls_policy] else self.policy
        context.use_sessions(_kind(options, holder, policy, context.clients), SESSION_SECONDS, self._ring.current)
        self._resuming.append(context)

    def _bare_context(self) -> Context:
        context = offering(self.library, self.policy, ktls=self._ktls)
        chooser = alpn.ADDRESS if self.policy.suits_http2 else alpn.BY_CIPHER_ADDRESS
        if self.http2 and chooser is not None:
            context.choose_protocols_by(chooser)
        self._opened.callback(context.close)
        return context

    def _found(self, holder: SiteOptions, former: Service | None) -> Iterator[tuple[Path, Path, Found]]:
        for cert, key in zip(holder.cert, holder.key, strict=True):
            yield cert, key, self._pairs.find(cert, key)
        if holder.cert:
            return
        if self._own is None:
            self._own = None if former is None else former._own
            # Root may have made it in a folder that the user who serves may not enter: it is read when it must be.
            if self._own is None or not self._pairs.keep(self._own, self._own, until=time.time() + _OWN_SECONDS):
                try:
                    self._own = self._own_certificate()
                except SettingsError:
                    if self._own is None or not self._pairs.keep(self._own, self._own, until=0):
                        raise
        yield self._own, self._own, self._pairs.find(self._own, self._own)

    def _own_certificate(self) -> Path:
        from ktlsd.tls.certificate import fingerprint, localhost_certificate

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
        return path


def _acme_folder(settings: Settings) -> AcmeFolder | None:
    if not by_acme(settings):
        return None
    from ktlsd.acme.folder import of_settings

    return of_settings(settings)


def _acme_names(settings: Settings) -> tuple[str, ...]:
    """The names of the certificate of the top level."""
    return () if settings.acme is None else tuple(name.lower() for name in settings.acme.names)


def default_place(settings: Settings) -> Place:
    """The place of the default site's keys."""
    return () if default_site(settings) is settings else ("site", 0)


def _named(settings: Settings) -> list[tuple[Place, NamedSiteOptions]]:
    return [(("site", number), options) for number, options in enumerate(settings.site)]


def name_of(options: SiteOptions) -> str:
    """The name of a site in logs and metrics."""
    return options.names[0] if isinstance(options, NamedSiteOptions) else DEFAULT_SITE


def _site(
    place: Place,
    options: SiteOptions,
    file_seconds: float,
    *,
    may_be_missing: bool,
    patience: Patience,
    networks: ClientNetworks,
    passwords: Passwords,
) -> Site:
    try:
        return Site(
            options,
            file_seconds,
            may_be_missing=may_be_missing,
            patience=patience,
            networks=networks,
            passwords=passwords,
        )
    except PlacedError as error:
        raise error.within(place) from error
    except OSError as error:
        raise _unservable(place, options, error) from error


def _unservable(place: Place, options: SiteOptions, error: OSError) -> PlacedError:
    return PlacedError(place, "root", f"root {options.root}: cannot be served: {_folder_advice(error)}")


def _demand(context: Context, options: SiteOptions, place: Place) -> _Error | None:
    """Apply a site's requirements on client certificates to a context; the error, if any."""
    authorities, revoked = options.client_ca, options.client_crl
    if authorities is None:
        return None
    try:
        lists = None if revoked is None else os.fspath(revoked)
        optional = options.client_certificates == "optional"
        if optional and client_verification.ADDRESS is None:
            raise ContextError("client certificates cannot be optional: this process may not have callbacks")
        context.require_client(
            os.fspath(authorities),
            options.client_names,
            lists,
            optional_by=client_verification.ADDRESS if optional else None,
            depth=options.client_verify_depth,
            path_names=_path_names(options),
        )
    except ContextError as error:
        if isinstance(error, RevokedError) and revoked is not None:
            return _Error((*place, "client_crl"), revoked, (revoked,), str(error), former=False)
        return _Error((*place, "client_ca"), authorities, (authorities,), str(error), former=False)
    return None


def _path_names(options: SiteOptions) -> tuple[str, ...]:
    """The names in client certificates that rules of a site's paths are about."""
    return tuple(sorted({name for rule in options.access for name in rule.certificate_names}))


def _kind_of(options: SiteOptions, holder: SiteOptions) -> _Kind:
    """The settings that determine a site's SSL_CTX."""
    names = options.names if isinstance(options, NamedSiteOptions) else ()
    return names, holder.cert, holder.key, *_clients_of(options)


def _kind(options: SiteOptions, holder: SiteOptions, policy: TlsPolicy | Policy, clients: bytes) -> bytes:
    """The session id context of an SSL_CTX, which separates its sessions from those of others with the same ticket
    keys: names, paths of the certificates (which a renewal does not change), policy (a session has its ciphers), and
    requirements on clients."""
    names = options.names if isinstance(options, NamedSiteOptions) else ()
    return hashlib.sha256(repr((names, [os.fspath(path) for path in holder.cert], policy, clients)).encode()).digest()


def _handshakes_as(options: SiteOptions, default: SiteOptions) -> bool:
    """Whether a site can share the default site's SSL_CTX."""
    return _clients_of(options) == _clients_of(default) and (not options.cert or options.cert == default.cert)


def _clients_of(options: SiteOptions) -> tuple[object, ...]:
    """The settings about client certificates."""
    of_paths = _path_names(options) if options.client_ca is not None else ()
    how = options.client_certificates, options.client_verify_depth
    return options.client_ca, options.client_names, options.client_crl, *how, of_paths


def unknown_name(name: str | None) -> str:
    """The reason of a refusal by `unknown_names`, for the log."""
    return "it names no site" if name is None else f"no site has the name {name}"


def _folder_advice(error: OSError) -> str:
    if isinstance(error, NotADirectoryError) and os.path.exists(error.filename):
        return "this is a file, not a folder: name the folder that it is in"
    if isinstance(error, (NotADirectoryError, FileNotFoundError)):
        return "there is no such folder"
    if error.errno in (errno.ENOSYS, errno.EPERM):
        sandboxes = "systemd's DynamicUser= and RestrictSUIDSGID= do"
        return f"this kernel has no openat2 (it came with Linux 5.6), or a sandbox forbids it ({sandboxes})"
    return error.strerror or str(error)

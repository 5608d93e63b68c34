"""The certificates that the settings ask for, and the names that an authority would refuse: pure.

Strategy: wanted() lists the certificates; complaint() says what is wrong with one before anything is bound, so that no
order is spent on it. The rules on public names are those of the CA/Browser Forum, and hold for Let's Encrypt only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from ktlsd.config.findings import Place
from ktlsd.config.options import AcmeOptions, Settings
from ktlsd.config.values import ChallengeKind

DIRECTORIES: Final = {
    "letsencrypt": "https://acme-v02.api.letsencrypt.org/directory",
    "staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
}
"""Directory URLs by the words for them."""
_HOST: Final = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_LONGEST_NAME: Final = 253
_MOST_NAMES: Final = 100
_MOST_TOLD: Final = 4
# https://letsencrypt.org/docs/profiles/: 25 names in "tlsserver" and "shortlived".
_FEWER_NAMES: Final = {"tlsserver": 25, "shortlived": 25}
# RFC 6761, RFC 6762, RFC 7686, RFC 8375, and ICANN's reservation of "internal" (2024).
_NOT_PUBLIC: Final = frozenset(
    {"localhost", "local", "test", "invalid", "example", "onion", "internal", "lan", "home", "corp", "home.arpa"}
)


class Wanted(Struct, frozen=True):
    """One certificate, by its names in lower case, and the key of the configuration that asks for it."""

    names: tuple[str, ...]
    place: Place

    @property
    def name(self) -> str:
        """The first name, for logs, metrics and file names."""
        return self.names[0]

    @property
    def label(self) -> str:
        """Its names for a log line."""
        more = len(self.names) - _MOST_TOLD
        return ", ".join(self.names[:_MOST_TOLD]) + (f" and {more} more" if more > 0 else "")


def wanted(settings: Settings) -> list[Wanted]:
    """The certificates in the order of the settings: that of the top level, then those of sites."""
    found = []
    if settings.acme is not None and settings.acme.names:
        found.append(Wanted(_compared(settings.acme.names), ("acme", "names")))
    for number, site in enumerate(settings.site):
        if site.acme:
            found.append(Wanted(_compared(site.names), ("site", number, "acme")))
    return found


def _compared(names: Iterable[str]) -> tuple[str, ...]:
    """Names once each, as certificates have them: in lower case, addresses in their short form."""
    return tuple(dict.fromkeys(str(ipaddress.ip_address(name)) if is_address(name) else name.lower() for name in names))


def directory_url(options: AcmeOptions) -> str:
    return DIRECTORIES.get(options.directory, options.directory)


def challenges(options: AcmeOptions) -> tuple[ChallengeKind, ...]:
    """The challenges to try, in order."""
    if options.challenges:
        return options.challenges
    return ("dns-01",) if options.dns_hook is not None else ("tls-alpn-01", "http-01")


def suitable(name: str, kinds: tuple[ChallengeKind, ...]) -> tuple[ChallengeKind, ...]:
    """Those challenges that can prove a name: wildcards need dns-01, and addresses have none in the DNS."""
    if name.startswith("*."):
        return tuple(kind for kind in kinds if kind == "dns-01")
    return tuple(kind for kind in kinds if kind != "dns-01") if is_address(name) else kinds


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def sni_name(name: str) -> str:
    """The server name by which the authority asks for a certificate of tls-alpn-01 (RFC 8738 section 6)."""
    return ipaddress.ip_address(name).reverse_pointer if is_address(name) else name


def complaint(certificate: Wanted, options: AcmeOptions) -> str:
    """The reason why no authority would give this certificate; "" if none is known."""
    public = options.directory in DIRECTORIES
    most = _FEWER_NAMES.get(options.profile or "", _MOST_NAMES)
    if public and len(certificate.names) > most:
        return f"{len(certificate.names)} names are more than the authority takes, {most}: split them between sites"
    return next(filter(None, (_of_name(name, options, public=public) for name in certificate.names)), "")


def _of_name(name: str, options: AcmeOptions, *, public: bool) -> str:
    kinds = challenges(options)
    if is_address(name):
        if not options.profile:
            return f"{name} is an IP address: authorities certify it only with a short-lived profile (profile)"
        if not suitable(name, kinds):
            return f"{name} is an IP address, which dns-01 cannot prove: use tls-alpn-01 or http-01 (challenges)"
        address = ipaddress.ip_address(name)
        return f"{name} is no public address: {_private(options)}" if public and not address.is_global else ""
    if len(name) > _LONGEST_NAME or not _HOST.fullmatch(name):
        return f'{name!r} is not a host name such as "example.org" (xn-- for letters beyond a to z)'
    if name.startswith("*.") and not suitable(name, kinds):
        remedy = "name dns_hook in [acme] of a configuration file, or name each host"
        return f"{name} is a wildcard, which only dns-01 can prove: {remedy}"
    labels = name.removeprefix("*.").split(".")
    if public and (len(labels) == 1 or {labels[-1], ".".join(labels[-2:])} & _NOT_PUBLIC):
        return f"{name} is an internal name, which no public authority certifies: {_private(options)}"
    return ""


def _private(options: AcmeOptions) -> str:
    return f"give the directory of a private authority instead of {options.directory!r}"

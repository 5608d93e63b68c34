"""Settings with certificates by ACME: the paths of their files, the addresses that challenges need, and what is wrong.

Strategy: to everything else such a certificate is a file like any other, which is replaced now and then. Errors are
found before anything is bound, and are told as the key and a complaint; ktlsd/settings.py knows the line.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ktlsd.acme.folder import of_settings
from ktlsd.acme.names import challenges, complaint, wanted
from ktlsd.config.findings import Place
from ktlsd.config.options import AcmeOptions, NamedSiteOptions, Settings
from ktlsd.config.refusal import install
from ktlsd.config.values import Listen

HTTPS_PORT = 443
HTTP_PORT = 80


def with_addresses(settings: Settings, given: frozenset[str]) -> Settings:
    """The ports where an authority looks, unless others are given."""
    if "listen" not in given:
        settings = msgspec.structs.replace(settings, listen=(Listen("", HTTPS_PORT),))
    if "http_listen" not in given:
        settings = msgspec.structs.replace(settings, http_listen=(Listen("", HTTP_PORT),))
    return settings


def with_top_certificate(settings: Settings) -> Settings:
    """The certificate of the top level, which sites inherit. Raises RuntimeError for a user without a home."""
    if settings.acme is None or not settings.acme.names:
        return settings
    path = (of_settings(settings).pem(wanted(settings)[0].name),)
    return msgspec.structs.replace(settings, cert=path, key=path)


def with_site_certificates(settings: Settings) -> Settings:
    """The same, of sites with certificates of their own."""
    folder = of_settings(settings)

    def certified(site: NamedSiteOptions) -> NamedSiteOptions:
        if not site.acme:
            return site
        path = (folder.pem(site.names[0].lower()),)
        return msgspec.structs.replace(site, cert=path, key=path)

    return msgspec.structs.replace(settings, site=tuple(map(certified, settings.site)))


def without_certificates(settings: Settings) -> Settings:
    """Settings that can be tried without the state folder of the service: self-signed instead of by ACME."""
    sites = tuple(
        msgspec.structs.replace(site, acme=False, cert=(), key=()) if site.acme else site for site in settings.site
    )
    if settings.acme is None or not settings.acme.names:
        return msgspec.structs.replace(settings, acme=None, site=sites)
    sites = tuple(
        msgspec.structs.replace(site, cert=(), key=()) if site.cert == settings.cert else site for site in sites
    )
    return msgspec.structs.replace(settings, acme=None, cert=(), key=(), site=sites)


def complaints(settings: Settings) -> Iterator[tuple[Place, str]]:
    """Reasons why no order could succeed: keys and complaints, the first first."""
    options = settings.acme or AcmeOptions()
    certificates = wanted(settings)
    if not certificates:
        return
    seen: dict[str, Place] = {}
    for certificate in certificates:
        if trouble := complaint(certificate, options):
            yield certificate.place, trouble
        for name in certificate.names:
            if name in seen:
                yield certificate.place, f"{name} is in two certificates"
            seen[name] = certificate.place
    if (options.eab_key_id is None) != (options.eab_key is None):
        yield ("acme",), "eab_key_id and eab_key go together: give both, or neither"
    if "dns-01" in challenges(options) and options.dns_hook is None:
        yield ("acme", "challenges"), "dns-01 needs a dns_hook: name the program that changes DNS records"


def machine_complaints(settings: Settings) -> Iterator[tuple[Place, str]]:
    """The same, of this machine: the packages, and the files that the table names."""
    certificates = wanted(settings)
    if certificates and any(importlib.util.find_spec(module) is None for module in ("acme", "josepy")):
        yield certificates[0].place, f"the packages acme and josepy are missing: {install('acme josepy', 'acme')}"
    options = settings.acme
    if options is None or not certificates:
        return
    for key in ("ca", "eab_key"):
        path: Path | None = getattr(options, key)
        if path is not None and not os.access(path, os.R_OK):
            yield ("acme", key), f"{path} cannot be read: {_reason(path)}"
    hook = options.dns_hook
    if hook is not None and not (hook.is_file() and os.access(hook, os.X_OK)):
        reason = "is no program: chmod +x" if hook.is_file() else f"cannot be run: {_reason(hook)}"
        yield ("acme", "dns_hook"), f"{hook} {reason}"


def _reason(path: Path) -> str:
    try:
        path.stat()
    except OSError as error:
        return error.strerror or str(error)
    return "this is a folder" if path.is_dir() else "no permission"

"""Warnings of `ktlsd check` about the server's own keys: unmet requirements on this machine, and keys without effect.

Strategy: a start refuses most of it, but a check does not bind, write or become another user, and may run on another
machine or as another user: so it looks, and warns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ktlsd.commands.credentials import without_absent
from ktlsd.config.findings import Finding, Place
from ktlsd.config.networks import parse_address
from ktlsd.config.options import Settings, by_acme
from ktlsd.config.values import WILDCARDS, BackendListen, Listen, Mode
from ktlsd.openssl.algorithms import TLS_1_2
from ktlsd.process import privileges, unreadable_files
from ktlsd.tls.policy import policy_of

_LISTENERS: Final = ("listen", "http_listen", "backend_listen")


def findings(settings: Settings) -> Iterator[Finding]:
    """The findings of the top level."""
    yield from _identity(settings)
    yield from _unreadable_files(settings)
    yield from _folders(settings)
    yield from _places_twice(settings)
    yield from _without_effect(settings)


def _identity(settings: Settings) -> Iterator[Finding]:
    try:
        privileges.look_up(settings.user, settings.group)
    except privileges.IdentityError as error:
        place = ("user",) if settings.user is not None else ("group",)
        *_, what, remedy = str(error).split(": ")
        yield Finding(place, what, remedy)


def _unreadable_files(settings: Settings) -> Iterator[Finding]:
    """Files that the user of a service may not read again; nothing if this is neither that user nor root."""
    try:
        identity = privileges.look_up(settings.user, settings.group)
    except privileges.IdentityError:
        return
    if identity is None or os.geteuid() not in (0, identity.user):
        return
    if by_acme(settings):
        from ktlsd.acme.settings import without_certificates

        # They are made as that user.
        settings = without_certificates(settings)
    try:
        with privileges.acting_as(identity):
            found = list(unreadable_files.findings(without_absent(settings)))
    except privileges.PrivilegeError:
        # Root of a container may not be able to.
        return
    yield from found


def _folders(settings: Settings) -> Iterator[Finding]:
    """Folders that a start writes to, and does not make."""
    files: list[tuple[Place, Path | None]] = [(("ticket_keys",), settings.ticket_keys)]
    for key in ("error_log", "access_log"):
        log = getattr(settings, key)
        files.append(((key,), None if log is None else log.path))
    for number, backend in enumerate(settings.backend_listen):
        if isinstance(backend.place, Path):
            files.append((("backend_listen", number), backend.place))
    for place, path in files:
        if path is None:
            continue
        if not path.parent.is_dir():
            yield Finding(place, f"there is no folder {path.parent}", "create it, writable for ktlsd, or name another")
        elif path.is_dir():
            yield Finding(place, f"{path} is a folder", "name a file")
        elif place == ("ticket_keys",) and path.is_file() and path.stat().st_mode & 0o077:
            yield Finding(place, f"{path} is open to other users", "chmod 600 it")


def _places_twice(settings: Settings) -> Iterator[Finding]:
    seen: list[tuple[str, Listen | Path]] = []
    for key in _LISTENERS:
        for number, listen in enumerate(getattr(settings, key)):
            place = listen.place if isinstance(listen, BackendListen) else listen
            # Port 0 is another one each time.
            if isinstance(place, Listen) and not place.port:
                continue
            for label, other in seen:
                if _overlap(place, other):
                    how = f"is in {label} already" if place == other else f"overlaps {other} in {label}"
                    yield Finding((key, number), f"{listen} {how}", "give each listener its own port")
                    break
            seen.append((f"{key}[{number}]", place))


def _overlap(one: Listen | Path, other: Listen | Path) -> bool:
    """Whether two places cannot be listened on at the same time. Names are not looked up."""
    if one == other or isinstance(one, Path) or isinstance(other, Path):
        return one == other
    hosts = {one.host, other.host}
    versions = [address.version for host in hosts if (address := parse_address(host)) is not None]
    same_family = len(versions) == len(hosts) and len(set(versions)) == 1
    return one.port == other.port and ("" in hosts or (same_family and bool(hosts & WILDCARDS)))


def _without_effect(settings: Settings) -> Iterator[Finding]:
    default = Settings()
    if settings.access_log is None and settings.access_log_format != default.access_log_format:
        yield Finding(("access_log_format",), "there is no access_log", "name its file, or leave this out")
    if settings.ticket_keys is not None and not settings.session_tickets:
        yield Finding(("ticket_keys",), "session_tickets is false", "leave one of the two out")
    if settings.tls_ciphers is not None and policy_of(settings).oldest > TLS_1_2:
        what = "no TLS 1.2 is offered, and these are its ciphers"
        yield Finding(("tls_ciphers",), what, 'leave this out, or set tls_min_version = "1.2"')
    if settings.tls_policy == "nic" and settings.ktls is Mode.OFF:
        what = 'without kTLS it is "intermediate"'
        yield Finding(("tls_policy",), what, "leave this out, or leave out ktls = 'off'")
    if settings.forwarded != default.forwarded and not settings.trusted_proxies:
        what = "there are no trusted_proxies, so no such field is read"
        yield Finding(("forwarded",), what, "name the proxies' networks, or leave this out")
    if settings.acme is not None and not by_acme(settings):
        what = "no certificate is got by ACME"
        yield Finding(("acme",), what, "give its names here, or set acme = true in a [[site]]")

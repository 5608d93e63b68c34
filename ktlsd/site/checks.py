"""The checks of access of one site, from its options, in the order in which they are made.

Strategy: one class for each kind of check (ktlsd/http/access.py); those that need no file are pure and live in http/.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

from ktlsd.config.options import AccessOptions, SiteOptions
from ktlsd.config.refusal import PlacedError, cause
from ktlsd.http.access import Check
from ktlsd.http.certificate_check import CertificateCheck
from ktlsd.http.client_networks import ClientNetworks
from ktlsd.http.network_check import NetworkCheck
from ktlsd.http.protected_paths import GuardedPaths
from ktlsd.http.rate_check import RateCheck
from ktlsd.site.content_types import ContentTypes

if TYPE_CHECKING:
    # They are imported only if they are configured.
    from ktlsd.site.passwords import Passwords
    from ktlsd.site.watched_file import WatchedFile

T = TypeVar("T")

_MAKES: Final = {
    "users": "`ktlsd hash-password NAME >>FILE`",
    "keys": '`echo "k1:$(openssl rand -hex 32)" >FILE`',
}
"""Commands that make the files of these keys."""


def checks_of(site: SiteOptions, networks: ClientNetworks, passwords: Passwords) -> list[Check]:
    """Cheap checks come first: a network that is denied is never asked for a password.

    Raises PlacedError for a file that cannot be used.
    """
    checks: list[Check] = [
        *_maintenance(site),
        *(
            NetworkCheck(_guarded(site, rule.path), rule.allow, rule.deny)
            for rule in site.access
            if rule.allow or rule.deny or not asks_for_certificate(rule)
        ),
        *(
            CertificateCheck(_guarded(site, rule.path), rule.certificate_names)
            for rule in site.access
            if asks_for_certificate(rule)
        ),
        *(RateCheck(_guarded(site, rule.path), rule, networks, time.monotonic) for rule in site.rate),
    ]
    if site.signed:
        from ktlsd.site.signed_check import SignedCheck
        from ktlsd.site.signing_keys import parse_keys

        keys = _watched(site, "signed", "keys", parse_keys)
        checks += (SignedCheck(_guarded(site, rule.path), keys[rule.keys]) for rule in site.signed)
    if site.auth:
        from ktlsd.site.password_check import PasswordCheck
        from ktlsd.site.password_file import parse_users

        users = _watched(site, "auth", "users", parse_users)
        checks += (
            PasswordCheck(_guarded(site, rule.path), users[rule.users], rule.realm, passwords) for rule in site.auth
        )
    return checks


def _maintenance(site: SiteOptions) -> list[Check]:
    rule = site.maintenance
    if rule is None or not (rule.enabled or rule.file):
        return []
    from ktlsd.site.maintenance import MaintenanceCheck

    place = ("maintenance",)
    page = None if rule.page is None else _read(place, "page", rule.page, bytes)
    kind = "" if rule.page is None else ContentTypes(site.types, site.charset, {}).described(bytes(rule.page))[0]
    try:
        return [MaintenanceCheck(rule, page, kind)]
    except OSError as error:
        raise _unusable(place, "file", cast(Path, rule.file), error) from error


def asks_for_certificate(rule: AccessOptions) -> bool:
    """Whether a rule is about client certificates."""
    return rule.certificate or bool(rule.certificate_names)


def _guarded(site: SiteOptions, path: str) -> GuardedPaths:
    return GuardedPaths((path,), site.index, site.try_files)


def _watched(site: SiteOptions, table: str, key: str, parse: Callable[[bytes], T]) -> dict[Path, WatchedFile[T]]:
    """The files that a key of all tables [[table]] names, which must not be served."""
    # Path.resolve() raises RuntimeError for links in a circle, before Python 3.13.
    root = Path(os.path.realpath(cast(Path, site.root)))
    files: dict[Path, WatchedFile[T]] = {}
    for number, rule in enumerate(getattr(site, table)):
        path = getattr(rule, key)
        if path in files:
            continue
        place, real = (table, number), Path(os.path.realpath(path))
        if real.is_relative_to(root):
            below = real.relative_to(root).parts
            if site.dotfiles or not any(part.startswith(".") for part in below):
                complaint = f"{key} {path}: is inside root, where clients could get it: move it elsewhere"
                raise PlacedError(place, key, complaint)
        files[path] = _read(place, key, path, parse)
    return files


def _read(place: tuple[str | int, ...], key: str, path: Path, parse: Callable[[bytes], T]) -> WatchedFile[T]:
    from ktlsd.site.watched_file import WatchedFile

    try:
        return WatchedFile(path, parse)
    except (OSError, ValueError) as error:
        raise _unusable(place, key, path, error) from error


def _unusable(place: tuple[str | int, ...], key: str, path: Path, error: OSError | ValueError) -> PlacedError:
    remedy = ""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        remedy = f": {_MAKES[key]} makes it" if key in _MAKES else ": create it, or name another"
    elif isinstance(error, PermissionError):
        remedy = ": let the user of ktlsd read it, and enter the folders above it"
    return PlacedError(place, key, f"{key} {path}: {cause(error).removeprefix(f'{path}: ')}{remedy}")

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
from ktlsd.config.refusal import SettingsError, cause
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

    Raises SettingsError for a file that cannot be used.
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

        keys = {path: _watched(site, "keys", path, parse_keys) for path in {rule.keys for rule in site.signed}}
        checks += (SignedCheck(_guarded(site, rule.path), keys[rule.keys]) for rule in site.signed)
    if site.auth:
        from ktlsd.site.password_check import PasswordCheck
        from ktlsd.site.password_file import parse_users

        files = {path: _watched(site, "users", path, parse_users) for path in {rule.users for rule in site.auth}}
        checks += (
            PasswordCheck(_guarded(site, rule.path), files[rule.users], rule.realm, passwords) for rule in site.auth
        )
    return checks


def _maintenance(site: SiteOptions) -> list[Check]:
    rule = site.maintenance
    if rule is None or not (rule.enabled or rule.file):
        return []
    from ktlsd.site.maintenance import MaintenanceCheck

    page = None if rule.page is None else _read("maintenance.page", rule.page, bytes)
    kind = "" if rule.page is None else ContentTypes(site.types, site.charset, {}).described(bytes(rule.page))[0]
    try:
        return [MaintenanceCheck(rule, page, kind)]
    except OSError as error:
        raise SettingsError(f"maintenance.file {rule.file}: {error.strerror}") from error


def asks_for_certificate(rule: AccessOptions) -> bool:
    """Whether a rule is about client certificates."""
    return rule.certificate or bool(rule.certificate_names)


def _guarded(site: SiteOptions, path: str) -> GuardedPaths:
    return GuardedPaths((path,), site.index, site.try_files)


def _watched(site: SiteOptions, key: str, path: Path, parse: Callable[[bytes], T]) -> WatchedFile[T]:

    # Path.resolve() raises RuntimeError for links in a circle, before Python 3.13.
    root, real = (Path(os.path.realpath(one)) for one in (cast(Path, site.root), path))
    if real.is_relative_to(root):
        below = real.relative_to(root).parts
        if site.dotfiles or not any(part.startswith(".") for part in below):
            raise SettingsError(f"{key} {path}: is inside root, where clients could get it: move it elsewhere")
    return _read(key, path, parse)


def _read(key: str, path: Path, parse: Callable[[bytes], T]) -> WatchedFile[T]:
    from ktlsd.site.watched_file import WatchedFile

    try:
        return WatchedFile(path, parse)
    except (OSError, ValueError) as error:
        made = isinstance(error, FileNotFoundError) and key in _MAKES
        remedy = f": {_MAKES[key]} makes it" if made else ""
        raise SettingsError(f"{key} {path}: {cause(error).removeprefix(f'{path}: ')}{remedy}") from error

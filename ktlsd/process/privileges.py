"""Dropping root privileges after binding the sockets and reading the keys.

Strategy: user and group are looked up before anything is bound; then groups, group and user go in this order, each for
good (credentials(7)), no program that is started can give them back (PR_SET_NO_NEW_PRIVS), and the way back is tried.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ktlsd.config.refusal import PlacedError, Refusal
from ktlsd.system_calls import forbid_new_privileges

_ROOT: Final = 0


class PrivilegeError(Refusal):
    """A user or group that this process could not become; the text is one line for the operator."""


class IdentityError(PlacedError):
    """A user or group that cannot be used; the text is one line for the operator."""

    def __init__(self, key: str, complaint: str) -> None:
        super().__init__((), key, f"{key} {complaint}")


class Identity(NamedTuple):
    """User and group to switch to."""

    user: int
    group: int


def resolve(user: str | None, group: str | None) -> Identity | None:
    """Resolve `user` and `group`, names or numbers; by default the user's primary group. None: no switch.

    Raises IdentityError.
    """
    identity = look_up(user, group)
    if identity is None:
        return None
    if os.geteuid() not in (_ROOT, identity.user):
        raise IdentityError("user", f"{user}: only root can switch to another user: start as root, or leave it out")
    if group is not None and os.geteuid() != _ROOT and identity.group != os.getegid():
        raise IdentityError("group", f"{group}: only root can take another group: start as root, or leave it out")
    return identity


def look_up(user: str | None, group: str | None) -> Identity | None:
    """The same, regardless of the current user. Raises IdentityError."""
    if user is None:
        if group is not None:
            raise IdentityError("group", "without user: give both")
        return None
    account = _account(user)
    if group is not None:
        identity = Identity(account[0], _group(group))
    elif account[1] is not None:
        identity = Identity(account[0], account[1])
    else:
        raise IdentityError("user", f"{user}: there is no such user to take the group from: give the group, too")
    if identity.user == _ROOT:
        raise IdentityError("user", f"{user} is root: name an unprivileged user")
    return identity


@contextlib.contextmanager
def acting_as(identity: Identity | None) -> Iterator[None]:
    """Open and make files as `identity` would: a file that root opens in another user's folder could be a link.

    Raises PrivilegeError.
    """
    if identity is None or os.geteuid() != _ROOT:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    try:
        os.setgroups([])
        os.setegid(identity.group)
        os.seteuid(identity.user)
    except OSError as error:
        raise PrivilegeError(f"cannot act as user {identity.user}, group {identity.group}: {error.strerror}") from error
    try:
        yield
    finally:
        os.seteuid(_ROOT)
        os.setegid(group)
        os.setgroups(groups)


def drop(identity: Identity) -> None:
    """Become `identity` for good, without any other group. Raises PrivilegeError."""
    try:
        if os.geteuid() == _ROOT:
            os.setgroups([])
            os.setresgid(identity.group, identity.group, identity.group)
            os.setresuid(identity.user, identity.user, identity.user)
        forbid_new_privileges()
    except OSError as error:
        raise PrivilegeError(f"cannot become user {identity.user}, group {identity.group}: {error.strerror}") from error
    with contextlib.suppress(PermissionError):
        os.setresuid(_ROOT, _ROOT, _ROOT)
        raise PrivilegeError(f"user {identity.user} can still become root")


def first_inaccessible(folder: Path, *, listed: bool = False) -> Path | None:
    """The folder that keeps this process from opening files in `folder` by their names: that one, or one above it.

    Their names are enough for what is opened by a path, so folders need search permission only (path_resolution(7));
    with `listed`, `folder` itself read permission too. None: nothing does. By the real user and group (access(2)).
    """
    path = folder.absolute()
    for above in (*reversed(path.parents), path):
        if not os.access(above, os.X_OK):
            return above
    return path if listed and not os.access(path, os.R_OK) else None


def _account(user: str) -> tuple[int, int | None]:
    """The number of a user, and of the user's group where there is such a user."""
    try:
        found = pwd.getpwuid(int(user)) if _is_number(user) else pwd.getpwnam(user)
    except KeyError as error:
        if _is_number(user):
            return int(user), None
        remedy = f"create it (useradd --system {user}), or name another"
        raise IdentityError("user", f"{user}: there is no such user: {remedy}") from error
    return found.pw_uid, found.pw_gid


def _group(group: str) -> int:
    if _is_number(group):
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        remedy = f"create it (groupadd --system {group}), or name another"
        raise IdentityError("group", f"{group}: there is no such group: {remedy}") from error


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10

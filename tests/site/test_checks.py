"""The checks of access of a site: made before the look-up, and refused with files that clients could get."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ktlsd.config.options import AuthOptions, LimitOptions, MaintenanceOptions, SiteOptions
from ktlsd.config.refusal import SettingsError
from ktlsd.http.access import Access, Visitor
from ktlsd.http.client_networks import ClientNetworks
from ktlsd.http.decide import Request
from ktlsd.http.forwarded import Origin
from ktlsd.http.request_target import parse_target
from ktlsd.site.checks import checks_of
from ktlsd.site.passwords import Passwords
from ktlsd.site.site import Site

LIMITS = LimitOptions()
NETWORKS = ClientNetworks(LIMITS)


async def test_a_refusal_looks_for_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "www").mkdir()
    (tmp_path / "users").touch()
    options = SiteOptions(root=tmp_path / "www", auth=(AuthOptions(path="/in/**", users=tmp_path / "users"),))
    site = Site(options)

    async def look_up(*_: object) -> None:
        raise AssertionError("a file is looked for")

    monkeypatch.setattr(site, "_find", look_up)
    visitor = Visitor(b"GET", b"/in/x", {}, Origin("192.0.2.1", https=True))
    answer = await site.answer(Request("GET"), parse_target(b"/in/x"), secure=True, visitor=visitor)
    assert answer.response.status == 401
    with pytest.raises(AssertionError, match="looked for"):
        await site.answer(Request("GET"), parse_target(b"/out/x"), secure=True, visitor=visitor)
    site.close()


async def test_files_of_another_root_are_looked_at_again(tmp_path: Path) -> None:
    (tmp_path / "users").touch()
    for name in ("one/open", "two/intern"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "plan.html").write_text("plan")
    (tmp_path / "two/open").symlink_to("intern")
    current = tmp_path / "current"
    current.symlink_to("one")
    site = Site(SiteOptions(root=current, auth=(AuthOptions(path="/intern/**", users=tmp_path / "users"),)))

    async def status() -> int:
        visitor = Visitor(b"GET", b"/open/plan.html", {}, Origin("192.0.2.1", https=True))
        target = parse_target(b"/open/plan.html")
        answer = await site.answer(Request("GET"), target, secure=True, visitor=visitor)
        if answer.opened is not None:
            answer.opened.close()
        return answer.response.status

    assert [await status() for _ in range(2)] == [200, 200]
    current.unlink()
    current.symlink_to("two")
    await site.followed.look()
    assert [await status() for _ in range(2)] == [401, 401]
    # The former root itself has the link now.
    (tmp_path / "two/open").unlink()
    (tmp_path / "two").rename(tmp_path / "three")
    (tmp_path / "three/open").mkdir()
    (tmp_path / "three/open/plan.html").symlink_to("../intern/plan.html")
    assert [await status() for _ in range(2)] == [401, 401]
    site.close()


@pytest.mark.parametrize(
    ("users", "reason"),
    [
        ("absent", "absent: No such file or directory"),
        ("www/users", "www/users: is inside root, where clients could get it"),
        ("www/.hidden/users", None),
        (".", "is a folder, not a regular file"),
        ("circle", "Too many levels of symbolic links"),
        ("pipe", "is a named pipe, not a regular file"),
        ("socket", "is a socket, not a regular file"),
        ("/dev/null", "is a device, not a regular file"),
    ],
)
def test_files_of_users(tmp_path: Path, users: str, reason: str | None) -> None:
    for name in ("www/users", "www/.hidden/users"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.fspath(tmp_path / "socket"))
    path = tmp_path / users
    options = SiteOptions(root=tmp_path / "www", auth=(AuthOptions(path="**", users=path),))
    if reason is None:
        assert len(checks_of(options, NETWORKS, Passwords(LIMITS, NETWORKS))) == 1
        return
    with pytest.raises(SettingsError, match=reason) as error:
        checks_of(options, NETWORKS, Passwords(LIMITS, NETWORKS))
    assert str(error.value).count(str(path)) == 1


def test_maintenance_guards_all_paths_but_challenges(tmp_path: Path) -> None:
    options = SiteOptions(root=tmp_path, maintenance=MaintenanceOptions(enabled=True))
    access = Access(checks_of(options, NETWORKS, Passwords(LIMITS, NETWORKS)))
    guarded = [path for path in ("/", "/a", "/é", "/.well-known/acme-challenge/x") if access.guards(path)]
    assert guarded == ["/", "/a", "/é"]

"""A site's rules: from its options, and from files that may change while it is served."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from ktlsd.config.options import HeaderOptions, LimitOptions, RedirectOptions, SiteOptions
from ktlsd.http.client_networks import ClientNetworks
from ktlsd.http.decide import Miss
from ktlsd.http.redirects import Redirected
from ktlsd.site.lookup import Root, Unusable
from ktlsd.site.passwords import Passwords
from ktlsd.site.rule_files import LARGEST_FILE
from ktlsd.site.rules import SiteRules
from tests.files import nothing_stays_open

WAIT_SECONDS = 10.0
RULES = {"_headers": "/*\n  X-A: b\n", "_redirects": "/a /b\n"}


class Kept:
    """A site's root and its rules."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        limits = LimitOptions()
        chosen = {"nosniff": False, "headers_file": True, "redirects_file": True} | options
        self.rules = SiteRules(SiteOptions(root=folder, **chosen), Passwords(limits, ClientNetworks(limits)))
        self.root = Root(str(folder), hidden=self.rules.files)

    async def refresh(self) -> None:
        await self.rules.refresh(self.root)

    async def refresh_until(self, done: Callable[[], object]) -> None:
        """Refresh, as requests do one after the other."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not done():
            assert time.monotonic() < deadline
            await trio.sleep(0.05)
            await self.refresh()

    def fields(self, path: str = "/a") -> dict[str, str]:
        return dict(self.rules.headers.apply(path, 200, (), True))

    def location(self, path: str = "/a") -> str | None:
        found = self.rules.redirects.find(path, "", exists=False)
        return found.location if isinstance(found, Redirected) else None


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    with nothing_stays_open():
        yield


@pytest.fixture
def folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    caplog.set_level(logging.INFO, "ktlsd")
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def keep(folder: Path) -> Iterator[Callable[..., Kept]]:
    made: list[Kept] = []

    def keep(**options: Any) -> Kept:
        made.append(Kept(folder, **options))
        return made[-1]

    yield keep
    for kept in made:
        kept.root.close()


Keep = Callable[..., Kept]


def put(folder: Path, name: str, text: str) -> None:
    """As a deployment does: a new file in the place of the old."""
    (folder / "new").write_text(text)
    (folder / "new").rename(folder / name)


async def test_rules_come_from_the_files_of_the_root(folder: Path, keep: Keep) -> None:
    put(folder, "_headers", "/a\n  X-A: b\n/c/*\n  X-C: d\n")
    put(folder, "_redirects", "/a /b 302\n/x/* /y/:splat\n")
    kept = keep()
    assert kept.rules.files == {b"_headers", b"_redirects"}
    await kept.refresh()
    assert (kept.fields("/a"), kept.fields("/c/d"), kept.fields("/e")) == ({"X-A": "b"}, {"X-C": "d"}, {})
    assert kept.rules.redirects.find("/a", "", exists=False) == Redirected(302, "/b")
    assert kept.location("/x/1/2") == "/y/1/2"


@pytest.mark.parametrize("name", ["_headers", "_redirects"])
async def test_a_file_that_is_not_asked_for_is_not_read(folder: Path, keep: Keep, name: str) -> None:
    put(folder, "_headers", "/a\n  X-A: b\n")
    put(folder, "_redirects", "/a /b\n")
    kept = keep(**{f"{name[1:]}_file": False})
    await kept.refresh()
    assert kept.rules.files == {b"_headers", b"_redirects"} - {name.encode()}
    assert kept.fields() == ({} if name == "_headers" else {"X-A": "b"})
    assert kept.location() == (None if name == "_redirects" else "/b")


async def test_the_rules_of_the_options_stay_and_have_their_place(folder: Path, keep: Keep) -> None:
    """[[header]] wins over `_headers`, and the first [[redirect]] that matches over `_redirects`."""
    put(folder, "_headers", "/*\n  X-A: file\n  X-B: file\n")
    put(folder, "_redirects", "/a /file\n/b /file\n")
    kept = keep(
        header=(HeaderOptions(path="**", set={"X-A": "options"}),),
        redirect=(RedirectOptions(from_="/a", to="/options"),),
    )
    assert (kept.fields(), kept.location()) == ({"X-A": "options"}, "/options")
    await kept.refresh()
    assert kept.fields() == {"X-A": "options", "X-B": "file"}
    assert (kept.location("/a"), kept.location("/b")) == ("/options", "/file")
    for name in ("_headers", "_redirects"):
        (folder / name).unlink()
    await kept.refresh_until(lambda: kept.fields() == {"X-A": "options"} and kept.location("/b") is None)
    assert kept.location("/a") == "/options"


async def test_changed_files_are_read_again(folder: Path, keep: Keep, caplog: pytest.LogCaptureFixture) -> None:
    kept = keep()
    await kept.refresh()
    assert (kept.fields(), kept.location()) == ({}, None)
    put(folder, "_headers", "/*\n  X-A: 1\n")
    await kept.refresh_until(kept.fields)
    assert (kept.fields(), kept.location()) == ({"X-A": "1"}, None)
    put(folder, "_redirects", "/a /1\n")
    await kept.refresh_until(kept.location)
    assert (kept.fields(), kept.location()) == ({"X-A": "1"}, "/1")
    # Of the same size, so that only its time or its inode differs.
    put(folder, "_headers", "/*\n  X-A: 2\n")
    (folder / "_redirects").write_text("/a /2\n")
    await kept.refresh_until(lambda: kept.fields() == {"X-A": "2"} and kept.location() == "/2")
    for name in ("_headers", "_redirects"):
        (folder / name).unlink()
    await kept.refresh_until(lambda: not kept.fields() and kept.location() is None)
    put(folder, "_headers", "/*\n  X-A: 3\n")
    await kept.refresh_until(kept.fields)
    assert kept.fields() == {"X-A": "3"}
    assert not caplog.records


async def test_what_is_wrong_is_logged_once_with_file_and_line_and_left_out(
    folder: Path, keep: Keep, caplog: pytest.LogCaptureFixture
) -> None:
    put(folder, "_headers", "/*\n  X-A: b\n  nonsense\n  Content-Length: 5\n  X-C: d\n")
    put(folder, "_redirects", "# a comment\n/a /b\n/c\n/d https://e.example 200\n/f /g\n")
    kept = keep()
    await kept.refresh()
    assert kept.fields() == {"X-A": "b", "X-C": "d"}
    assert (kept.location("/a"), kept.location("/c"), kept.location("/d"), kept.location("/f")) == (
        "/b",
        None,
        None,
        "/g",
    )
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    logged = sorted(record.getMessage() for record in caplog.records)
    assert [line.split(": ")[0] for line in logged] == [
        f"{folder}/_headers:3",
        f"{folder}/_headers:4",
        f"{folder}/_redirects:3",
        f"{folder}/_redirects:4",
    ]
    assert "nonsense" in logged[0]
    # Nothing is said again until the file changes.
    put(folder, "_redirects", "/a /changed\n/c\n")
    caplog.clear()
    await kept.refresh_until(lambda: kept.location("/a") == "/changed")
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == [f"{folder}/_redirects:2"]


async def test_a_file_that_is_repaired_is_taken(folder: Path, keep: Keep, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "_headers").write_bytes(b"\xff\xfe\0/\0*\0")
    (folder / "_redirects").write_bytes(os.urandom(2000).replace(b"/", b"") + b"\n/a /b\n")
    kept = keep()
    await kept.refresh()
    assert kept.fields() == {}
    assert kept.location() == "/b"
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert any("_headers:1" in record.getMessage() for record in caplog.records)
    put(folder, "_headers", "/*\n  X-A: b\n")
    await kept.refresh_until(kept.fields)
    assert kept.fields() == {"X-A": "b"}


async def test_what_a_file_has_beyond_its_largest_size_is_left_out(
    folder: Path, keep: Keep, caplog: pytest.LogCaptureFixture
) -> None:
    filler = "#" * 99 + "\n"
    put(folder, "_headers", "/*\n  X-A: b\n" + filler * (LARGEST_FILE // len(filler) + 1) + "/*\n  X-C: d\n")
    kept = keep()
    await kept.refresh()
    assert kept.fields() == {"X-A": "b"}
    assert [f"larger than {LARGEST_FILE} bytes" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("name", ["_headers", "_redirects"])
async def test_a_link_within_the_root_is_followed(
    folder: Path, keep: Keep, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/rules").write_text(RULES[name])
    (folder / name).symlink_to("sub/rules")
    kept = keep()
    await kept.refresh()
    assert (kept.fields(), kept.location()) == (({"X-A": "b"}, None) if name == "_headers" else ({}, "/b"))
    assert not caplog.records


async def test_rules_hold_from_the_first_request_on(folder: Path, keep: Keep) -> None:
    """Of several that come at once, none goes out without them."""
    put(folder, "_headers", "/*\n  X-A: b\n")
    put(folder, "_redirects", "/a /b\n")
    kept = keep()
    seen = []

    async def request() -> None:
        await kept.refresh()
        seen.append((kept.fields(), kept.location()))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(request)
    assert seen == [({"X-A": "b"}, "/b")] * 5


@pytest.mark.parametrize("kind", ["folder", "FIFO"])
@pytest.mark.parametrize("name", ["_headers", "_redirects"])
async def test_rules_that_cannot_be_read_are_told_once(
    folder: Path, keep: Keep, caplog: pytest.LogCaptureFixture, name: str, kind: str
) -> None:
    for file, text in RULES.items():
        put(folder, file, text)
    kept = keep()
    await kept.refresh()
    (folder / name).unlink()
    if kind == "folder":
        (folder / name).mkdir()
    else:
        os.mkfifo(folder / name)
    await kept.refresh_until(lambda: caplog.records)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert f"{folder}/{name}" in caplog.records[0].getMessage()
    # The former rules stay in force: a Content-Security-Policy is not lost.
    assert (kept.fields(), kept.location()) == ({"X-A": "b"}, "/b")
    other = ({"_headers", "_redirects"} - {name}).pop()
    put(folder, other, "\n")
    await kept.refresh_until(lambda: not kept.fields() or kept.location() is None)
    assert len(caplog.records) == 1


async def test_protected_paths_come_from_both_files_and_go_with_them(folder: Path, keep: Keep) -> None:
    kept = keep()
    await kept.refresh()
    assert not kept.rules.protecting
    put(folder, "_headers", "/a/*\n  Basic-Auth user:password\n")
    put(folder, "_redirects", "/b/* 200! Role=admin\n")
    await kept.refresh_until(lambda: kept.rules.protect("/a/x") and kept.rules.protect("/b/x"))
    assert kept.rules.protecting
    assert not kept.rules.protect("/c")
    assert [kept.rules.require_password(path) for path in ("/a/x", "/b/x", "/c")] == [True, False, False]
    assert kept.fields("/a/x") == {}
    # What cannot be read opens nothing.
    (folder / "_headers").unlink()
    (folder / "_headers").mkdir()
    put(folder, "_redirects", "/b /c\n")
    await kept.refresh_until(lambda: not kept.rules.protect("/b/x"))
    assert kept.rules.protect("/a/x")
    (folder / "_headers").rmdir()
    await kept.refresh_until(lambda: not kept.rules.protecting)


async def test_passwords_come_from_the_file_and_go_with_it(folder: Path, keep: Keep) -> None:
    kept = keep()
    put(folder, "_headers", "/a/*\n  Basic-Auth: user:password\n/b\n  Basic-Auth: user:other\n")
    await kept.refresh()
    covered = [[check.paths.cover(path) for path in ("/a/x", "/b", "/c")] for check in kept.rules.checks]
    assert (covered, kept.rules.protecting) == ([[True, False, False], [False, True, False]], False)
    put(folder, "_headers", "/c\n  X-A: b\n")
    await kept.refresh_until(lambda: not kept.rules.checks)


@pytest.mark.parametrize(
    ("name", "line"),
    [("_headers", "/a\n Basic-Auth: user:password"), ("_redirects", "/a 200! Role=b"), ("_redirects", "/a /b 401!")],
)
@pytest.mark.parametrize("size", [LARGEST_FILE + 1, 2 * LARGEST_FILE - 20, 3 * LARGEST_FILE])
async def test_what_is_too_much_of_a_file_protects_everything_if_it_protects_anything(
    folder: Path, keep: Keep, caplog: pytest.LogCaptureFixture, name: str, line: str, size: int
) -> None:
    filler = "#" * 99 + "\n"
    whole = (filler * (size // len(filler) + 1))[: size - 1] + "\n"
    put(folder, name, whole)
    kept = keep()
    await kept.refresh()
    assert not kept.rules.protecting
    put(folder, name, whole + line + "\n" + filler * 100)
    await kept.refresh_until(lambda: kept.rules.protecting)
    assert kept.rules.protect("/any/path")
    assert any(
        record.getMessage() == f"{folder}/{name}: what is left out protects paths: 403 for all of the site"
        for record in caplog.records
    )
    assert "password" not in caplog.text


async def test_what_could_not_be_read_once_is_tried_again(
    folder: Path, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "_headers", "/a\n  X-A: b\n")
    kept = keep()

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing)
        with pytest.raises(Unusable) as refused:
            await kept.refresh()
    assert refused.value.miss is Miss.FAILED
    assert kept.fields() == {}
    await kept.refresh()
    assert kept.fields() == {"X-A": "b"}


@pytest.mark.parametrize("name", ["_headers", "_redirects"])
async def test_nothing_is_served_before_the_first_rules_are_read(
    folder: Path, keep: Keep, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file of rules that is there and cannot be read may protect paths. Logged once, and read as soon as possible."""
    (folder.parent / "outside").write_text(RULES[name])
    (folder / name).symlink_to("../outside")
    kept = keep()
    for _ in range(3):
        with pytest.raises(Unusable) as refused:
            await kept.refresh()
        assert refused.value.miss is Miss.OUTSIDE
    assert (kept.fields(), kept.location()) == ({}, None)
    assert caplog.messages == [f"{folder}/{name}: cannot be read: a link out of the root"]
    put(folder, name, RULES[name])
    await kept.refresh()
    assert kept.fields() == ({"X-A": "b"} if name == "_headers" else {})
    assert kept.location() == ("/b" if name == "_redirects" else None)


async def test_a_root_that_is_closed_says_nothing_of_the_rules(folder: Path, keep: Keep) -> None:
    """A request may have taken a root before another one came into its place, and look only then."""
    put(folder, "_headers", "/secret/*\n  Basic-Auth user:password\n")
    former, kept = keep(), keep()
    former.root.close()
    await kept.rules.refresh(former.root)
    await kept.refresh()
    assert kept.rules.protect("/secret/a")
    kept.rules.renew()
    await kept.rules.refresh(former.root)
    assert kept.rules.protect("/secret/a")
    put(folder, "_headers", "/other/*\n  Basic-Auth user:password\n")
    await kept.refresh()
    assert kept.rules.protect("/other/a")

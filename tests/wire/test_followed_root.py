"""A root is the folder that its path leads to, whatever is swapped, removed, replaced or mounted there."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.protocols import HTTP_1, HTTP_2, PROTOCOLS, ask_by_both, conversation
from tests.serving import (
    Running,
    eventually,
    exchange_plain,
    get,
    parse,
    run_to_end,
    serving,
)

BIG = os.urandom(20_000_000)
OLD, NEW = b"old content\n", b"new content, of another length\n"


def release(place: Path, number: int, content: bytes) -> Path:
    """A folder of a deployment."""
    folder = place / f"releases/{number}"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_bytes(content)
    (folder / "a.txt.gz").write_bytes(b"gzip of " + content)
    (folder / "_headers").write_text(f"/*\n  X-Release: {number}\n")
    (folder / f"only-{number}.txt").write_bytes(content)
    (folder / "404.html").write_bytes(b"not in " + content)
    os.utime(folder / "a.txt.gz", ns=(2 * 10**18, 2 * 10**18))
    os.utime(folder / "a.txt", ns=(2 * 10**18, 2 * 10**18))
    return folder


def point(link: Path, target: Path) -> None:
    """Swap a link as deployments do, by rename."""
    new = link.with_name("n")
    new.symlink_to(target)
    new.rename(link)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    release(tmp_path, 41, OLD)
    (tmp_path / "current").symlink_to("releases/41")
    return tmp_path


@pytest.fixture
def server(place: Path) -> Iterator[Running]:
    config = place / "ktlsd.toml"
    config.write_text(f'root = "{place}/current"\nheaders_file = true\n[error_pages]\n404 = "/404.html"\n')
    with serving(None, "--config", str(config), state=place / "state") as running:
        yield running


def serves_new(server: Running) -> bool:
    return get(server.port, "/a.txt").body == NEW


def swap_link(place: Path) -> None:
    point(place / "current", release(place, 42, NEW))


def swap_link_and_remove(place: Path) -> None:
    swap_link(place)
    shutil.rmtree(place / "releases/41")


def make_anew(place: Path) -> None:
    """The inode of a folder that is removed is soon another's."""
    shutil.rmtree(place / "releases/41")
    release(place, 41, NEW)
    (place / "releases/41/_headers").write_text("/*\n  X-Release: 42\n")
    (place / "releases/41/only-41.txt").unlink()
    (place / "releases/41/only-42.txt").write_bytes(NEW)


def rename_over(place: Path) -> None:
    release(place, 42, NEW)
    (place / "releases/41").rename(place / "releases/40")
    (place / "releases/42").rename(place / "releases/41")


@pytest.mark.parametrize("swap", [swap_link, swap_link_and_remove, make_anew, rename_over])
def test_the_new_tree_answers(server: Running, place: Path, swap: Callable[[Path], None]) -> None:
    for _ in range(2):
        old = ask_by_both(server.port, "/a.txt")
        assert (old.body, old.fields["x-release"]) == (OLD, "41")
    assert ask_by_both(server.port, "/only-41.txt").body == OLD
    lines = len(server.log)
    swap(place)
    assert eventually(lambda: serves_new(server))
    new = ask_by_both(server.port, "/a.txt")
    assert (new.body, new.fields["x-release"]) == (NEW, "42")
    assert new.fields["etag"] != old.fields["etag"]
    assert ask_by_both(server.port, "/a.txt", "Accept-Encoding: gzip").body == b"gzip of " + NEW
    assert ask_by_both(server.port, "/a.txt", f"If-None-Match: {old.fields['etag']}").status == 200
    assert ask_by_both(server.port, "/only-42.txt").body == NEW
    gone = ask_by_both(server.port, "/only-41.txt")
    assert (gone.status, gone.body) == (404, b"not in " + NEW)
    told = [line for line in server.log[lines:] if "leads to another folder" in line]
    assert told == [f"{place}/current: now leads to another folder, which is served"]


def config_map(volume: Path, number: int, **files: bytes) -> None:
    """What the kubelet does for a ConfigMap that is mounted: a folder of its own, and links by way of ..data."""
    folder = volume / f"..2026_11_30_{number}"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    new = volume / "..data_tmp"
    new.symlink_to(folder.name)
    former = (volume / "..data").resolve()
    new.rename(volume / "..data")
    for name in files:
        link = volume / name.replace("_", ".")
        if not link.is_symlink():
            link.symlink_to(f"..data/{link.name}")
    if former.is_dir() and former.name != "..data":
        shutil.rmtree(former)


def test_a_config_map(tmp_path: Path) -> None:
    volume = tmp_path / "www"
    config_map(volume, 1, a_txt=OLD, index_html=b"<p>old")
    with serving(volume, "--listing", state=tmp_path / "state") as server:
        for _ in range(2):
            old = ask_by_both(server.port, "/a.txt")
            assert old.body == OLD
        assert ask_by_both(server.port, "/").body == b"<p>old"
        for name in ("/..data/a.txt", "/..2026_11_30_1/a.txt", "/..data/"):
            assert ask_by_both(server.port, name).status == 404
        config_map(volume, 2, a_txt=NEW, b_txt=b"b", index_html=b"<p>new")
        assert eventually(lambda: serves_new(server))
        assert ask_by_both(server.port, "/a.txt", f"If-None-Match: {old.fields['etag']}").body == NEW
        assert ask_by_both(server.port, "/").body == b"<p>new"
        assert ask_by_both(server.port, "/b.txt").body == b"b"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_file_system_that_is_mounted_over_the_root_is_served(server: Running, place: Path) -> None:
    assert get(server.port, "/a.txt").body == OLD
    root = place / "releases/41"
    subprocess.run(["mount", "-t", "tmpfs", "none", root], check=True)
    try:
        (root / "a.txt").write_bytes(NEW)
        assert eventually(lambda: serves_new(server))
    finally:
        subprocess.run(["umount", "-l", root], check=True)
    assert eventually(lambda: get(server.port, "/a.txt").body == OLD)


def test_an_absolute_root_needs_no_working_folder(place: Path) -> None:
    """The folder of an older release that a service was started in may be removed."""
    (place / "working").mkdir()
    gone = ("sh", "-c", f'cd "{place}/working" && rmdir "$PWD" && exec "$@"', "sh")
    program = (str(Path(sys.executable).with_name("ktlsd")),)
    with serving(place / "current", state=place / "state", wrapper=gone, program=program) as server:
        assert get(server.port, "/a.txt").body == OLD
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("configuration reloaded")
        swap_link(place)
        assert eventually(lambda: serves_new(server))


def test_a_response_that_has_begun_ends_with_its_file(server: Running, place: Path) -> None:
    (place / "releases/41/big.bin").write_bytes(BIG)
    with conversation(server.port, HTTP_1) as one, conversation(server.port, HTTP_2) as other:
        downloads = [client.begin("/big.bin") for client in (one, other)]
        for download in downloads:
            download.read(1)
        swap_link_and_remove(place)
        (place / "releases/42/big.bin").write_bytes(BIG[::-1])
        assert eventually(lambda: serves_new(server))
        for download in downloads:
            assert download.answer().body == BIG
    assert ask_by_both(server.port, "/big.bin").body == BIG[::-1]


def test_a_root_that_is_missing_is_told_and_comes_back(server: Running, place: Path) -> None:
    assert ask_by_both(server.port, "/a.txt").body == OLD
    (place / "current").unlink()
    assert eventually(lambda: get(server.port, "/a.txt").status == 503)
    assert ask_by_both(server.port, "/a.txt").status == 503
    assert server.wait_for_line(f"{place}/current: No such file or directory: requests get 503 until it exists again")
    assert server.wait_for_line("503 GET /a.txt: the root folder is missing")
    (place / "current").symlink_to(release(place, 42, NEW))
    assert eventually(lambda: serves_new(server))


def test_a_root_is_not_followed_out_of_where_the_server_was_started(place: Path) -> None:
    """A relative root is below the folder that the server was started in, whatever happens to a link there."""
    with serving(Path("current"), state=place / "state", wrapper=("env", "-C", str(place))) as server:
        assert get(server.port, "/a.txt").body == OLD
        swap_link_and_remove(place)
        assert eventually(lambda: serves_new(server))


@pytest.mark.parametrize("workers", [1, 2])
def test_swaps_under_load_mix_no_two_trees(place: Path, workers: int) -> None:
    """Each answer is of one tree: its body, its rules and its validator belong together."""
    ends = threading.Event()
    wrong: list[tuple[int, bytes, str | None]] = []
    seen: set[bytes] = set()
    release(place, 42, NEW)
    config = place / "ktlsd.toml"
    config.write_text(f'root = "{place}/current"\nheaders_file = true\nworkers = {workers}\n')
    with serving(None, "--config", str(config), state=place / "state") as server:

        def ask(protocol: str) -> None:
            while not ends.is_set():
                with conversation(server.port, protocol) as client:
                    requests = [client.begin("/a.txt") for _ in range(20)]
                    for answer in (request.answer() for request in requests):
                        told = answer.fields.get("x-release")
                        seen.add(answer.body)
                        if (answer.body, told) not in ((OLD, "41"), (NEW, "42")):
                            wrong.append((answer.status, answer.body, told))

        askers = [threading.Thread(target=ask, args=(protocol,)) for protocol in PROTOCOLS]
        for asker in askers:
            asker.start()
        try:
            for number in itertools.islice(itertools.cycle((42, 41)), 4):
                lines = len(server.log)
                point(place / "current", place / f"releases/{number}")
                assert server.wait_for_line("leads to another folder", since=lines)
                content = NEW if number == 42 else OLD
                assert eventually(lambda content=content: get(server.port, "/a.txt").body == content)  # type: ignore[misc]
        finally:
            ends.set()
            for asker in askers:
                asker.join()
        assert wrong == []
        assert seen == {OLD, NEW}
        told = [line for line in server.log if "leads to another folder" in line]
        # One process logs it; the other one may have served a swap that was over before the first looked.
        assert len(told) == 4 if workers == 1 else 1 <= len(told) <= 4


def test_the_folder_of_challenges_is_followed(place: Path) -> None:
    challenges = place / "challenges"
    challenges.mkdir()
    (challenges / "token").write_bytes(OLD)
    request = b"GET /.well-known/acme-challenge/token HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with serving(
        place / "current",
        "--acme-challenges",
        str(challenges),
        state=place / "state",
        http_listen=("127.0.0.1:0",),
    ) as server:

        def challenge() -> tuple[int, bytes]:
            answer = parse(exchange_plain(server.http_ports[0], request))[0]
            return answer.status, answer.body

        assert challenge() == (200, OLD)
        shutil.rmtree(challenges)
        assert eventually(lambda: challenge()[0] in (404, 503))
        challenges.mkdir()
        (challenges / "token").write_bytes(NEW)
        assert eventually(lambda: challenge() == (200, NEW))


def two_sites(place: Path, *lines: str) -> Path:
    config = place / "two.toml"
    sites = f'[[site]]\nnames = ["other.example"]\nroot = "{place}/other"\n'
    config.write_text(
        "\n".join([f'root = "{place}/current"', f'acme_challenges = "{place}/challenges"', *lines, sites])
    )
    return config


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_folder_that_is_missing_at_the_start_stops_no_other_site(place: Path, workers: str) -> None:
    """A reboot must not take 199 sites down with one; `check` and `strict` say no."""
    config = two_sites(place)
    with serving(None, "--config", str(config), "--workers", workers, state=place / "state") as server:

        def missing() -> list[str]:
            return [line for line in server.log if line.endswith("requests get 503 until it exists")]

        advice = "there is no such folder: requests get 503 until it exists"
        lines = [f"{place}/{name}: {advice}" for name in ("other", "challenges")]
        for line in lines:
            assert server.wait_for_line(f"^{line}$")
        assert missing() == lines
        assert get(server.port, "/a.txt").body == OLD
        assert get(server.port, "/a.txt", host="other.example", name="other.example").status == 503
        # A reload takes what is missing still, but nothing new that is.
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("configuration reloaded")
        # Once for all processes.
        assert missing() == lines * 2
        (place / "other").symlink_to(release(place, 42, NEW))
        assert eventually(lambda: get(server.port, "/a.txt", host="other.example", name="other.example").body == NEW)
        config.write_text(config.read_text().replace("/current", "/nowhere"))
        server.process.send_signal(signal.SIGHUP)
        assert server.wait_for_line(f"configuration not reloaded.*root {place}/nowhere: cannot be served")
        assert get(server.port, "/a.txt").body == OLD
        assert missing() == lines * 2


@pytest.mark.parametrize("strict", [True, False])
def test_a_start_without_any_folder_or_a_strict_one_is_refused(place: Path, strict: bool) -> None:
    if not strict:
        (place / "current").unlink()
    config = two_sites(place, "strict = true") if strict else two_sites(place)
    ended = run_to_end("--config", str(config), "--listen", "127.0.0.1:0", state=place / "state")
    missing = "site[0]: root {}/other" if strict else "root {}/current"
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    said = f": {missing.format(place)}: cannot be served: there is no such folder\n"
    assert ended.stderr.startswith(f"ktlsd: {config}:")
    assert ended.stderr.endswith(said)
    checked = run_to_end("check", "--config", str(config), state=place / "state")
    assert checked.returncode == 2

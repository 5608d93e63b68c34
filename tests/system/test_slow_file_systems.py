"""A file system that hangs, below one site, holds up no other site, and gives its own clients an answer: real FUSE.

Clients of both protocols wait for it at the same time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from ktlsd.site.response_cache import LASTING_SECONDS
from tests.hanging_fs import Mounted, mounted
from tests.protocols import HTTP_1, HTTP_2, PROTOCOLS, BrokenError, ask, conversation
from tests.serving import WAIT_SECONDS, Running, counts, eventually, get, serving

CONTENT = os.urandom(3_000_000)
FILE_SECONDS = 1.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "local").mkdir()
    (tmp_path / "shown/folder").mkdir(parents=True)
    for number in range(100):
        (tmp_path / f"local/{number}.txt").write_text(str(number))
    (tmp_path / "shown/big.bin").write_bytes(CONTENT)
    (tmp_path / "shown/app.js").write_bytes(b"plain")
    (tmp_path / "shown/folder/a.txt").write_bytes(b"a")
    return tmp_path


@pytest.fixture
def hanging(place: Path) -> Iterator[Mounted]:
    with mounted(place / "shown", place / "mount", place / "held") as mount:
        yield mount


@contextmanager
def two_sites(
    place: Path, hanging: Mounted, *lines: str, slow: Path | None = None, limits: str = ""
) -> Iterator[Running]:
    """A server with one site on a local disk, the default, and one called slow.example on FUSE."""
    config = place / "ktlsd.toml"
    config.write_text(
        "\n".join(
            [
                *(f'root = "{place}/local"', "drain_seconds = 2", 'metrics_listen = "127.0.0.1:0"', *lines),
                *("[limits]", f"file_seconds = {FILE_SECONDS}", limits),
                *("[[site]]", 'names = ["slow.example"]', f'root = "{slow or hanging.path}"', "listing = true"),
            ]
        )
    )
    with serving(None, "--config", str(config), state=place / "state") as server:
        try:
            yield server
        finally:
            # A thread that is held keeps the pipe of the log open.
            hanging.go_on()
            hanging.hold()


def slow_get(
    server: Running, target: str, *fields: str, method: str = "GET", protocol: str = HTTP_1
) -> tuple[int, bytes]:
    name = "slow.example"
    answer = ask(server.port, target, *fields, protocol=protocol, method=method, host=name, name=name)
    return answer.status, answer.body


def slow_gets(crowd: ThreadPoolExecutor, server: Running, target: str, count: int) -> list[Future[tuple[int, bytes]]]:
    """So many at the same time, of each protocol in turn."""
    protocols = itertools.islice(itertools.cycle(PROTOCOLS), count)
    return [crowd.submit(slow_get, server, target, protocol=protocol) for protocol in protocols]


def wait_until_forgotten() -> None:
    """Wait until no response from before is remembered."""
    time.sleep(LASTING_SECONDS + 0.1)


@pytest.mark.parametrize(
    ("call", "target"),
    [
        ("open", "/folder/a.txt"),
        ("getattr", "/folder/a.txt"),
        ("read", "/folder/a.txt"),
        ("readdir", "/folder/"),
        ("statfs", "/folder/a.txt"),
        ("flush", "/folder/a.txt"),
    ],
)
def test_a_call_that_hangs_is_answered_and_holds_up_nobody_else(
    place: Path, hanging: Mounted, call: str, target: str
) -> None:
    with two_sites(place, hanging) as server, ThreadPoolExecutor(2) as others:
        before = slow_get(server, target)
        assert before[0] == 200
        wait_until_forgotten()
        hanging.hold(call)
        waiting = slow_gets(others, server, target, 2)
        # All of these get their answer while the call is held.
        for number in range(20):
            assert get(server.port, f"/{number}.txt").body == str(number).encode()
        if call in ("flush", "statfs"):
            # A client does not wait for a close(2), and the kind of the file system is in the kernel's table.
            assert [each.result() for each in waiting] == [before] * 2
        else:
            assert [each.result()[0] for each in waiting] == [503] * 2
            assert server.wait_for_line(f"503 GET {target}: the file system does not answer")
            assert server.wait_for_line(f"{place}/mount: the file system did not answer within 1 s")
            assert counts(server, "ktlsd_limited_total")["file_seconds"] == 2
        assert get(server.port, "/20.txt").body == b"20"
        hanging.hold()
        assert eventually(lambda: slow_get(server, target)[0] == 200)
        assert server.stop() == 0


def test_a_crowd_of_hanging_requests_leaves_the_other_sites_their_threads(place: Path, hanging: Mounted) -> None:
    with two_sites(place, hanging, limits="client_connections = 0") as server, ThreadPoolExecutor(45) as crowd:
        hanging.hold("open")
        waiting = slow_gets(crowd, server, "/big.bin", 45)
        # Names that the kernel has not seen yet need a thread.
        for number in range(30, 60):
            assert get(server.port, f"/{number}.txt").body == str(number).encode()
        assert {answer.result()[0] for answer in waiting} == {503}
        # With all its threads held, the site answers at once.
        began = time.monotonic()
        assert slow_get(server, "/app.js")[0] == 503
        assert time.monotonic() - began < FILE_SECONDS
        hanging.hold()
        assert eventually(lambda: slow_get(server, "/app.js") == (200, b"plain"))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("signals", [1, 2])
def test_nothing_that_hangs_keeps_the_process(place: Path, hanging: Mounted, workers: int, signals: int) -> None:
    with (
        two_sites(place, hanging, f"workers = {workers}", limits="client_connections = 0") as server,
        ThreadPoolExecutor(20) as crowd,
    ):
        hanging.hold("open")
        waiting = slow_gets(crowd, server, "/big.bin", 20)
        assert get(server.port, "/1.txt").body == b"1"
        for _ in range(signals):
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert server.process.wait(30) == 0
        for answer in waiting:
            # Those that were in progress at the end were cut off.
            with contextlib.suppress(OSError, ValueError, BrokenError):
                assert answer.result()[0] == 503
        hanging.hold()


def test_a_daemon_that_hangs_is_survived(place: Path, hanging: Mounted) -> None:
    with two_sites(place, hanging) as server, ThreadPoolExecutor(2) as others:
        assert slow_get(server, "/app.js") == (200, b"plain")
        wait_until_forgotten()
        hanging.stop()
        waiting = slow_gets(others, server, "/app.js", 2)
        for number in range(20):
            assert get(server.port, f"/{number}.txt").body == str(number).encode()
        assert [each.result()[0] for each in waiting] == [503] * 2
        # A reload waits for no root, either.
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("configuration reloaded")
        assert get(server.port, "/21.txt").body == b"21"
        hanging.go_on()
        assert eventually(lambda: slow_get(server, "/app.js") == (200, b"plain"))
        hanging.stop()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        hanging.go_on()


def test_a_root_that_hangs_at_the_start_comes_later(place: Path, hanging: Mounted) -> None:
    hanging.hold("getattr")
    with two_sites(place, hanging, slow=hanging.path / "folder") as server:
        assert server.wait_for_line(rf"{place}/mount/folder: the file system does not answer")
        assert get(server.port, "/1.txt").body == b"1"
        assert slow_get(server, "/a.txt")[0] == 503
        hanging.hold()
        assert eventually(lambda: slow_get(server, "/a.txt") == (200, b"a"))


def test_a_start_does_not_wait_for_each_root_that_hangs(place: Path, hanging: Mounted) -> None:
    for number in range(6):
        (place / f"shown/{number}").mkdir()
    sites = (f"[[site]]\nnames = ['{n}.example']\nroot = '{hanging.path}/{n}'" for n in range(6))
    hanging.hold("getattr")
    began = time.monotonic()
    with two_sites(place, hanging, limits="\n".join(sites)) as server:
        # One after the other, just these six would take 30 s.
        assert time.monotonic() - began < 20
        assert get(server.port, "/1.txt").body == b"1"
        assert get(server.port, "/", host="5.example", name="5.example").status == 503
        hanging.hold()
        assert eventually(lambda: get(server.port, "/absent", host="5.example", name="5.example").status == 404)


@pytest.mark.parametrize("below", [False, True], ids=["as a root", "below a root"])
def test_what_arrives_from_fuse_is_what_is_there(place: Path, hanging: Mounted, below: bool) -> None:
    root, prefix = (place, f"/{hanging.path.name}") if below else (hanging.path, "")
    with two_sites(place, hanging, slow=root) as server:
        told = rf"^{root}: files on {hanging.path} \(fuse\) are read in threads and sent from memory$"
        assert server.wait_for_line(told)
        for protocol in PROTOCOLS:
            slow = partial(slow_get, server, protocol=protocol)
            for _ in range(2):
                assert slow(f"{prefix}/big.bin") == (200, CONTENT)
            assert slow(f"{prefix}/big.bin", "Range: bytes=1000000-2000000") == (206, CONTENT[1000000:2000001])
            status, body = slow(f"{prefix}/big.bin", "Range: bytes=0-9,2000000-2999999")
            assert status == 206
            assert CONTENT[:10] in body
            assert CONTENT[2000000:] in body
            assert slow(f"{prefix}/big.bin", method="HEAD") == (200, b"")
            assert slow(f"{prefix}/folder/a.txt") == (200, b"a")
            assert b"a.txt" in slow(f"{prefix}/folder/")[1]
            assert slow(f"{prefix}/absent")[0] == 404
            if below:
                assert slow("/local/1.txt") == (200, b"1")
        # No file stays open.
        count = server.open_files()
        assert slow_get(server, f"{prefix}/app.js") == (200, b"plain")
        assert eventually(lambda: server.open_files() <= count)


def test_a_read_that_hangs_in_the_middle_is_no_whole_response(place: Path, hanging: Mounted) -> None:
    name = "slow.example"
    with (
        two_sites(place, hanging) as server,
        conversation(server.port, HTTP_1, name=name) as one,
        conversation(server.port, HTTP_2, name=name) as other,
    ):
        downloads = [client.begin("/big.bin", host=name) for client in (one, other)]
        for download in downloads:
            download.read(1)
        hanging.hold("read")
        for download in downloads:
            with pytest.raises(BrokenError):
                download.answer()
        for ended in ("cut off", "stream 1 reset"):
            assert server.wait_for_line(f"{ended}: the file system did not answer a read within 1 s")
        hanging.hold()
        assert other.get("/app.js", host=name).body == b"plain"


def settle(path: Path) -> None:
    """Wait until a response from a file may be remembered: its ctime cannot be set."""
    while time.time_ns() - path.stat().st_ctime_ns <= 2_100_000_000:
        time.sleep(0.05)


@pytest.mark.parametrize("held", ["open getattr read flush statfs", "daemon"])
@pytest.mark.parametrize("size", [5, 10_240, 131_072])
def test_a_small_file_needs_the_file_system_once_a_second(place: Path, hanging: Mounted, held: str, size: int) -> None:
    content = os.urandom(size)
    (place / "shown/small.bin").write_bytes(content)
    settle(place / "shown/small.bin")
    with two_sites(place, hanging) as server:
        tag = get(server.port, "/small.bin", host="slow.example", name="slow.example").fields["etag"]
        requests: list[tuple[str, tuple[int, bytes]]] = [
            ("Accept: */*", (200, content)),
            ("Range: bytes=1-3", (206, content[1:4])),
            (f"If-None-Match: {tag}", (304, b"")),
        ]

        def remembers() -> bool:
            """Whether all that was asked for within the last second is answered, although the file system hangs."""
            for field, expected in requests:
                assert slow_get(server, "/small.bin", field) == expected
            hanging.stop() if held == "daemon" else hanging.hold(*held.split())
            answers = [slow_get(server, "/small.bin", field) for field, _ in requests]
            hanging.go_on() if held == "daemon" else hanging.hold()
            for answer, (_, expected) in zip(answers, requests, strict=True):
                assert answer == expected or answer[0] == 503
            return answers == [expected for _, expected in requests]

        # On a busy machine, the second may be over before the last of them.
        assert eventually(remembers)
        wait_until_forgotten()
        new = content[::-1]
        (place / "shown/new").write_bytes(new)
        (place / "shown/new").rename(place / "shown/small.bin")
        assert slow_get(server, "/small.bin") == (200, new)


def test_a_body_too_large_is_not_remembered(place: Path, hanging: Mounted) -> None:
    settle(place / "shown/big.bin")
    with two_sites(place, hanging) as server:
        assert slow_get(server, "/big.bin") == (200, CONTENT)
        hanging.hold("open")
        assert slow_get(server, "/big.bin")[0] == 503
        hanging.hold()


def test_a_mount_that_hangs_holds_up_no_other_file_of_its_site(place: Path, hanging: Mounted) -> None:
    with two_sites(place, hanging, slow=place) as server, ThreadPoolExecutor(1) as other:
        assert slow_get(server, "/mount/app.js") == (200, b"plain")
        wait_until_forgotten()
        hanging.hold("open")
        waiting = other.submit(slow_get, server, "/mount/app.js")
        for number in range(20):
            assert slow_get(server, f"/local/{number}.txt") == (200, str(number).encode())
        assert waiting.result()[0] == 503
        hanging.hold()


def test_rules_on_a_file_system_that_hangs_are_not_left_out(place: Path, hanging: Mounted) -> None:
    (place / "shown/_headers").write_text("/*\n  X-Rule: holds\n")
    with two_sites(place, hanging) as server:
        config = Path(place / "ktlsd.toml")
        config.write_text(config.read_text() + "\nheaders_file = true\n")
        hanging.hold("read")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("configuration reloaded")
        assert slow_get(server, "/app.js")[0] == 503
        hanging.hold()
        answer = get(server.port, "/app.js", host="slow.example", name="slow.example")
        assert (answer.status, answer.fields["x-rule"]) == (200, "holds")


def test_requests_that_wait_for_the_same_rules_fail_together(place: Path, hanging: Mounted) -> None:
    (place / "shown/_headers").write_text("/*\n  X-Rule: holds\n")
    limits = 'client_connections = 0\n[[site]]\nnames = ["other.example"]\nheaders_file = true\n'
    limits += f'root = "{hanging.path}"'
    with two_sites(place, hanging, limits=limits) as server, ThreadPoolExecutor(10) as crowd:
        hanging.hold("read")
        began = time.monotonic()
        name = "other.example"
        waiting = [crowd.submit(get, server.port, "/app.js", host=name, name=name) for _ in range(10)]
        assert {answer.result().status for answer in waiting} == {503}
        # One after the other, they would take ten times as long as one.
        assert time.monotonic() - began < 5 * FILE_SECONDS
        hanging.hold()
        assert eventually(lambda: get(server.port, "/app.js", host=name, name=name).fields.get("x-rule") == "holds")


def test_a_sibling_that_is_a_link_to_a_mount_that_hangs_holds_up_nobody(place: Path) -> None:
    (place / "local/page.js").write_bytes(b"page")
    # A file that has not changed for a while: only those are remembered.
    library = Path(os.__file__)
    (place / "local/page.js.gz").symlink_to(f"../library/{library.name}")
    config = place / "ktlsd.toml"
    config.write_text(f'root = "{place}/local"\nprecompressed = ["gzip"]\n[limits]\nfile_seconds = {FILE_SECONDS}\n')
    time.sleep(2.5)
    with (
        mounted(library.parent, place / "library", place / "held") as hanging,
        serving(None, "--config", str(config), state=place / "state") as server,
        ThreadPoolExecutor(1) as other,
    ):
        assert get(server.port, "/page.js").body == b"page"
        assert get(server.port, "/1.txt").body == b"1"
        # What is remembered is compared with its folders and siblings after a second.
        time.sleep(1.1)
        hanging.stop()
        asked = other.submit(get, server.port, "/page.js")
        began = time.monotonic()
        for number in range(20):
            assert get(server.port, f"/{number}.txt").body == str(number).encode()
        assert time.monotonic() - began < WAIT_SECONDS / 2
        hanging.go_on()
        assert asked.result().status in (200, 503)


@pytest.mark.parametrize("workers", [1, 2])
def test_certificates_on_a_file_system_that_hangs_keep_nothing_from_ending(
    place: Path, hanging: Mounted, workers: int
) -> None:
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost"
    files = ["-keyout", str(place / "shown/key.pem"), "-out", str(place / "shown/cert.pem")]
    subprocess.run([*make.split(), *files], check=True, capture_output=True)
    config = place / "ktlsd.toml"
    config.write_text(
        f'root = "{place}/local"\nworkers = {workers}\ndrain_seconds = 2\n'
        f'cert = "{hanging.path}/cert.pem"\nkey = "{hanging.path}/key.pem"\n'
    )
    with serving(None, "--config", str(config), state=place / "state") as server:
        assert get(server.port, "/1.txt").body == b"1"
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("configuration reloaded")
        hanging.hold("getattr", "open")
        try:
            assert server.wait_for_line("certificates not reloaded.*the file system of .* does not answer within 5 s")
            server.process.send_signal(signal.SIGHUP)
            assert server.wait_for_line("configuration not reloaded.*the file system of .* does not answer")
            assert get(server.port, "/2.txt").body == b"2"
            hanging.hold()
            lines = len(server.log)
            assert eventually(lambda: reloads(server, lines))
            hanging.hold("getattr", "open")
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
        finally:
            hanging.hold()


@pytest.mark.parametrize(
    ("call", "target", "line"), [("readdir", "/folder/", ""), ("read", "/app.js", 'etag = "content"')]
)
def test_requests_that_wait_for_each_other_fail_together(
    place: Path, hanging: Mounted, call: str, target: str, line: str
) -> None:
    """Of listings and hashes, a few at a time are made."""
    limits = (
        f"client_connections = 0\n[[site]]\nnames = ['other.example']\nroot = '{hanging.path}'\nlisting = true\n{line}"
    )
    name = "other.example"
    with two_sites(place, hanging, limits=limits) as server, ThreadPoolExecutor(12) as crowd:
        hanging.hold(call)
        began = time.monotonic()
        waiting = [crowd.submit(get, server.port, target, host=name, name=name) for _ in range(12)]
        assert {answer.result().status for answer in waiting} == {503}
        # Two at a time, they would take six times as long as one.
        assert time.monotonic() - began < 4.5 * FILE_SECONDS
        hanging.hold()
        assert eventually(lambda: get(server.port, target, host=name, name=name).status == 200)


def reloads(server: Running, since: int) -> bool:
    """Whether a reload that is asked for succeeds at once."""
    server.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    return any("configuration reloaded" in line for line in server.log[since:])

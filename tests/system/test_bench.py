"""The benchmark measures for real, says who is missing, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import CLIENT_SETTINGS
from bench.clients import ClientError, IdleMemory, SharedLatency, Target, Wrk
from bench.file_systems import FileSystem
from bench.http2_clients import Downloads, Http2Traffic, Streams
from bench.machine import set_priority, set_session_priority
from bench.metrics import METRICS, ratio
from bench.mounted_client import Mounted
from bench.peers import PATH, PEERS, Place, Programs
from bench.plot import points
from bench.ports import free_port
from bench.report import shortfalls, verdict
from bench.rows import ROWS, Limit, Row, Setting, select
from bench.run import RowResult
from bench.servers import Server, running
from bench.site import Site
from bench.summary import table
from bench.traffic import Tree, browsing, scanning
from bench.traffic_client import Browsing, Forwarded, Scanning, Traffic, Work

CHECKOUT = Path(__file__).resolve().parents[2]
RUN_SECONDS = 240.0
NO_PYTHON = "/nonexistent/python"
TOOLS = ("nginx", "wrk", "openssl", "taskset")
needs_tools = pytest.mark.skipif(
    not all(shutil.which(tool, path=PATH) for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"
)


@dataclass(frozen=True)
class Outcome:
    data: dict[str, Any]
    table: str
    printed: str
    scratch: Path


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One round of two seconds of one row against nginx, this ktlsd twice, and granian without an interpreter."""
    out, scratch = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("scratch")
    for parent in (scratch, *scratch.parents[:2]):
        parent.chmod(0o755)
    done = bench(
        *("--rows=small", "--peers=nginx,granian", f"--peer-python={NO_PYTHON}", "--workers=1", "--rounds=1"),
        *(
            "--seconds=1",
            f"--against={sys.executable} -m ktlsd",
            f"--out={out}",
            f"--scratch={scratch}",
            f"--timeout={RUN_SECONDS / 2}",
        ),
    )
    assert done.returncode == 0, done.stderr
    data = json.loads((out / "results.json").read_text())
    return Outcome(data, (out / "table.md").read_text(), done.stdout, scratch)


@needs_tools
def test_the_summary_has_a_line_for_each_figure_that_is_to_reach_something(outcome: Outcome) -> None:
    _, _, *rows = table([outcome.data]).splitlines()
    assert {row.split(" | ")[5] for row in rows} == {"uvicorn", "hypercorn", "granian", "nginx"}
    [nginx] = [row for row in rows if " nginx " in row]
    spread = outcome.data["rows"][0]["ratios"]["requests"]["nginx"]
    assert f"| {spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f}) |" in nginx
    assert "0.5x: yes" in nginx or "0.5x: **no**" in nginx
    [granian] = [row for row in rows if " granian " in row]
    assert "missing: no interpreter" in granian or f"missing: {NO_PYTHON}" in granian
    assert "cannot be told" in granian


@needs_tools
def test_the_results_have_a_figure_of_each_server_and_the_ratio(outcome: Outcome) -> None:
    [row] = outcome.data["rows"]
    assert (row["name"], row["setting"], row["workers"]) == ("small", "host", 1)
    assert set(row["samples"]) == {"ktlsd", "ktlsd-other", "nginx"}
    [ours], [theirs] = row["samples"]["ktlsd"], row["samples"]["nginx"]
    assert set(ours) == set(theirs) == {"requests", "cpu per request"}
    assert ours["requests"] > 0
    assert theirs["requests"] > 0
    spread = row["ratios"]["requests"]["nginx"]
    assert spread["min"] == spread["median"] == spread["max"] == pytest.approx(ours["requests"] / theirs["requests"])
    assert set(outcome.data["versions"]) == {"ktlsd", "ktlsd-other", "nginx"}
    assert set(row["ratios"]["requests"]) == {"ktlsd-other", "nginx"}
    assert outcome.data["machine"]["cores"].isdecimal()


@needs_tools
def test_a_missing_peer_is_named_with_the_reason_and_never_guessed(outcome: Outcome) -> None:
    assert outcome.data["missing"] == {"granian": f"no interpreter {NO_PYTHON}"}
    assert f"- granian: no interpreter {NO_PYTHON}\n" in outcome.table
    kept = {limit["peer"]: limit["kept"] for limit in outcome.data["rows"][0]["limits"]}
    assert kept["granian"] is None
    assert isinstance(kept["nginx"], bool)


@needs_tools
def test_the_table_is_printed_and_has_a_line_for_each_peer(outcome: Outcome) -> None:
    assert outcome.printed == outcome.table
    lines = [line.split(" | ") for line in outcome.table.splitlines() if line.startswith("| 10 KiB file")]
    peers = ("ktlsd-other", "nginx")
    assert [(line[2], line[4]) for line in lines] == [
        (metric, peer) for metric in ("requests", "cpu per request") for peer in peers
    ]


@needs_tools
def test_the_picture_has_a_point_for_each_ratio(outcome: Outcome) -> None:
    drawn = [(work, peer) for work, peer, _ in points(outcome.data)]
    work = "10 KiB file, 32 keep-alive connections, 1 worker"
    assert drawn[:2] == [(f"{work}: requests", "ktlsd-other"), (f"{work}: requests", "nginx")]


@needs_tools
def test_no_process_and_no_file_is_left(outcome: Outcome) -> None:
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if str(outcome.scratch).encode() in command]
    assert list(outcome.scratch.iterdir()) == []


@pytest.mark.parametrize(("option", "word"), [("--rows=nonsense", "no row"), ("--peers=nonsense", "no peer")])
def test_an_unknown_name_is_refused(option: str, word: str) -> None:
    done = bench(option)
    assert done.returncode == 2
    assert word in done.stderr


@pytest.mark.parametrize(
    ("metric", "ktlsd", "peer", "expected"),
    [
        ("requests", 200.0, 100.0, 2.0),
        ("cpu per request", 200.0, 100.0, 0.5),
        ("cpu per request", 0.0, 100.0, None),
        ("start", 0.1, 0.0, None),
    ],
)
def test_a_ratio_above_one_is_better_for_ktlsd(metric: str, ktlsd: float, peer: float, expected: float | None) -> None:
    assert ratio(metric, ktlsd, peer) == expected


def row(name: str) -> Row:
    return next(one for one in ROWS if one.name == name and one.setting is Setting.HOST)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (Limit("requests", 2.0, "nginx"), True),
        (Limit("requests", 2.1, "nginx"), False),
        (Limit("requests", 1.0, "caddy"), None),
        (Limit("requests", 300.0), True),
        (Limit("start", 0.3), False),
        (Limit("start", 0.4), True),
    ],
)
def test_limits_are_held_against_medians(limit: Limit, kept: bool | None) -> None:
    samples = {
        "ktlsd": [{"requests": one, "start": 0.4} for one in (1.0, 300.0, 300.0)],
        "nginx": [{"requests": 150.0}, {"requests": 150.0}, {"requests": 100.0}],
    }
    assert verdict(RowResult(row("small"), 1, 0.0, samples), limit) is kept


def test_what_falls_short_is_told_with_its_figure() -> None:
    [line] = shortfalls(RowResult(row("start"), 1, 0.0, {"ktlsd": [{"start": 0.5}]}))
    assert line.endswith("start ≤ 0.3: not reached (0.500 s)")


TREE = Tree("tree", files=200, folders=10, median=2048, sigma=1.2)


def test_a_tree_has_sizes_around_its_median_and_bounds() -> None:
    sizes = Tree("sizes", files=2001, folders=10, median=8192, sigma=2, smallest=100, largest=500_000).sizes()
    assert min(sizes) == 100
    assert max(sizes) == 500_000
    assert 7000 < statistics.median(sizes) < 9500
    assert set(Tree("same", files=9, folders=2, median=4096, sigma=0).sizes()) == {4096}


def test_the_same_seed_gives_the_same_requests_of_50_browsers_by_zipfs_law() -> None:
    listed = browsing(TREE)
    assert listed == browsing.__wrapped__(TREE)
    assert len({dict(head)["User-Agent"] for head in listed.heads}) == len(listed.heads) == 50
    counts = [count for _, count in Counter(one.target for one in listed.requests).most_common()]
    assert set(TREE.targets()) == {one.target for one in listed.requests}
    # The most popular file is asked for twice as often as the second and ten times as often as the tenth.
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.1)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.1)


def test_no_two_scanned_paths_are_the_same() -> None:
    requests = scanning().requests
    assert len({one.target for one in requests}) == len(requests)


def test_other_clients_read_the_same_list_as_uris() -> None:
    listed = browsing(TREE)
    uris = listed.uris("https://127.0.0.1:8443").splitlines()
    assert uris == [f"https://127.0.0.1:8443{one.target}" for one in listed.requests]
    assert listed.uris("https://127.0.0.1:8443", 1000).splitlines() == [*uris[1000:], *uris[:1000]]


@contextlib.contextmanager
def preferred() -> Iterator[None]:
    """Priority over other tests, so that no server stays without a turn for as long as a sample takes."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if os.geteuid() == 0:
        set_priority(-10)
    try:
        yield
    finally:
        if os.geteuid() == 0:
            set_priority(nice)


def test_a_process_of_no_session_keeps_its_priority() -> None:
    """CI may start the tests so; kernel threads are such processes, too. The kernel refuses with EINVAL."""
    if os.geteuid() != 0 or not Path("/proc/self/autogroup").exists():
        pytest.skip("needs root and a kernel with autogroups")
    without = [int(found.parent.name) for found in Path("/proc").glob("[0-9]*/autogroup") if not found.read_text()]
    if not without:
        pytest.skip("all processes here are in sessions")
    with pytest.raises(OSError, match="Invalid argument"):
        Path(f"/proc/{without[0]}/autogroup").write_text("0")
    set_session_priority(without[0], 0)


@pytest.fixture
def target(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Target]:
    """A ktlsd of this checkout, or the peer of the parameter, to be started as often as a client likes."""
    peer = PEERS[getattr(request, "param", "ktlsd")]
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    site = Site(tmp_path / "site")
    site.prepare()

    @contextlib.contextmanager
    def fresh(root: Path = site.root) -> Iterator[Server]:
        scratch = Path(tempfile.mkdtemp(dir=tmp_path))
        place = Place(root, site.certificate, site.key, free_port(), 1, scratch)
        programs = Programs((sys.executable, "-m", "ktlsd"), sys.executable)
        launch, cores = peer.launch(place, programs), sorted(os.sched_getaffinity(0))
        with running(peer.name, launch, place.port, cores, plain=peer.plain, http2=peer.http2) as server:
            server.wait_until_listening()
            yield server

    with preferred(), site.mounts, fresh() as server:
        yield Target(server, fresh, site, 2, 200)


@needs_tools
@pytest.mark.parametrize(
    ("target", "work"),
    [
        ("ktlsd", Browsing(TREE)),
        ("ktlsd-rules", Browsing(TREE)),
        ("ktlsd-auth", Browsing(TREE)),
        ("ktlsd", Scanning()),
        ("ktlsd-backend", Forwarded("/10k.html")),
        ("nginx-backend", Forwarded("/10k.html")),
    ],
    indirect=["target"],
)
def test_traffic_is_answered_as_asked_and_measured_at_first_and_later(
    target: Target, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSSL_CONF", str(CLIENT_SETTINGS))
    client = Traffic(work, connections=4, first_seconds=2, later=2, timed=not target.server.plain)
    client.prepare(target.site)
    assert client.check(target.server, target.site) == ""
    sample = client.measure(target)
    assert all(figure > 0 for figure in sample.values()), sample
    assert set(sample) <= set(METRICS)


needs_h2load = pytest.mark.skipif(not shutil.which("h2load"), reason="needs h2load")


@needs_h2load
@pytest.mark.parametrize("target", ["ktlsd-h2", "ktlsd"], indirect=True)
def test_h2load_measures_requests_and_downloads_over_the_protocol_of_the_server(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSSL_CONF", str(CLIENT_SETTINGS))
    target = replace(target, seconds=1)
    for client in (Streams("/forty/", 2, files=40), Downloads("/1m.bin", 2, times=30)):
        client.prepare(target.site)
        assert client.check(target.server, target.site) == ""
        sample = client.measure(target)
        assert all(figure > 0 for figure in sample.values()), sample
        assert set(sample) <= set(METRICS)


@pytest.mark.parametrize("target", ["ktlsd-h2"], indirect=True)
def test_requests_beside_downloads_and_idle_connections_of_http2(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSSL_CONF", str(CLIENT_SETTINGS))
    target = replace(target, seconds=1)
    # Small downloads end and begin again.
    latency = SharedLatency("/10k.html", 50, "/1m.bin", downloads=8, rate=2_000_000)
    for client in (latency, IdleMemory("/10k.html", 20)):
        client.prepare(target.site)
        assert client.check(target.server, target.site) == ""
        sample = client.measure(target)
        assert set(sample) <= set(METRICS)
        if client is latency:
            assert sample["p99 growth"] > 0
            # A busy machine gives less than the rate of the eight.
            assert 4 < sample["other traffic"] < 21


@needs_h2load
@pytest.mark.parametrize("target", ["ktlsd-h2"], indirect=True)
def test_traffic_over_http2_is_measured_at_first_and_later(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENSSL_CONF", str(CLIENT_SETTINGS))
    client = Http2Traffic(Browsing(TREE), connections=2, first=500, between=20, later=500)
    client.prepare(target.site)
    assert client.check(target.server, target.site) == ""
    sample = client.measure(target)
    assert all(figure > 0 for figure in sample.values()), sample
    assert set(sample) <= set(METRICS)


@needs_tools
@needs_h2load
@pytest.mark.parametrize("target", ["nginx"], indirect=True)
def test_a_server_without_http2_or_with_another_file_is_no_peer(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSSL_CONF", str(CLIENT_SETTINGS))
    client = Streams("/10k.html", 1)
    client.prepare(target.site)
    assert client.check(replace(target.server, http2=True), target.site) == "does not negotiate HTTP/2"
    target.site.file("/10k.html").write_bytes(b"short")
    assert "5 bytes where 200 with 10240" in client.check(target.server, target.site)


class Gone(Browsing):
    """Visitors of a tree that is not there."""

    def renew(self, site: Site) -> None:
        shutil.rmtree(site.root / self.tree.name, ignore_errors=True)


@needs_tools
def test_traffic_that_is_not_answered_as_asked_is_no_sample(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENSSL_CONF", str(CLIENT_SETTINGS))
    client = Traffic(Gone(TREE), connections=4, first_seconds=2, later=2)
    client.prepare(target.site)
    with pytest.raises(ClientError, match="requests failed"):
        client.measure(target)


@needs_tools
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("kind", FileSystem)
def test_a_file_on_another_file_system_is_measured_beside_one_on_the_disk(
    target: Target, kind: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSSL_CONF", str(CLIENT_SETTINGS))
    client = Mounted(kind, Wrk("/1k.html", 4, apart=True))
    client.prepare(target.site)
    assert client.check(target.server, target.site) == ""
    root = target.site.on(kind, "/1k.html")
    assert os.path.ismount(root)
    sample = client.measure(target)
    assert {"requests", "cpu per request", "as on the disk"} <= set(sample) <= set(METRICS)
    assert sample["user per request"] + sample["system per request"] == pytest.approx(sample["cpu per request"])
    target.site.mounts.close()
    assert not os.path.ismount(root)


def test_a_file_system_that_cannot_be_mounted_is_missing_with_the_reason(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Mounted(FileSystem.OVERLAYFS, Wrk("/1k.html", 4))
    monkeypatch.setenv("PATH", "/nonexistent")
    client.prepare(target.site)
    reason = client.check(target.server, target.site)
    assert reason in {"no program mount", "only root can mount it"}


def test_a_row_may_compare_a_ktlsd_with_another() -> None:
    samples = {"ktlsd-rules": [{"cpu per request": 50.0}], "ktlsd": [{"cpu per request": 40.0}]}
    outcome = RowResult(row("rules"), 1, 0.0, samples)
    assert verdict(outcome, Limit("cpu per request", 0.8, "ktlsd")) is True
    assert verdict(outcome, Limit("cpu per request", 0.81, "ktlsd")) is False


def test_a_tree_is_linked_anew_under_names_that_nobody_has_looked_up(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    TREE.write(tmp_path)
    TREE.link(tmp_path, root)
    first = TREE.targets()[0].removeprefix("/")
    TREE.link(tmp_path, root)
    assert (root / first).stat().st_ino == (tmp_path / first).stat().st_ino
    assert sorted(f"/{path.relative_to(root)}" for path in root.rglob("page-*")) == sorted(TREE.targets())
    assert [(root / one[1:]).stat().st_size for one in TREE.targets()] == TREE.sizes()


def test_rows_are_chosen_by_name_and_by_family() -> None:
    assert [one.name for one in select(Setting.HOST, ["small"])] == ["small"]
    assert [one.name for one in select(Setting.VM, ["big"])] == ["big-1", "big-4", "big-32"]
    with pytest.raises(KeyError, match="big"):
        select(Setting.HOST, ["big"])


def test_each_row_is_told_apart_and_names_known_peers() -> None:
    assert len({(one.name, one.setting) for one in ROWS}) == len(ROWS)
    assert {peer for one in ROWS for peer in (one.subject, *one.peers)} <= set(PEERS)
    bounded = {limit.peer for one in ROWS for limit in (*one.at_least, *one.aim)} - {None}
    assert bounded <= set(PEERS)

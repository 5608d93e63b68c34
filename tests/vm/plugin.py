"""Tests marked `ktls` need a kernel with TLS: they run right here where there is one, else in the machine.

Such a test then becomes one item per Debian release, `test_x[debian12]` and `test_x[debian13]`. The first of them to be
run boots the machine, with a pytest inside that runs exactly the selected ones and writes each outcome to a file as it
comes. An item here takes its reports from that file, so it passes, skips and fails with the text of the test inside.
What is much of the same may name the one machine that is enough, `ktls(machine="debian13")`; with KTLSD_EVERY_MACHINE=1
it runs in each. Of several pytest processes (xdist) one has all items of a machine, which has one processor, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from .machine import VARIANTS, Boot, MachineError, missing, prepare

PARAMETER = "ktls_machine"
REPORT = "report.jsonl"
EXCUSES = "ktls-excuses"
EVERY_MACHINE = bool(os.environ.get("KTLSD_EVERY_MACHINE"))
IN_MACHINE = "KTLSD_VM" in os.environ
TIMEOUT = float(os.environ.get("KTLSD_VM_TIMEOUT", "4800"))  # of a machine's whole life
STALL = float(os.environ.get("KTLSD_VM_STALL", "300"))  # of one test
# Files of these take the longest, so they come first: processes that are done early find short ones.
LONGEST = (
    *("tests/system/", "tests/browser/", "tests/site/test_folder_names.py", "tests/wire/"),
    *("tests/process/", "tests/commands/"),
)
START = 900.0  # what the first of them may wait longer, for the boot and for pytest's start


def kernel_has_tls() -> bool:
    try:
        return "tls" in Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()
    except OSError:
        return False


PROXIED = not IN_MACHINE and not kernel_has_tls()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "ktls(machine): needs kernel TLS; runs in virtual machines, all or one, where this kernel has none",
    )
    if IN_MACHINE and os.environ.get("KTLSD_VM_REPORT"):
        config.pluginmanager.register(Reporter(config, Path(os.environ["KTLSD_VM_REPORT"])), "ktls-reporter")
    elif PROXIED:
        config.pluginmanager.register(Proxy(config), "ktls-proxy")


class InWholeFiles(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Each process takes one machine or one file of tests after the other, in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return next((name for name in VARIANTS if nodeid.endswith(f"{name}]")), nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> InWholeFiles:
    config.option.loadscopereorder = False
    return InWholeFiles(config, log)


# --- for the tests themselves ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SlowDisk:
    """A disk that gives 1 MiB/s, and the SHA-256 sums of the files that it was made with, by their names."""

    path: Path
    manifest: dict[str, str]


def drop_page_cache() -> None:
    """Have whatever is read next come from its disk (proc_sys_vm(5))."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


@pytest.fixture
def slow_disk() -> SlowDisk:
    if not IN_MACHINE:
        pytest.skip("only the virtual machine has a slow disk")
    manifest = json.loads(Path(os.environ["KTLSD_VM_SLOW_MANIFEST"]).read_text())
    return SlowDisk(Path(os.environ["KTLSD_VM_SLOW"]), manifest)


# --- inside the machine ---------------------------------------------------------------------------------------------


class Reporter:
    """Writes what happens to each test as lines of JSON, as it happens."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self.config = config
        self.file = path.open("a")

    def write(self, event: str, nodeid: str, report: object = None) -> None:
        # default=str: a report may carry user_properties of any type.
        line = json.dumps({"event": event, "nodeid": nodeid, "report": report}, default=str)
        print(line, file=self.file, flush=True)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write("start", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        hook = self.config.hook.pytest_report_to_serializable
        self.write("report", report.nodeid, hook(config=self.config, report=report))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.write("finish", nodeid)


# --- outside --------------------------------------------------------------------------------------------------------


class GuestItem(pytest.Item):
    """Stands on the host for a test in the machine. It is no Function, so no other plugin sets up or calls anything."""

    def __init__(self, *, original: pytest.Function, **named: Any) -> None:
        super().__init__(**named)
        self.variant = str(original.callspec.params[PARAMETER])
        self.inner = inner_nodeid(original.nodeid, self.variant)
        self.info = original.reportinfo()
        self.own_markers = original.own_markers
        self.keywords.update(original.keywords)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        return self.info

    def runtest(self) -> None:
        raise AssertionError("a test in the machine is not called here")


def inner_nodeid(nodeid: str, variant: str) -> str:
    """The name that the same test has in the machine, where nothing adds the variant to it."""
    if nodeid.endswith(f"[{variant}]"):
        return nodeid.removesuffix(f"[{variant}]")
    return nodeid.removesuffix(f"-{variant}]") + "]"


def unavailable() -> str | None:
    """Why there can be no machine here, if so."""
    if lacking := missing():
        return f"this kernel has no TLS, and for a virtual machine this host lacks {', '.join(lacking)}"
    return None


class Guest:
    """One machine and what is known of its tests."""

    def __init__(self, config: pytest.Config, variant: str, nodeids: list[str]) -> None:
        self.config, self.variant = config, variant
        self.reports: dict[str, list[pytest.TestReport]] = {nodeid: [] for nodeid in nodeids}
        self.finished: set[str] = set()
        self.current = ""
        self.output: deque[str] = deque(maxlen=60)
        self.failure = ""
        self.first_lost = ""
        self.over = threading.Event()
        self.directory = tempfile.TemporaryDirectory(prefix="ktlsd-results-")
        self.path = Path(self.directory.name) / REPORT
        self.path.touch()
        self.offset = 0
        prepared = prepare(variant, self.say)
        command = ["env", f"KTLSD_VM_REPORT=/results/{REPORT}", "python", "-m", "pytest", "-q"]
        # The scratch disk has a page cache as a web server's disk has; the root is an overlay in memory.
        command += ["--basetemp=/mnt/disk/pytest"]
        command += ["-p", "no:cacheprovider", f"--tb={config.getoption('tbstyle')}"]
        settings = (f"faulthandler_timeout={STALL * 0.8:.0f}", "tmp_path_retention_policy=failed")
        for setting in (*settings, *(config.getoption("override_ini") or ())):
            command += ["-o", setting]
        command += nodeids
        self.boot = Boot(prepared, command, Path(self.directory.name), TIMEOUT)
        self.progress = time.monotonic()
        self.thread = threading.Thread(target=self.attend, daemon=True)
        self.thread.start()

    def say(self, line: str) -> None:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(line)

    def attend(self) -> None:
        try:
            status = self.boot.wait(self.output.append)
            self.failure = (
                f"pytest in the machine {self.variant} ended with status {status} before this test had a result"
            )
        except MachineError as error:
            self.failure = str(error)
        finally:
            self.over.set()

    def read(self) -> bool:
        """Take in what the file has got since the last time; a line without its end is still being written."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            self.take(json.loads(line))
        return bool(whole)

    def take(self, what: dict[str, Any]) -> None:
        nodeid = what["nodeid"]
        if what["event"] == "start":
            self.current = nodeid
        elif what["event"] == "report":
            hook = self.config.hook.pytest_report_from_serializable
            report = hook(config=self.config, data=what["report"])
            if isinstance(report.longrepr, list):  # where a test was skipped: JSON has no tuples
                report.longrepr = tuple(report.longrepr)
            self.reports.setdefault(nodeid, []).append(report)
        else:
            self.finished.add(nodeid)
            self.current = ""

    def wait_for(self, nodeid: str) -> bool:
        """Is there a result at last, or will there never be one?"""
        while nodeid not in self.finished:
            was_over = self.over.is_set()
            if self.read():
                self.progress = time.monotonic()
            elif was_over:
                return False
            elif time.monotonic() - self.progress > (STALL if self.offset else STALL + START):
                self.boot.kill(
                    f"was killed: for {STALL:.0f} seconds nothing came from {self.current or 'pytest in it'}"
                )
                self.over.wait()
            else:
                time.sleep(0.05)
        return True

    def lost(self, nodeid: str) -> str:
        """Why a test has no result: at length for the first of them, in a line for those after it."""
        if self.first_lost and self.first_lost != nodeid:
            return f"{self.failure.splitlines()[0]}\n(the rest of this is with {self.first_lost})"
        self.first_lost = nodeid
        running = f"The test that was running: {self.current}\n" if self.current else ""
        return f"{self.failure}\n\n{running}pytest in the machine said last:\n" + "\n".join(self.output)

    def close(self) -> None:
        if not self.over.is_set():
            self.boot.kill("was no longer wanted")
        self.thread.join()
        self.directory.cleanup()


class Proxy:
    """The host's half: makes the items, boots the machines, passes on the outcomes."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.guests: dict[str, Guest | str] = {}  # the machine, or why there is none
        self.excuses: set[str] = set()

    @pytest.hookimpl(trylast=True)  # so that the variant comes last among the parameters
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if (mark := metafunc.definition.get_closest_marker("ktls")) is not None:
            enough = mark.kwargs.get("machine")
            metafunc.fixturenames.append(PARAMETER)
            metafunc.parametrize(PARAMETER, list(VARIANTS) if enough is None or EVERY_MACHINE else [enough])

    @pytest.hookimpl(trylast=True)  # pytest-trio expects functions only
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [proxy_of(item) for item in items]
        items.sort(key=turn)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if not isinstance(item, GuestItem):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.outcome(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def outcome(self, item: GuestItem) -> Iterator[pytest.TestReport]:
        guest = self.guest(item)
        if isinstance(guest, str):
            yield self.no_machine(item, guest)
            return
        finished = guest.wait_for(item.inner)
        for report in guest.reports[item.inner]:
            report.nodeid, report.location = item.nodeid, item.location
            yield report
        if not finished:
            yield made_up(item, "failed", guest.lost(item.nodeid))

    def guest(self, item: GuestItem) -> Guest | str:
        """The machine that this item's test is in; the first item of a variant boots it for all of them."""
        if item.variant not in self.guests:
            wanted = [i.inner for i in item.session.items if isinstance(i, GuestItem) and i.variant == item.variant]
            try:
                self.guests[item.variant] = unavailable() or Guest(self.config, item.variant, wanted)
            except (MachineError, OSError) as error:
                self.guests[item.variant] = f"this kernel has no TLS, and no virtual machine could be made: {error}"
        return self.guests[item.variant]

    def no_machine(self, item: GuestItem, why: str) -> pytest.TestReport:
        self.excuses.add(why)
        if os.environ.get("CI") == "true":
            return made_up(item, "failed", why)
        return made_up(item, "skipped", why)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.excuses:
            terminalreporter.section("KERNEL TLS WAS NOT TESTED", red=True, bold=True)
            for excuse in sorted(self.excuses):
                terminalreporter.write_line(excuse)
            terminalreporter.write_line(
                "THE TESTS MARKED ktls DID NOT RUN. tests/run INSTALLS WHAT IS MISSING, AS ROOT."
            )

    def pytest_testnodedown(self, node: Any) -> None:
        self.excuses.update(getattr(node, "workeroutput", {}).get(EXCUSES, ()))

    def pytest_sessionfinish(self) -> None:
        if (told := getattr(self.config, "workeroutput", None)) is not None:
            told[EXCUSES] = sorted(self.excuses)
        for guest in self.guests.values():
            if isinstance(guest, Guest):
                with contextlib.suppress(OSError):
                    guest.close()


def proxy_of(item: pytest.Item) -> pytest.Item:
    callspec = getattr(item, "callspec", None)
    if not isinstance(item, pytest.Function) or callspec is None or PARAMETER not in callspec.params:
        return item
    assert item.parent is not None
    return GuestItem.from_parent(item.parent, name=item.name, original=item)


def turn(item: pytest.Item) -> int:
    """The place of an item in the order of a run: machines, then what takes long, then the rest."""
    order = [*VARIANTS, *LONGEST]
    if isinstance(item, GuestItem):
        return order.index(item.variant)
    return next((order.index(start) for start in LONGEST if item.nodeid.startswith(start)), len(order))


def made_up(item: GuestItem, outcome: str, text: str) -> pytest.TestReport:
    """A report that no test inside wrote."""
    path, line, _ = item.reportinfo()
    skipped = outcome == "skipped"
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="skipped" if skipped else "failed",
        longrepr=(str(path), line or 0, f"Skipped: {text}") if skipped else text,
        when="setup" if skipped else "call",
    )

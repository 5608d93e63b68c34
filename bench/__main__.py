"""The command: `python -m bench` measures, prints the table and writes results.json, table.md, ratios.png and .svg.

Strategy: for the setting "vm" the same command runs once more in the QEMU machine and its results come back by a share;
the picture is drawn here, by the interpreter that has matplotlib.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from bench import report
from bench.file_systems import own_mounts
from bench.machine import CHECKOUT, set_priority
from bench.peers import PEERS, Programs
from bench.rows import Row, Setting, select
from bench.run import Plan, run

CLIENT_SETTINGS: Final = Path(__file__).with_name("client.cnf")
SECONDS: Final = {(Setting.HOST, False): 4, (Setting.HOST, True): 1, (Setting.VM, False): 12, (Setting.VM, True): 5}
"""Duration of a sample, by setting and by --quick."""
HANDSHAKES: Final = {Setting.HOST: 200, Setting.VM: 4}
ROUNDS: Final = {False: 5, True: 2}
GUEST_SCRATCH: Final = Path("/mnt/disk")
GUEST_MEMORY: Final = ("tcp_rmem", "tcp_wmem")
GUEST_BUFFER: Final = "4096 131072 262144"
NONE: Final = "none"
"""No peer, for --peers."""
STOPPING: Final = (signal.SIGTERM, signal.SIGALRM, signal.SIGHUP)
EXIT_USAGE: Final = 2
EXIT_STOPPED: Final = 124


def main() -> int:
    if os.environ.get("OPENSSL_CONF") != str(CLIENT_SETTINGS):
        # OpenSSL reads its settings when it is loaded, so this process has to begin with them.
        os.environ["OPENSSL_CONF"] = str(CLIENT_SETTINGS)
        os.execv(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]])
    options = _parser().parse_args()
    setting = Setting(options.setting)
    try:
        rows = select(setting, _split(options.rows))
    except KeyError as error:
        print(f"bench: no row {error} in the setting {setting}", file=sys.stderr)
        return EXIT_USAGE
    if unknown := [name for name in _split(options.peers) if name not in (*PEERS, NONE)]:
        print(f"bench: no peer {', '.join(unknown)}; there are {', '.join(PEERS)}", file=sys.stderr)
        return EXIT_USAGE
    if options.list:
        _list(rows)
        return 0
    for number in STOPPING:
        signal.signal(number, _stop)
    signal.setitimer(signal.ITIMER_REAL, options.timeout)
    own_mounts()
    if options.nice:
        set_priority(options.nice)
    options.out.mkdir(parents=True, exist_ok=True)
    if setting is Setting.VM and "KTLSD_VM" not in os.environ:
        status = _in_the_machine(options)
    else:
        status = _here(options, setting, rows)
    if status == 0 and "KTLSD_VM" not in os.environ:
        _draw(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compare ktlsd with its peers in one run.")
    add = parser.add_argument
    add("--setting", choices=[str(one) for one in Setting], default="host", help="this machine, or QEMU with kTLS")
    add("--rows", default="", metavar="NAMES", help="rows to run, with commas; 'p99' takes all p99-... (default: all)")
    add(
        "--peers",
        default="",
        metavar="NAMES",
        help="peers to compare with, with commas, or none (default: those of each row)",
    )
    add("--workers", default="1,2", metavar="NUMBERS", help="numbers of workers, with commas (default: 1,2)")
    add("--rounds", type=int, metavar="N", help="rounds after the warm-up (default: 5, quick: 2)")
    add("--seconds", type=int, metavar="N", help="length of a sample (default: 4, in the VM 12; quick: 1 and 5)")
    add("--quick", action="store_true", help="few and short rounds")
    add("--out", type=Path, default=Path("bench-results"), metavar="DIR", help="where the results go")
    add("--ktlsd", default=f"{sys.executable} -m ktlsd", metavar="COMMAND", help="how ktlsd is started")
    add("--against", default="", metavar="COMMAND", help="another ktlsd to compare with, as the peer ktlsd-other")
    add(
        "--peer-python",
        type=os.path.abspath,
        default=sys.executable,
        metavar="PATH",
        help="interpreter with the Python peers and matplotlib",
    )
    add("--nice", type=int, default=0, metavar="N", help="scheduling priority on a busy machine; below 0 as root")
    add("--scratch", type=Path, metavar="DIR", help="a folder on a disk for the served files (default: the system's)")
    add("--root", choices=("debian12", "debian13"), default="debian12", help="which root the QEMU machine boots")
    add("--timeout", type=float, default=4 * 3600.0, metavar="SECONDS", help="when to give up (default: 4 hours)")
    add("--list", action="store_true", help="list the rows and end")
    return parser


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _list(rows: Sequence[Row]) -> None:
    for row in rows:
        print(f"{row.name:16} {row.setting:5} {row.work}")


def _stop(number: int, _: types.FrameType | None) -> NoReturn:
    """End with all that is running: SystemExit goes through every `finally`."""
    for one in STOPPING:
        signal.signal(one, signal.SIG_IGN)  # a second one would cut the clean-up short
    print(f"bench: stopped by {signal.Signals(number).name}", file=sys.stderr)
    sys.exit(EXIT_STOPPED)


def _here(options: argparse.Namespace, setting: Setting, rows: Sequence[Row]) -> int:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    scratch = options.scratch
    if "KTLSD_VM" in os.environ:
        scratch = GUEST_SCRATCH
        for name in GUEST_MEMORY:
            # Megabytes that wait in socket buffers at the end of a sample would count in an emulated machine.
            Path(f"/proc/sys/net/ipv4/{name}").write_text(GUEST_BUFFER)
    seconds = options.seconds or SECONDS[setting, options.quick]
    plan = Plan(
        rows=rows,
        peers=_split(options.peers),
        workers=[int(number) for number in _split(options.workers)],
        rounds=options.rounds or ROUNDS[options.quick],
        seconds=seconds,
        warm_up_seconds=max(1, seconds // 3),
        handshakes=HANDSHAKES[setting],
        programs=Programs(tuple(shlex.split(options.ktlsd)), options.peer_python, tuple(shlex.split(options.against))),
        scratch=scratch or Path(tempfile.gettempdir()),
    )
    result = run(plan, lambda line: print(line, file=sys.stderr, flush=True))
    (options.out / "results.json").write_text(json.dumps(report.as_data(plan, result), indent=1) + "\n")
    table = report.as_markdown(plan, result)
    (options.out / "table.md").write_text(table)
    print(table, end="", flush=True)
    return 0


def _in_the_machine(options: argparse.Namespace) -> int:
    """Boot the machine of tests/vm and run this command in it; its /results is a folder of ours."""
    passed = [
        f"--{name}={getattr(options, name)}" for name in ("rows", "peers", "workers", "timeout", "ktlsd", "against")
    ]
    passed += [f"--{name}={value}" for name in ("rounds", "seconds") if (value := getattr(options, name))]
    passed += [f"--peer-python={options.peer_python}", *(["--quick"] if options.quick else [])]
    command = [sys.executable, "-m", "bench", "--setting=vm", "--out=/results", *passed]
    boot = [sys.executable, "-m", "tests.vm.machine", "run", "--root", options.root, "--timeout", str(options.timeout)]
    boot += ["--results", str(options.out.absolute()), "--", *command]
    # The settings are for this process's OpenSSL; the guest's takes its own.
    environment = {key: value for key, value in os.environ.items() if key != "OPENSSL_CONF"}
    # One for the server and one for its clients.
    environment.setdefault("KTLSD_VM_PROCESSORS", "2")
    machine = subprocess.Popen(boot, cwd=CHECKOUT, env=environment)
    try:
        return machine.wait()
    finally:
        machine.terminate()
        machine.wait()


def _draw(options: argparse.Namespace) -> None:
    command = [options.peer_python, "-m", "bench.plot", str(options.out.absolute())]
    environment = {key: value for key, value in os.environ.items() if key != "OPENSSL_CONF"}
    try:
        subprocess.run(command, check=True, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"bench: no picture: {error}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"bench: no picture: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""`ktlsd compress DIR`: makes the compressed siblings that the server sends (name.zst, name.br, name.gz).

Strategy: a sibling has its original's mtime; one with another mtime or other content is compressed again, in threads
(the libraries release the GIL), under a hidden name that is renamed once complete. Every name is opened below the
folder, without following links. Only files marked by this program are removed when their original is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import os
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Final, get_args

from tqdm import tqdm

from ktlsd.commands.command_parser import CommandParser
from ktlsd.commands.encoders import encoder
from ktlsd.config.console import print_error, print_output
from ktlsd.config.printable import printable
from ktlsd.config.refusal import Refusal
from ktlsd.config.values import Coding
from ktlsd.http.accept_encoding import SUFFIXES
from ktlsd.http.compressible import is_compressible
from ktlsd.site.content_types import ContentTypes, suffixes_of
from ktlsd.site.decoders import is_packed

EXIT_FAILURES = 1
SMALLEST: Final = 256
"""Bytes; a smaller file fits into the packet that its header fields need anyway."""

_TYPES: Final = ContentTypes()
_SUFFIXES: Final = {coding: os.fsdecode(suffix) for coding, suffix in SUFFIXES.items()}
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK: Final = 1 << 16
_TRIES: Final = 3
# Nanoseconds: two writes within one timer tick can have the same mtime.
_TICK: Final = 20_000_000
_MARK: Final = "user.ktlsd.sibling"
_END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CompressError(Refusal):
    """The reason why nothing was done, in one line."""


class Outcome(enum.Enum):
    """The outcome for one sibling; the value is for the summary."""

    MADE = "made"
    CURRENT = "up to date"
    USELESS = "not worth it"
    REMOVED = "removed"


class _Stopped(Exception):
    """The run is to end."""


class _Changing(Exception):
    """The original changes again and again."""

    def __str__(self) -> str:
        return "it changes while it is read"


@dataclass(frozen=True, slots=True)
class _Job:
    """A sibling to make, or with no coding, to remove; `name` is the original, or the file to remove."""

    folder: tuple[str, ...]
    name: str
    size: int
    coding: Coding | None
    replaces: bool = False
    doubtful: bool = False
    """Whether a sibling with the right mtime may be of another version."""

    def path(self) -> str:
        return "/".join((*self.folder, self.name))


@dataclass(slots=True)
class Report:
    """The outcome of a run."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """A line for each file or folder that could not be read, or whose sibling could not be written."""

    def fail(self, path: str, error: Exception) -> None:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        self.failures.append(printable(f"{path or '.'}: {reason}"))

    def __str__(self) -> str:
        return ", ".join(f"{self.outcomes[outcome]} {outcome.value}" for outcome in Outcome)


def run(arguments: Sequence[str]) -> int:
    """Run the command; its exit status: 0, or 1 if files could not be read or written, with a line on stderr for each.

    Raises Refusal for wrong arguments, and KeyboardInterrupt for SIGINT, SIGTERM and SIGHUP; no temporary file is
    left then.
    """
    options = parser().parse_args(arguments)
    try:
        root = os.open(options.folder, _FOLDER)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CompressError(f"{options.folder}: cannot be read: {reason}") from error
    try:
        with _interrupted_by(_END_SIGNALS):
            report = compress(root, options.codings, options.jobs, options.min_size, progress=not options.quiet)
    finally:
        os.close(root)
    for failure in report.failures:
        print_error(f"ktlsd compress: {failure}")
    if not options.quiet:
        print_output(f"ktlsd compress: siblings: {report}")
    return EXIT_FAILURES if report.failures else 0


def compress(root: int, codings: Sequence[Coding], jobs: int, min_size: int, *, progress: bool) -> Report:
    """Bring the siblings below the folder that `root` is a descriptor of up to date, in `jobs` threads.

    `progress`: whether a bar is shown where stderr is a terminal. Interrupted, it ends the threads before it raises.
    """
    report = Report()
    # Largest first, so that no thread is still busy with one when all others have finished.
    todo = sorted(_plan(root, codings, min_size, report), key=lambda job: -job.size)
    stopped = threading.Event()
    lock = threading.RLock()
    # Its own lock is one between processes.
    tqdm.set_lock(lock)
    bar = tqdm(
        total=sum(job.size for job in todo),
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None if progress else True,
    )

    def advance(count: int) -> None:
        if stopped.is_set():
            raise _Stopped
        with lock:
            bar.update(count)

    with bar, ThreadPoolExecutor(jobs) as pool:
        try:
            futures = {pool.submit(_carry_out, root, job, advance): job for job in todo}
            for future in as_completed(futures):
                try:
                    report.outcomes[future.result()] += 1
                except (OSError, _Changing) as error:
                    report.fail(futures[future].path(), error)
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    # The codings of one file mostly fail alike.
    report.failures = sorted(set(report.failures))
    return report


def parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="ktlsd compress",
        description="Make compressed siblings (name.zst, name.br, name.gz) of the files below a folder where they save "
        "bytes, and make those of changed files anew. A name.gz beside a name counts as its sibling.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", metavar="DIR", help="folder with the files to compress")
    known = ",".join(get_args(Coding))
    add("--codings", metavar="LIST", type=_codings, default=known, help=f"codings to make (default {known})")
    # The processors that sched_setaffinity(2) and containers allow.
    processors = len(os.sched_getaffinity(0))
    add(
        "--jobs",
        metavar="N",
        type=_positive,
        default=processors,
        help="number of threads (default: one for each processor)",
    )
    add(
        "--min-size",
        metavar="BYTES",
        type=_positive,
        default=SMALLEST,
        help=f"skip smaller files (default {SMALLEST})",
    )
    add("--quiet", action="store_true", help="print only errors")
    return parser


def _codings(text: str) -> tuple[Coding, ...]:
    names = text.split(",")
    chosen = tuple(coding for coding in get_args(Coding) if coding in names)
    if len(chosen) != len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of {', '.join(get_args(Coding))}")
    return chosen


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 16 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


@contextlib.contextmanager
def _interrupted_by(signals: Sequence[signal.Signals]) -> Iterator[None]:
    # One that nohup(1) or a shell has set to be ignored stays so.
    before = {number: handler for number in signals if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _plan(root: int, codings: Sequence[Coding], min_size: int, report: Report) -> Iterator[_Job]:
    """The work below the root. Unchanged and unreadable files go to the report."""
    folders: list[tuple[str, ...]] = [()]
    while folders:
        path = folders.pop()
        try:
            with _opened(_open_folder(root, path)) as folder, os.scandir(folder) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
                folders += [(*path, entry.name) for entry in visible if entry.is_dir(follow_symlinks=False)]
                files = {entry.name: status for entry in visible if (status := _regular(entry)) is not None}
                others = {entry.name for entry in visible} - files.keys()
                yield from _plan_folder(folder, path, files, others, codings, min_size, report)
        except OSError as error:
            report.fail("/".join(path), error)


def _regular(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False) if entry.is_file(follow_symlinks=False) else None
    except FileNotFoundError:
        return None


def _plan_folder(
    folder: int,
    path: tuple[str, ...],
    files: dict[str, os.stat_result],
    others: set[str],
    codings: Sequence[Coding],
    min_size: int,
    report: Report,
) -> Iterator[_Job]:
    suffixes = tuple(_SUFFIXES.values())
    originals = {
        name: status
        for name, status in files.items()
        if status.st_size >= min_size
        and not name.endswith(suffixes)
        and is_compressible(_TYPES.of_suffixes(suffixes_of(os.fsencode(name))))
    }
    for name, original in originals.items():
        for coding in codings:
            sibling = name + _SUFFIXES[coding]
            there = files.get(sibling)
            if there is not None and there.st_mtime_ns == original.st_mtime_ns and there.st_size < original.st_size:
                # Reproducible builds give every version the same mtime, but no file can be given a ctime.
                if there.st_ctime_ns >= original.st_ctime_ns:
                    report.outcomes[Outcome.CURRENT] += 1
                else:
                    yield _Job(path, name, original.st_size, coding, replaces=True, doubtful=True)
            elif sibling not in others:
                yield _Job(path, name, original.st_size, coding, replaces=there is not None)
    for name in files:
        if name.endswith(suffixes) and os.path.splitext(name)[0] not in originals and _is_marked(folder, name):
            yield _Job(path, name, 0, None)


def _carry_out(root: int, job: _Job, advance: Callable[[int], None]) -> Outcome:
    with _opened(_open_folder(root, job.folder)) as folder:
        if job.coding is None:
            os.unlink(job.name, dir_fd=folder)
            return Outcome.REMOVED
        if job.doubtful and _is_current(folder, job.name, job.coding):
            advance(job.size)
            return Outcome.CURRENT
        for _ in range(_TRIES):
            with _opened(os.open(job.name, _READ, dir_fd=folder)) as source:
                length = _make_sibling(folder, source, job.name, job.coding, advance)
            if length:
                return Outcome.MADE
            if length is not None:
                break
        else:
            raise _Changing
        if job.replaces:
            os.unlink(job.name + _SUFFIXES[job.coding], dir_fd=folder)
            return Outcome.REMOVED
        return Outcome.USELESS


def _is_current(folder: int, name: str, coding: Coding) -> bool:
    """Whether the sibling of a file has its content. Raises OSError if the file cannot be read."""
    with _opened(os.open(name, _READ, dir_fd=folder)) as original:
        try:
            with _opened(os.open(name + _SUFFIXES[coding], _READ, dir_fd=folder)) as sibling:
                return is_packed(original, sibling, coding)
        except OSError:
            return False


def _make_sibling(folder: int, source: int, name: str, coding: Coding, advance: Callable[[int], None]) -> int | None:
    """Put the sibling of an open original into its place; its length, 0 where it would save nothing.

    None when the original changed meanwhile.
    """
    sibling = name + _SUFFIXES[coding]
    before = os.fstat(source)
    if 0 <= time.time_ns() - before.st_mtime_ns < _TICK:
        time.sleep(_TICK / 1e9)
    temporary = f".ktlsd-{secrets.token_hex(8)}"
    target = os.open(temporary, _CREATE, 0o600, dir_fd=folder)
    try:
        with open(target, "wb") as file:
            stream = encoder(coding, before.st_size)
            left = before.st_size
            while left and (chunk := os.read(source, min(left, _CHUNK))):
                left -= len(chunk)
                file.write(stream.feed(chunk))
                advance(len(chunk))
            if left or _version(before) != _version(os.stat(name, dir_fd=folder, follow_symlinks=False)):
                return None
            file.write(stream.finish())
            file.flush()
            length = file.tell()
            if length >= before.st_size:
                return 0
            _take_after(target, before, sibling)
            # Else a crash could leave an empty file that looks like a sibling.
            os.fsync(target)
        os.rename(temporary, sibling, src_dir_fd=folder, dst_dir_fd=folder)
        return length
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _take_after(target: int, original: os.stat_result, sibling: str) -> None:
    """Give a sibling the original's mtime and, where that is allowed, its owner, group and mode; and the mark."""
    # Not every file system has extended attributes: an unmarked sibling is only never removed as an orphan.
    with contextlib.suppress(OSError):
        os.setxattr(target, _MARK, _mark(target, sibling))
    os.utime(target, ns=(original.st_mtime_ns, original.st_mtime_ns))
    with contextlib.suppress(PermissionError):
        os.fchown(target, -1, original.st_gid)
    with contextlib.suppress(PermissionError):
        os.fchown(target, original.st_uid, -1)
    os.fchmod(target, original.st_mode & 0o777)


def _mark(descriptor: int, name: str) -> bytes:
    """Of exactly one file: a copy that kept the attribute has another inode."""
    return b"%d %s" % (os.fstat(descriptor).st_ino, os.fsencode(name))


def _is_marked(folder: int, name: str) -> bool:
    try:
        with _opened(os.open(name, _READ, dir_fd=folder)) as descriptor:
            return os.getxattr(descriptor, _MARK) == _mark(descriptor, name)
    except OSError:
        return False


def _open_folder(root: int, path: tuple[str, ...]) -> int:
    """Open a folder below the root, name by name and through no link. The caller closes it."""
    folder = os.dup(root)
    for name in path:
        with _opened(folder):
            folder = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    return folder


@contextlib.contextmanager
def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)

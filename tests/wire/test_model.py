"""The whole server against a model of what is on disk: files come, change and go between the requests of connections
that stay, and every answer is the one for the tree as it is then. Connections of both protocols ask for the same.

A long run: `python -m pytest tests/wire/test_model.py --hypothesis-profile=long`. The second readings of the RFCs that
say what is due are those of the fuzz targets.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import brotli
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fuzz.targets import accept_encoding, byte_range, validators
from ktlsd.config.options import Settings
from ktlsd.config.values import Listen, Mode
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.validators import Verdict, http_date
from ktlsd.process.listeners import bind_all
from ktlsd.server import Server
from ktlsd.service import Service
from ktlsd.site import response_cache, siblings
from ktlsd.ssl_ffi import Library
from ktlsd.tls.ktls_probe import support
from tests.in_process import in_a_thread
from tests.protocols import HTTP_1, HTTP_2, conversation
from tests.serving import Answer

SECRET = b"out of the root"
# The clock that dates files has ticks of at most 10 ms. The server waits two seconds to be sure, a test need not.
SETTLED_NS = 50_000_000
SETTLED_SECONDS = 0.06
# For so long an answer may be remembered that a newer sibling would change.
REMEMBERED_SECONDS = response_cache.LASTING_SECONDS + SETTLED_SECONDS + 0.4
CONNECTIONS = (HTTP_1, HTTP_2, HTTP_1)
MOST_LINKS = 40
# The last gives a file the time 1, which is no date.
AGES_SECONDS = (0.0, 0.9, 3600.25, 86400.0, 40 * 365 * 86400.0, 1e9 * 60, -3600.0, math.inf)

TYPES = {
    ".txt": "text/plain; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".bin": "application/octet-stream",
    ".gz": "application/gzip",
    ".br": "application/octet-stream",
}
SUFFIXES = {"gzip": ".gz", "br": ".br"}
FOLDERS = ("d", "d/e", "f")
PLAIN = ("a.txt", "b.bin", "index.html", "d/a.txt", "d/index.html", "d/e/x.css", "f/a.txt", "none")
NAMES = (*FOLDERS, *PLAIN, "l.txt", "d/l", "a.txt.gz", "a.txt.br", "d/index.html.gz", "l.txt.gz")
LINKS = (
    *("a.txt", "b.bin", "d", "d/a.txt", "../a.txt", "e/../a.txt", "nothing", "l.txt", "./f/.././a.txt", ".."),
    *("../../secret", "../../../secret", "../../root/1/a.txt", "/etc/passwd", "//"),
)
SIZES = (0, 1, 99, 100, 101, 1000, 3000, 15_360, 15_361, 40_000)

names = st.sampled_from(NAMES)
plain_names = st.sampled_from(PLAIN)
contents = st.tuples(st.sampled_from(SIZES), st.integers(0, 255)).map(lambda pair: content(*pair))
asked_paths = st.sampled_from((*NAMES, *(f"{name}/" for name in (*FOLDERS, "a.txt", "d/l")), ""))
RANGES = (
    *("bytes=0-0", "bytes=0-", "bytes=-1", "bytes=-200", "bytes=50-149", "bytes=100-", "bytes=99999-", "bytes=-0"),
    *("bytes=0-1,500-501", "bytes=-1, 0-0,200-", "bytes=0-9,5-20,800-900,99999-", "bytes=5-1", "lines=1-2"),
)
ranges = st.none() | st.sampled_from(RANGES)
ages = st.sampled_from(AGES_SECONDS)
modes = st.sampled_from([0o600, 0o644, 0o000])
suffixes = st.sampled_from([".gz", ".br"])
packed_contents = st.none() | contents
encodings = st.sampled_from([None, None, "gzip", "br, gzip;q=0.5", "gzip;q=0, br", "*", "identity"])


REMEMBERED = {
    "a.txt": ("a.txt", "a.txt", "a.txt.gz", "a.txt.br"),
    "b.bin": ("b.bin",),
    "d/": ("d/index.html", "d/index.html.gz", "d"),
    "d/a.txt": ("d/a.txt",),
    "l.txt": ("l.txt", "d/a.txt", "a.txt"),
    "none": ("none",),
}
"""What is asked for, and what a change to which may make another answer right."""
remembered_paths = st.sampled_from((*REMEMBERED, "a.txt", "a.txt"))
Arguments = Mapping[str, st.SearchStrategy[Any]]
OF_CONTENT: Mapping[str, Arguments] = {
    "create_or_overwrite_in_place": {"content": contents},
    "replace_by_rename": {"content": contents, "age": ages},
    "replace_by_a_file_of_the_same_size_and_times": {"seed": st.integers(0, 255)},
    "truncate_or_extend": {"size": st.sampled_from(SIZES)},
    "append": {},
}
OF_NAMES: Mapping[str, Arguments] = {
    "remove": {},
    "rename": {"new": names},
    "make_fifo": {},
    "link": {"to": st.sampled_from(LINKS)},
    "change_times": {"age": ages},
    "change_mode": {"mode": modes},
    "compress": {"suffix": suffixes, "age": ages, "content": packed_contents},
}


def content(size: int, seed: int) -> bytes:
    """Bytes that encode their position and the seed."""
    return bytes((seed + position * 7 + position // 251) % 256 for position in range(size))


@dataclass
class File:
    content: bytes


@dataclass
class Link:
    target: str


class Fifo:
    pass


class Folder(dict[str, "Node"]):
    pass


Node = File | Link | Fifo | Folder


class Escape(Exception):
    """A name leads out of the root."""


@dataclass(frozen=True)
class Seen:
    """Validators that the server once gave for a path."""

    tag: str
    modified: str


@dataclass(frozen=True)
class Asked:
    path: str
    method: str
    fields: tuple[tuple[str, str], ...]


@dataclass
class Due:
    """An answer that is right: what `fields` has must be there, None for what must not."""

    status: int
    fields: dict[str, str | None] = field(default_factory=dict)
    body: bytes | None = None
    """None where the text is the server's choice."""
    parts: Sequence[tuple[str, bytes]] = ()
    """Of a multipart/byteranges, in place of `body`."""


@dataclass
class Served:
    """The server that all examples share."""

    port: int
    root: Path
    service: Service
    examples: Iterator[int]


class Wire:
    """A connection that is kept."""

    def __init__(self, port: int, protocol: str) -> None:
        self._stack = contextlib.ExitStack()
        self._client = self._stack.enter_context(conversation(port, protocol))

    def ask(self, asked: Sequence[Asked], folder: str) -> list[Answer]:
        """Send all requests before the first response is read."""
        begun = []
        for one in asked:
            fields = (f"{name}: {value}" for name, value in one.fields)
            begun.append(self._client.begin(f"/{folder}/{one.path}", *fields, method=one.method, host="a"))
        return [download.answer() for download in begun]

    def close(self) -> None:
        """The connection is still good, and nothing more came than the responses."""
        with self._stack:
            assert self._client.get("/none", method="HEAD").status == 404


class Disk(RuleBasedStateMachine):
    """Changes and requests in any order."""

    served: ClassVar[Served]

    def __init__(self) -> None:
        super().__init__()
        self._number = str(next(self.served.examples))
        self._home = self.served.root / self._number
        self._home.mkdir()
        self._tree = Folder()
        self._wires: dict[int, Wire] = {}
        # What is drawn from these is drawn by number: how many there are depends on answers, and so on the clock.
        self._seen: list[Seen] = [Seen('"none"', http_date(0))]
        self._asked: list[Asked] = []
        self._siblings_changed = 0.0

    def teardown(self) -> None:
        for wire in self._wires.values():
            wire.close()
        shutil.rmtree(self._home)

    @initialize()
    def begin(self) -> None:
        """With a tree that has something to ask for, of which a part is remembered."""
        for name in FOLDERS:
            self.make_folder(name)
        for number, name in enumerate(PLAIN):
            self.create_or_overwrite_in_place(name, content(SIZES[number], number))
        self.compress("a.txt", ".gz", 0.0, b"packed")
        self.link("l.txt", "d/a.txt")
        self.wait()
        for path in ("a.txt", "l.txt", "d/"):
            self.ask_plainly(0, path)

    # --- what happens on the disk -------------------------------------------------------------------------------------

    def _place(self, name: str) -> tuple[Folder, str, Path] | None:
        """The folder of the model for a name, where there is one, the last part of the name, and the real path."""
        *folders, last = name.split("/")
        folder: Node = self._tree
        for part in folders:
            found = folder.get(part) if isinstance(folder, Folder) else None
            if not isinstance(found, Folder):
                return None
            folder = found
        assert isinstance(folder, Folder)
        return folder, last, self._home / name

    def _changing(self, name: str) -> None:
        # A folder takes what is in it along.
        # So does a file that a sibling may be a link to.
        if name.endswith((".gz", ".br")) or name in FOLDERS or self._has_linked_siblings(self._tree):
            self._siblings_changed = time.time()

    def _has_linked_siblings(self, folder: Folder) -> bool:
        return any(
            (isinstance(node, Link) and name.endswith((".gz", ".br")))
            or (isinstance(node, Folder) and self._has_linked_siblings(node))
            for name, node in folder.items()
        )

    @rule(name=names, content=contents)
    def create_or_overwrite_in_place(self, name: str, content: bytes) -> None:
        place = self._place(name)
        if place is None or not isinstance(place[0].get(place[1]), File | None):
            return
        folder, last, path = place
        self._changing(name)
        path.write_bytes(content)
        folder[last] = File(content)

    @rule(name=names, content=contents, age=ages)
    def replace_by_rename(self, name: str, content: bytes, age: float) -> None:
        place = self._place(name)
        if place is None or isinstance(place[0].get(place[1]), Folder):
            return
        folder, last, path = place
        self._changing(name)
        new = self._home / "new~"
        new.write_bytes(content)
        _set_age(new, age)
        new.rename(path)
        folder[last] = File(content)

    @rule(name=names, seed=st.integers(0, 255))
    def replace_by_a_file_of_the_same_size_and_times(self, name: str, seed: int) -> None:
        place = self._place(name)
        if place is None or not isinstance(old := place[0].get(place[1]), File):
            return
        status = place[2].stat()
        self.replace_by_rename(name, content(len(old.content), seed), 0.0)
        os.utime(place[2], ns=(status.st_atime_ns, status.st_mtime_ns))

    @rule(name=names, size=st.sampled_from(SIZES))
    def truncate_or_extend(self, name: str, size: int) -> None:
        place = self._place(name)
        if place is None or not isinstance(old := place[0].get(place[1]), File):
            return
        folder, last, path = place
        self._changing(name)
        os.truncate(path, size)
        folder[last] = File(old.content[:size].ljust(size, b"\0"))

    @rule(name=names)
    def append(self, name: str) -> None:
        place = self._place(name)
        if place is None or not isinstance(old := place[0].get(place[1]), File):
            return
        self._changing(name)
        with place[2].open("ab") as file:
            file.write(b"more")
        place[0][place[1]] = File(old.content + b"more")

    @rule(name=names)
    def remove(self, name: str) -> None:
        place = self._place(name)
        if place is None or place[1] not in place[0]:
            return
        self._changing(name)
        if isinstance(place[0].pop(place[1]), Folder):
            shutil.rmtree(place[2])
        else:
            place[2].unlink()

    @rule(name=names, new=names)
    def rename(self, name: str, new: str) -> None:
        source, goal = self._place(name), self._place(new)
        if source is None or goal is None or source[1] not in source[0] or goal[1] in goal[0]:
            return
        if new.startswith(f"{name}/"):
            return
        self._changing(name)
        self._changing(new)
        source[2].rename(goal[2])
        goal[0][goal[1]] = source[0].pop(source[1])

    @rule(name=st.sampled_from((*FOLDERS, "a.txt", "index.html")))
    def make_folder(self, name: str) -> None:
        place = self._place(name)
        if place is None or place[1] in place[0]:
            return
        place[2].mkdir()
        place[0][place[1]] = Folder()

    @rule(name=names, to=st.sampled_from(LINKS))
    def link(self, name: str, to: str) -> None:
        place = self._place(name)
        if place is None or isinstance(place[0].get(place[1]), Folder):
            return
        self._changing(name)
        # Swapped in by rename, as a deployment does it.
        new = self._home / "new~"
        new.symlink_to(to)
        new.rename(place[2])
        place[0][place[1]] = Link(to)

    @rule(name=plain_names)
    def make_fifo(self, name: str) -> None:
        place = self._place(name)
        if place is None or isinstance(place[0].get(place[1]), Folder):
            return
        self._changing(name)
        place[2].unlink(missing_ok=True)
        os.mkfifo(place[2])
        place[0][place[1]] = Fifo()

    @rule(name=names, age=ages)
    def change_times(self, name: str, age: float) -> None:
        place = self._place(name)
        if place is not None and isinstance(place[0].get(place[1]), File):
            self._changing(name)
            _set_age(place[2], age)

    @rule(name=names, mode=modes)
    def change_mode(self, name: str, mode: int) -> None:
        place = self._place(name)
        if place is not None and isinstance(place[0].get(place[1]), File):
            self._changing(name)
            place[2].chmod(mode)

    @rule(name=plain_names, suffix=suffixes, age=ages, content=packed_contents)
    def compress(self, name: str, suffix: str, age: float, content: bytes | None) -> None:
        """A sibling that is as old as the file, or of another age; by default with the file's content."""
        place = self._place(name)
        if place is None or not isinstance(original := place[0].get(place[1]), File):
            return
        if not isinstance(place[0].get(place[1] + suffix), File | None):
            return
        self._changing(name + suffix)
        sibling = place[2].with_name(place[1] + suffix)
        if content is None:
            packed = gzip.compress(original.content) if suffix == ".gz" else brotli.compress(original.content)
            content = bytes(packed)
        sibling.write_bytes(content)
        status = place[2].stat()
        _set_age(sibling, age)
        if age == 0:
            os.utime(sibling, ns=(status.st_atime_ns, status.st_mtime_ns))
        place[0][place[1] + suffix] = File(content)

    @rule()
    def wait(self) -> None:
        """Until all changes are old enough for responses to be cached."""
        time.sleep(SETTLED_SECONDS)

    # --- what is asked ------------------------------------------------------------------------------------------------

    @rule(
        wire=st.integers(0, len(CONNECTIONS) - 1),
        path=asked_paths,
        method=st.sampled_from(["GET", "GET", "GET", "HEAD"]),
        range_=ranges,
        encoding=encodings,
        data=st.data(),
    )
    def ask(
        self, wire: int, path: str, method: str, range_: str | None, encoding: str | None, data: st.DataObject
    ) -> None:
        fields = []
        if range_ is not None:
            fields.append(("Range", range_))
        if encoding is not None:
            fields.append(("Accept-Encoding", encoding))
        conditions = ["If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since", "If-Range", "if-range"]
        for name in data.draw(st.lists(st.sampled_from(conditions), max_size=2, unique_by=str.lower)):
            seen = self._seen[-1 - data.draw(st.integers(0, 7)) % len(self._seen)]
            value = seen.modified if name.endswith("Since") or name == "if-range" else seen.tag
            fields.append((name, value))
        self._ask(wire, [Asked(path, method, tuple(fields))])

    @rule(wire=st.integers(0, len(CONNECTIONS) - 1), path=asked_paths)
    def ask_plainly(self, wire: int, path: str) -> None:
        """The same bytes again and again, which are answered from memory where that is right."""
        self._ask(wire, [Asked(path, "GET", ())])

    @rule(path=remembered_paths, change=st.sampled_from(tuple(OF_CONTENT)), data=st.data())
    def change_the_content_of_what_is_remembered(self, path: str, change: str, data: st.DataObject) -> None:
        self._ask_before_and_after(path, change, OF_CONTENT[change], data)

    @rule(path=remembered_paths, change=st.sampled_from(tuple(OF_NAMES)), data=st.data())
    def change_the_place_of_what_is_remembered(self, path: str, change: str, data: st.DataObject) -> None:
        self._ask_before_and_after(path, change, OF_NAMES[change], data)

    def _ask_before_and_after(self, path: str, change: str, arguments: Arguments, data: st.DataObject) -> None:
        """The same bytes before a change and after it."""
        latest = self._seen[-2:]
        known = [None, *(seen.modified for seen in latest), *(seen.tag for seen in latest)]
        lines = (
            ("Accept-Encoding", data.draw(encodings)),
            ("Range", data.draw(ranges)),
            ("If-Range", known[data.draw(st.integers(0, 4)) % len(known)]),
        )
        asked = Asked(path, "GET", tuple((name, value) for name, value in lines if value is not None))
        self.wait()
        self._ask(0, [asked])
        self._ask(1, [asked])
        name = data.draw(st.sampled_from(REMEMBERED[path]))
        drawn = {argument: data.draw(strategy) for argument, strategy in arguments.items()}
        getattr(self, change)(name, **drawn)
        self._ask(0, [asked])
        self._ask(1, [asked])

    @precondition(lambda self: self._asked)
    @rule(wire=st.integers(0, len(CONNECTIONS) - 1), data=st.data(), count=st.integers(1, 3))
    def ask_again(self, wire: int, data: st.DataObject, count: int) -> None:
        """What was asked before, several at once."""
        self._ask(wire, data.draw(st.lists(st.sampled_from(self._asked[-10:]), min_size=count, max_size=count)))

    @rule(wire=st.integers(0, len(CONNECTIONS) - 1))
    def reconnect(self, wire: int) -> None:
        if wire in self._wires:
            self._wires.pop(wire).close()

    @invariant()
    def the_model_is_what_is_on_disk(self) -> None:
        listed = {str(path.relative_to(self._home)) for path in self._home.rglob("*") if not path.is_symlink()}
        assert listed == set(_names(self._tree))

    def _ask(self, number: int, asked: Sequence[Asked]) -> None:
        if number not in self._wires:
            self._wires[number] = Wire(self.served.port, CONNECTIONS[number])
        before = time.time()
        answers = self._wires[number].ask(asked, self._number)
        after = time.time()
        for one, answer in zip(asked, answers, strict=True):
            due = self._due(one, before, after)
            complaints = [_complaint(answer, one.method, right) for right in due]
            assert None in complaints, (
                f"{one}: {answer.status} {answer.fields}: {'; or '.join(filter(None, complaints))}"
            )
            if answer.status == 200:
                self._seen.append(Seen(answer.fields["etag"], answer.fields.get("last-modified", http_date(1))))
        self._asked += asked

    # --- what is due --------------------------------------------------------------------------------------------------

    def _walk(self, name: str) -> Node | None:
        """The node of a name below this example's folder; None where there is none. Raises Escape."""
        place: list[str] = []
        todo = [part for part in name.split("/") if part]
        links = 0
        while todo:
            part = todo.pop(0)
            here = self._node(place)
            if part in ("", "."):
                continue
            if not isinstance(here, Folder):
                return None
            if part == "..":
                if not place:
                    # In the root are this example's folder, others that no link leads to, and nothing else.
                    todo = self._from_root(todo)
                    continue
                place.pop()
                continue
            found = here.get(part)
            if isinstance(found, Link):
                links += 1
                if links > MOST_LINKS:
                    return None
                if found.target.startswith("/"):
                    raise Escape
                todo = found.target.split("/") + todo
                continue
            if found is None:
                return None
            place.append(part)
        return self._node(place)

    def _from_root(self, todo: Sequence[str]) -> list[str]:
        """What is left of the way after a step up to the root."""
        steps = [part for part in todo if part not in ("", ".")]
        if not steps:
            raise _AtRoot
        if steps[0] == "..":
            raise Escape
        if steps[0] == self._number:
            return steps[1:]
        raise _Elsewhere

    def _node(self, place: Sequence[str]) -> Node | None:
        node: Node | None = self._tree
        for part in place:
            node = node.get(part) if isinstance(node, Folder) else None
        return node

    def _find(self, name: str) -> Node | int | None:
        """What is at a name, or the status that says that it cannot be had."""
        try:
            node = self._walk(name)
        except Escape:
            return 404
        except _Elsewhere:
            return None
        except _AtRoot:
            return Folder()
        if isinstance(node, Fifo):
            return 403
        if isinstance(node, File) and not os.access(self._home / name, os.R_OK):
            return 403
        return node

    def _due(self, asked: Asked, before: float, after: float) -> list[Due]:
        """All answers that are right for the tree as it is; more than one where the moment counts."""
        name = asked.path
        if name.endswith("/") or not name:
            index = f"{name}index.html"
            found = self._find(index)
            if found is None:
                folder = self._find(name)
                file = name.rstrip("/")
                if file and isinstance(self._find(file), File):
                    return [Due(307, {"location": f"/{self._number}/{file}"})]
                return [Due(403 if isinstance(folder, Folder) else 404)]
            if isinstance(found, Folder):
                return [Due(403)]
            name = index
        else:
            found = self._find(name)
            if isinstance(found, Folder):
                return [Due(301, {"location": f"/{self._number}/{name}/", "etag": None})]
        if found is None:
            return [Due(404, {"etag": None})]
        if isinstance(found, int):
            return [Due(found, {"etag": None})]
        assert isinstance(found, File)
        # What was decided a moment ago may be said again.
        moments = (before - REMEMBERED_SECONDS, before, after)
        coding = dict(asked.fields).get("Accept-Encoding")
        views, others = [], []
        # A sibling may have begun to count in between.
        for moment in (before, after):
            best, *rest = self._negotiated(name, found, coding, moment)
            views.append(best)
            others += rest
        if before - self._siblings_changed < REMEMBERED_SECONDS:
            views += (*others, View(name, found.content, None, True), View(name, found.content, None, False))
        return [self._of_view(asked, view, moment) for view in views for moment in moments]

    def _negotiated(self, name: str, found: File, field: str | None, now: float) -> list[View]:
        """What the client takes, best first; the last is the plain file."""
        kind = TYPES.get(os.path.splitext(name)[1], "application/octet-stream")
        if kind == "application/gzip":
            return [View(name, found.content, None, False)]
        siblings = {}
        for coding, suffix in SUFFIXES.items():
            sibling = self._find(name + suffix)
            if isinstance(sibling, File) and self._belongs(name, found, suffix, sibling, now):
                siblings[coding] = sibling
        wanted = accept_encoding.expected(field or "", ("zstd", "br", "gzip")).codings
        packed = [
            View(name + SUFFIXES[coding], siblings[coding].content, coding, True)
            for coding in wanted
            if coding in siblings
        ]
        return [*packed, View(name, found.content, None, bool(siblings))]

    def _belongs(self, name: str, found: File, suffix: str, sibling: File, now: float) -> bool:
        """True if a sibling counts: by times that a tool gave it, or else, once neither changes, by its content."""
        original, other = (self._home / name).stat(), (self._home / (name + suffix)).stat()
        if os.path.samestat(original, other):
            return False
        same = original.st_mtime_ns == other.st_mtime_ns and original.st_mtime_ns // 10**9 not in (0, 1)
        if same and original.st_ctime_ns <= other.st_ctime_ns != other.st_mtime_ns:
            return sibling.content != b""
        settled = max(original.st_ctime_ns, other.st_ctime_ns) <= now * 1e9 - SETTLED_NS
        return settled and _unpacked(sibling.content, suffix) == found.content

    def _of_view(self, asked: Asked, view: View, now: float) -> Due:
        status = (self._home / view.file).stat()
        size, mtime_ns = len(view.content), status.st_mtime_ns
        assert status.st_size == size
        # No decision is older than the version that it is about.
        now = max(now, status.st_ctime_ns / 1e9)
        coding = "-" + view.coding if view.coding else ""
        tag = f'"{mtime_ns:x}-{size:x}-{status.st_ino:x}-{status.st_ctime_ns:x}{coding}"'
        modified = http_date(min(mtime_ns // 1_000_000_000, now)) if mtime_ns // 1_000_000_000 not in (0, 1) else None
        name = view.file.removesuffix(SUFFIXES[view.coding]) if view.coding else view.file
        plain = TYPES.get(os.path.splitext(name)[1], "application/octet-stream")
        fields: dict[str, str | None] = {
            "etag": tag,
            "last-modified": modified,
            "vary": "Accept-Encoding" if view.varies else None,
        }
        # An error has another form for clients that ask for HTML or JSON.
        refused = {"vary": "Accept-Encoding, Accept" if view.varies else "Accept", "content-encoding": None}
        lowered = {name.lower(): value for name, value in asked.fields}
        match validators.expected(lowered, tag, mtime_ns):
            case Verdict.PRECONDITION_FAILED:
                return Due(412, fields | refused)
            case Verdict.NOT_MODIFIED:
                return Due(304, fields | {"content-length": None, "content-type": None}, b"")
        fields |= {"accept-ranges": "bytes", "content-encoding": view.coding, "content-type": plain}
        parts: tuple[ByteRange, ...] | None = ()
        if "range" in lowered and asked.method == "GET" and _applies(lowered.get("if-range"), tag, mtime_ns, now):
            parts = byte_range.expected(lowered["range"], size)
        if parts is None:
            extra = {"content-range": f"bytes */{size}"}
            return Due(416, fields | refused | extra | {"content-type": "text/plain; charset=utf-8"})
        if not parts:
            return Due(200, fields | {"content-length": str(size), "content-range": None}, view.content)
        pieces = [
            (f"bytes {part.offset}-{part.end - 1}/{size}", view.content[part.offset : part.end]) for part in parts
        ]
        if len(pieces) == 1:
            return Due(206, fields | {"content-range": pieces[0][0]}, pieces[0][1])
        del fields["content-type"]
        return Due(206, fields | {"content-range": None}, None, pieces)


class _AtRoot(Exception):
    """A link leads to the root itself, which has no index file."""


class _Elsewhere(Exception):
    """A link leads to another name in the root, where nothing is."""


@dataclass(frozen=True)
class View:
    """A representation that may be sent."""

    file: str
    content: bytes
    coding: str | None
    varies: bool


def _set_age(path: Path, seconds: float) -> None:
    moment = 1_000_000_000 if math.isinf(seconds) else time.time_ns() - int(seconds * 1_000_000_000)
    os.utime(path, ns=(moment, moment))


def _unpacked(content: bytes, suffix: str) -> bytes | None:
    """What one stream has; None for anything else."""
    try:
        if suffix == ".br":
            return bytes(brotli.decompress(content))
        stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
        unpacked = stream.decompress(content)
    except (brotli.error, zlib.error):
        return None
    return unpacked if stream.eof and not stream.unused_data else None


def _names(folder: Folder, above: str = "") -> Iterator[str]:
    for name, node in folder.items():
        if not isinstance(node, Link):
            yield above + name
        if isinstance(node, Folder):
            yield from _names(node, f"{above}{name}/")


def _applies(if_range: str | None, tag: str, mtime_ns: int, now: float) -> bool:
    """RFC 9110 section 13.1.5: a date counts when it is one of a second that is over."""
    if if_range is None or if_range == tag:
        return True
    modified = mtime_ns // 1_000_000_000
    return modified not in (0, 1) and modified + 1 < now - 0.1 and if_range == http_date(modified)


def _complaint(answer: Answer, method: str, due: Due) -> str | None:
    """What is wrong with an answer; None when it is this one."""
    if answer.status != due.status:
        return f"not {due.status}"
    for name, value in due.fields.items():
        if answer.fields.get(name) != value:
            return f"{name} is not {value}"
    if method == "HEAD":
        return None if answer.body == b"" else "a body"
    if due.parts:
        return None if _parts(answer) == list(due.parts) else "other parts"
    if due.body is not None and answer.body != due.body:
        return f"another body of {len(answer.body)} bytes"
    return None


def _parts(answer: Answer) -> list[tuple[str, bytes]]:
    boundary = answer.fields["content-type"].removeprefix("multipart/byteranges; boundary=").encode()
    pieces = answer.body.split(b"\r\n--" + boundary)
    assert (pieces[0], pieces[-1]) == (b"", b"--\r\n")
    parts = []
    for piece in pieces[1:-1]:
        head, _, body = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        fields: Mapping[str, Any] = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n"))
        parts.append((fields["Content-Range"], body))
    return parts


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    above = tmp_path_factory.mktemp("above")
    root = above / "root"
    root.mkdir()
    (above / "secret").write_bytes(SECRET)
    library = Library()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setattr(response_cache, "_SETTLED_NS", SETTLED_NS)
        patch.setattr(siblings, "SETTLED_NS", SETTLED_NS)
        service = Service(library, Settings(root=root), support(library, Mode.OFF))
        stack.callback(service.close)
        listeners = bind_all([Listen("127.0.0.1", 0)])
        stack.enter_context(in_a_thread(Server(service), listeners))
        yield Served(listeners[0].socket.getsockname()[1], root, service, itertools.count(1))


def test_every_answer_is_for_the_tree_as_it_is(served: Served) -> None:
    Disk.served = served
    limits = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
    if settings.get_current_profile_name() != "long":
        limits = settings(limits, max_examples=30, stateful_step_count=40)
    run_state_machine_as_test(Disk, settings=limits)
    # Without these the test would say nothing about answers from memory.
    assert served.service.response_cache.uses > 20

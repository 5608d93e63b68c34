"""Log files without a server: whole lines in files and pipes, a count of what is lost, messages that stay on a line."""

from __future__ import annotations

import itertools
import logging
import os
import select
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.config.values import LogPlace
from ktlsd.logs import batch
from ktlsd.logs.error_log import ErrorLogHandler, LineFormatter
from ktlsd.logs.log_files import LogFile
from tests.files import nothing_stays_open

PATIENCE = 0.01


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[LogFile, int]]:
    """A log that goes into a pipe, and the descriptor to read from."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = LogFile(LogPlace(path))
    yield file, reading
    file.close()
    os.close(reading)


def read_all(descriptor: int) -> bytes:
    data = bytearray()
    while True:
        try:
            data += os.read(descriptor, 1 << 20)
        except BlockingIOError:
            return bytes(data)


@pytest.mark.parametrize("lengths", [[1], [100] * 300, [5000, 3, 5000], [select.PIPE_BUF] * 3, [20_000]])
def test_lines_come_out_of_a_pipe_as_they_went_in(pipe: tuple[LogFile, int], lengths: list[int]) -> None:
    file, reading = pipe
    lines = b"".join(b"x" * (length - 1) + b"\n" for length in lengths)
    assert file.write(lines, PATIENCE) is None
    assert read_all(reading) == lines


def test_a_full_pipe_has_whole_lines_and_the_others_are_counted(pipe: tuple[LogFile, int]) -> None:
    file, reading = pipe
    lines = [b"%d %b\n" % (number, b"x" * 100) for number in range(2000)]
    lost = file.write(b"".join(lines), PATIENCE)
    assert lost is not None
    assert isinstance(lost.error, TimeoutError)
    again = file.write(b"lost\n" * 3, PATIENCE)
    assert again is not None
    assert again.lines == 3
    arrived = read_all(reading)
    assert arrived == b"".join(lines[: len(lines) - lost.lines])
    assert 0 < lost.lines < len(lines)
    assert file.write(b"after\n", PATIENCE) is None
    assert read_all(reading) == b"after\n"


def test_a_line_that_was_torn_is_not_continued_by_the_next(pipe: tuple[LogFile, int]) -> None:
    file, reading = pipe
    lost = file.write(b"x" * 100_000 + b"\nsecond\n", PATIENCE)
    assert lost is not None
    assert lost.lines == 2
    torn = read_all(reading)
    assert torn == b"x" * len(torn)
    assert file.write(b"after\n", PATIENCE) is None
    assert read_all(reading) == b"\nafter\n"


def test_several_append_to_one_file_which_only_its_group_may_read(tmp_path: Path) -> None:
    place = LogPlace(tmp_path / "a.log")
    files = [LogFile(place), LogFile(place)]
    for number in range(4):
        assert files[number % 2].write(b"%d\n" % number, PATIENCE) is None
    for file in files:
        file.close()
    assert (tmp_path / "a.log").read_text() == "0\n1\n2\n3\n"
    assert (tmp_path / "a.log").stat().st_mode & 0o777 == 0o640


def test_reopening_goes_on_in_the_file_that_has_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    file = LogFile(LogPlace(path))
    with nothing_stays_open():
        file.write(b"old\n", PATIENCE)
        path.rename(tmp_path / "b.log")
        file.write(b"still old\n", PATIENCE)
        file.reopen()
        file.write(b"new\n", PATIENCE)
        path.rename(tmp_path / "c.log")
        path.mkdir()
        with pytest.raises(IsADirectoryError):
            file.reopen()
        file.write(b"kept\n", PATIENCE)
    file.close()
    assert (tmp_path / "b.log").read_text() == "old\nstill old\n"
    assert (tmp_path / "c.log").read_text() == "new\nkept\n"


def test_lines_and_calls_keep_their_order_while_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "GATHER_SECONDS", 0)
    path, calls, count = tmp_path / "a.log", 20, 200
    file = LogFile(LogPlace(path))
    lines = batch.LogBatch(file)
    thread = threading.Thread(target=lines._write_for_ever)
    thread.start()
    for call in range(calls):
        for number in range(count):
            lines.add(b"%d-%d\n" % (call, number))
        lines.call(partial(file.write, b"call %d\n" % call, PATIENCE))
    lines.add(b"last\n")
    lines.end()
    thread.join(10)
    file.close()
    expected = [[*(f"{call}-{number}" for number in range(count)), f"call {call}"] for call in range(calls)]
    assert path.read_text().split() == " ".join([*itertools.chain(*expected), "last"]).split()


def test_lost_messages_are_told_when_the_log_takes_some_again(pipe: tuple[LogFile, int]) -> None:
    file, reading = pipe
    handler = ErrorLogHandler(file)

    def say(text: str) -> None:
        handler.handle(logging.makeLogRecord({"msg": "%s", "args": (text,), "levelname": "ERROR"}))

    while file.write(b"x" * 99 + b"\n", PATIENCE) is None:
        pass
    for _ in range(3):
        say("lost" * 50)
    read_all(reading)
    say("heard")
    say("heard too")
    lines = read_all(reading).decode().splitlines()
    assert [line.partition("Z ")[2] for line in lines] == [
        "warning 3 messages of this log were lost",
        "error heard",
        "error heard too",
    ]


@given(st.text(), st.booleans())
def test_a_message_is_one_line_whatever_is_in_it(text: str, dated: bool) -> None:
    record = logging.makeLogRecord({"msg": "%s", "args": (text,), "levelname": "INFO", "created": 0})
    line = LineFormatter(dated=dated).format(record)
    assert line.isprintable()
    assert line.startswith("1970-01-01T00:00:00.000Z info ") == dated or not dated


def test_a_traceback_cannot_look_like_other_messages() -> None:
    try:
        raise ValueError("first\n192.0.2.1:1 404 GET /forged: no such file\x1b[2J")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "a\nb", "exc_info": (type(error), error, error.__traceback__)})
    first, *others = LineFormatter(dated=False).format(record).splitlines()
    assert first == r"a\nb"
    assert others[-1] == r"    192.0.2.1:1 404 GET /forged: no such file\x1b[2J"
    assert all(line.startswith("    ") and line.isprintable() for line in others)

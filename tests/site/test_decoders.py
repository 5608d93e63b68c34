"""Unpacking content codings: whole streams and nothing else, in bounded memory."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.commands.encoders import encoder
from ktlsd.config.values import Coding
from ktlsd.site.decoders import DecodeError, is_packed, unpack

CODINGS: tuple[Coding, ...] = get_args(Coding)
CONTENT = b"".join(b"line %d of a text\n" % number for number in range(20_000)) + random.Random(1).randbytes(50_000)


def packed(coding: Coding, content: bytes) -> bytes:
    stream = encoder(coding, len(content))
    return stream.feed(content) + stream.finish()


def unpacked(coding: Coding, data: bytes) -> bytes:
    return b"".join(unpack(coding, [data]))


@pytest.mark.parametrize("coding", CODINGS)
def test_what_was_packed_comes_out(coding: Coding) -> None:
    for content in (CONTENT, b"", b"x"):
        data = packed(coding, content)
        assert unpacked(coding, data) == content
        assert b"".join(unpack(coding, [data[:7], data[7:30], data[30:]])) == content


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("missing", [1, 2, 4, 8, 1000])
def test_a_stream_that_is_not_whole_is_refused(coding: Coding, missing: int) -> None:
    """Though all of the content may have come out of it: a client would report an error."""
    with pytest.raises(DecodeError):
        unpacked(coding, packed(coding, CONTENT)[:-missing])


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("more", [b"\0", b"x" * 70_000])
def test_bytes_behind_the_stream_are_refused(coding: Coding, more: bytes) -> None:
    data = packed(coding, CONTENT)
    with pytest.raises(DecodeError):
        unpacked(coding, data + more)
    with pytest.raises(DecodeError):
        list(unpack(coding, [data, more]))


@pytest.mark.parametrize("coding", CODINGS)
def test_two_streams_in_a_row_are_refused(coding: Coding) -> None:
    """Chromium stops after the first gzip member."""
    with pytest.raises(DecodeError):
        unpacked(coding, packed(coding, b"one") + packed(coding, b"two"))


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("data", [b"", b"no stream at all", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"])
def test_what_is_no_stream_is_refused(coding: Coding, data: bytes) -> None:
    with pytest.raises(DecodeError):
        unpacked(coding, data)


def test_a_window_that_browsers_do_not_take_is_refused() -> None:
    """RFC 9659 section 3."""
    content = random.Random(2).randbytes(1000)

    def framed(window_log: int) -> bytes:
        parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
        out = io.BytesIO()
        # Without a size, so that the frame says its window.
        with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(out, closefd=False) as writer:
            writer.write(content)
        return out.getvalue()

    assert unpacked("zstd", framed(23)) == content
    with pytest.raises(DecodeError):
        unpacked("zstd", framed(24))


@settings(deadline=None)
@given(st.sampled_from(CODINGS), st.binary(max_size=300), st.binary(max_size=40))
def test_no_bytes_break_it(coding: Coding, content: bytes, noise: bytes) -> None:
    data = packed(coding, content)
    for hostile in (noise, data[: len(data) // 2] + noise, data[:4] + noise + data[4:]):
        try:
            out = unpacked(coding, hostile)
        except DecodeError:
            continue
        assert len(out) <= 100_000_000


# --- compared with a file


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "original"
    path.write_bytes(CONTENT)
    return path


def compared(original: Path, data: bytes, coding: Coding) -> bool:
    sibling = original.with_name("sibling")
    sibling.write_bytes(data)
    with original.open("rb") as one, sibling.open("rb") as other:
        return is_packed(one.fileno(), other.fileno(), coding)


@pytest.mark.parametrize("coding", CODINGS)
def test_only_the_very_content_compares(original: Path, coding: Coding) -> None:
    assert compared(original, packed(coding, CONTENT), coding)
    changed = bytearray(CONTENT)
    changed[200_000] ^= 1
    for other in (CONTENT[:-1], CONTENT + b"x", bytes(changed), b"", CONTENT[1:]):
        assert not compared(original, packed(coding, other), coding)
    assert not compared(original, packed(coding, CONTENT)[:-1], coding)
    for another in set(CODINGS) - {coding}:
        assert not compared(original, packed(another, CONTENT), coding)


def test_an_empty_file_compares(original: Path) -> None:
    original.write_bytes(b"")
    assert compared(original, gzip.compress(b""), "gzip")
    assert not compared(original, b"", "gzip")


def test_a_bomb_is_read_in_bounded_memory(original: Path) -> None:
    """Streams of 400 MB of zeros, which have as many in common with the file as there are, in a process of 600 MiB."""
    bombs = []
    for coding in CODINGS:
        bombs.append(str(original.with_name(f"bomb.{coding}")))
        Path(bombs[-1]).write_bytes(_zeros(coding))
    os.truncate(original, 0)
    os.truncate(original, 20_000_000)
    script = (
        "import resource, sys\n"
        "from ktlsd.site.decoders import is_packed\n"
        "resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))\n"
        "original = open(sys.argv[1], 'rb')\n"
        "for name in sys.argv[2:]:\n"
        "    with open(name, 'rb') as bomb:\n"
        "        assert not is_packed(original.fileno(), bomb.fileno(), name.rpartition('.')[2])\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(original), *bombs], capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()


def _zeros(coding: Coding) -> bytes:
    pieces, piece = range(400), bytes(1_000_000)
    feed: Callable[[bytes], bytes]
    finish: Callable[[], bytes]
    match coding:
        case "gzip":
            deflate = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
            feed, finish = deflate.compress, deflate.flush
        case "br":
            stream = brotli.Compressor(quality=1)
            feed, finish = stream.process, stream.finish
        case "zstd":
            frame = zstandard.ZstdCompressor(level=1).compressobj()
            feed, finish = frame.compress, frame.flush
    return b"".join([*(feed(piece) for _ in pieces), finish()])

"""A PlainTransport and a real TCP client over loopback: what arrives, and how it ends."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from ktlsd.config.options import LimitOptions
from ktlsd.connection.page_cache import PageCache
from ktlsd.connection.plain_transport import PlainTransport
from ktlsd.connection.scheduler import ALONE_BYTES
from ktlsd.connection.transport import FileShrank, TooSlow
from ktlsd.openssl.errors import ConnectionLost
from ktlsd.tls.ktls_probe import loopback_pair

SIZE = 3 * ALONE_BYTES + 12345
CONTENT = os.urandom(SIZE)
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
Pair = tuple[socket.socket, socket.socket]
Ends = tuple[socket.socket, PlainTransport]
DATA_SEGMENTS_SENT = slice(156, 160)  # tcpi_data_segs_out in struct tcp_info of linux/tcp.h
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    opened = os.open(path, os.O_RDONLY)
    yield opened
    os.close(opened)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The client's socket and the server's."""
    with loopback_pair() as (near, far):
        near.settimeout(30)
        yield near, far


@pytest.fixture
def ends(pair: Pair) -> Iterator[Ends]:
    near, far = pair
    transport = PlainTransport(far, PageCache())
    yield near, transport
    transport.close()


class Reader:
    """A client thread that reads to the end; the bytes, and how it ended if not in order."""

    def __init__(self, near: socket.socket) -> None:
        self._near = near
        self.received = bytearray()
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            while data := self._near.recv(65536):
                self.received += data
        except OSError as error:
            self.error = error

    def join(self) -> bytes:
        self._thread.join()
        return bytes(self.received)


async def send_whole(transport: PlainTransport, descriptor: int) -> bytes:
    await transport.send_file(HEAD, descriptor, 0, SIZE)
    return HEAD + CONTENT


async def send_range(transport: PlainTransport, descriptor: int) -> bytes:
    await transport.send_file(HEAD, descriptor, 1000, 5)
    return HEAD + CONTENT[1000:1005]


async def send_parts(transport: PlainTransport, descriptor: int) -> bytes:
    expected = b""
    for number in range(20):
        head, offset, count = f"\r\n--part {number}\r\n".encode(), number * 1000, 1 + number * 50_000
        await transport.send_file(head, descriptor, offset, count)
        expected += head + CONTENT[offset : offset + count]
    await transport.send_text(b"\r\n--end")
    return expected + b"\r\n--end"


async def begin_parts(transport: PlainTransport, descriptor: int) -> bytes:
    expected = b""
    for number in range(40):
        head, offset, count = f"\r\n--part {number}\r\n".encode(), number * 1000, 1 + number * 5000
        rest = transport.begin_file(head, descriptor, offset, count)
        if rest is not None:
            await transport.send_file(bytes(rest.data), descriptor, rest.offset, rest.size)
        expected += head + CONTENT[offset : offset + count]
    return expected


async def send_text(transport: PlainTransport, descriptor: int) -> bytes:
    await transport.send_text(CONTENT)
    await transport.send_text(b"")
    return CONTENT


async def send_for_ever(transport: PlainTransport, descriptor: int) -> None:
    while True:
        await transport.send_file(HEAD, descriptor, 0, SIZE)


Send = Callable[[PlainTransport, int], Awaitable[bytes]]


@pytest.mark.parametrize("send", [send_whole, send_range, send_parts, begin_parts, send_text])
@pytest.mark.parametrize("send_buffer", [None, 50_000])
async def test_what_is_sent_arrives_whole(
    pair: Pair, ends: Ends, descriptor: int, send: Send, send_buffer: int | None
) -> None:
    near, transport = ends
    if send_buffer is not None:
        pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    reader = Reader(near)
    with trio.fail_after(60):
        expected = await send(transport, descriptor)
        await transport.finish()
    transport.close()
    assert reader.join() == expected
    assert reader.error is None
    assert transport.sent == len(expected)


async def test_a_head_shares_a_segment_with_its_file(pair: Pair, ends: Ends, descriptor: int) -> None:
    _, transport = ends
    await transport.send_file(HEAD, descriptor, 0, 100)
    information = pair[1].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, DATA_SEGMENTS_SENT.stop)
    assert int.from_bytes(information[DATA_SEGMENTS_SENT], sys.byteorder) == 1
    await transport.finish()


async def test_nothing_is_held_back_between_parts(ends: Ends, descriptor: int) -> None:
    """Each part arrives without that anything else is sent."""
    near, transport = ends
    for offset in range(0, 5000, 1000):
        await transport.send_file(HEAD, descriptor, offset, 700)
        expected = HEAD + CONTENT[offset : offset + 700]
        received = b""
        while len(received) < len(expected):
            received += near.recv(len(expected) - len(received))
        assert received == expected
    await transport.finish()


@pytest.mark.parametrize("count", [2, SIZE])
async def test_a_file_that_shrank_ends_with_a_reset(ends: Ends, descriptor: int, count: int) -> None:
    near, transport = ends
    reader = Reader(near)
    with trio.fail_after(30), pytest.raises(FileShrank):
        await transport.send_file(HEAD, descriptor, SIZE - 1, count)
    assert transport.sent == len(HEAD) + 1
    transport.close()
    reader.join()
    assert isinstance(reader.error, ConnectionResetError)


@pytest.mark.parametrize("send", [send_whole, send_parts, send_text])
async def test_a_connection_closed_without_finish_is_reset(ends: Ends, descriptor: int, send: Send) -> None:
    near, transport = ends
    reader = Reader(near)
    with trio.fail_after(30):
        await send(transport, descriptor)
    transport.close()
    reader.join()
    assert isinstance(reader.error, ConnectionResetError)


async def test_a_response_survives_what_the_client_still_sends(ends: Ends, descriptor: int) -> None:
    near, transport = ends
    near.sendall(bytes(100_000))
    reader = Reader(near)
    async with trio.open_nursery() as nursery:
        await transport.send_text(HEAD)
        nursery.start_soon(lambda: transport.finish(unread=True))
        await trio.to_thread.run_sync(reader.join)
        near.sendall(bytes(100_000))
        near.shutdown(socket.SHUT_WR)
    transport.close()
    assert (reader.join(), reader.error) == (HEAD, None)


async def test_a_reader_that_stops_is_given_up(pair: Pair, descriptor: int) -> None:
    limits = LimitOptions(send_seconds=0.3)
    transport = PlainTransport(pair[1], PageCache(), limits=limits)
    with trio.fail_after(30), pytest.raises(TooSlow, match=r"less than 240 bytes a second for 0.3 s"):
        await send_for_ever(transport, descriptor)
    transport.close()


def reset(near: socket.socket) -> None:
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    near.close()


@pytest.mark.parametrize("send", [send_whole, send_range, send_text])
async def test_a_client_that_is_gone_is_no_fault_of_the_file(ends: Ends, descriptor: int, send: Send) -> None:
    near, transport = ends
    reset(near)
    with trio.fail_after(30), pytest.raises(ConnectionLost):
        await send(transport, descriptor)


async def test_a_client_that_goes_while_it_is_sent_to(ends: Ends, descriptor: int) -> None:
    near, transport = ends
    timer = threading.Timer(0.1, reset, [near])
    timer.start()
    with trio.fail_after(30), pytest.raises(ConnectionLost):
        await send_for_ever(transport, descriptor)
    timer.join()


async def test_a_file_that_cannot_be_sent_is_no_fault_of_the_client(ends: Ends) -> None:
    """The file can be read, so that sendfile(2) itself fails: nothing can be sent from this one."""
    _, transport = ends
    own_memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=r"Value too large|Invalid argument"):
            await transport.send_file(HEAD, own_memory, id(CONTENT), 10)
    finally:
        os.close(own_memory)


async def test_what_the_client_sends_is_read(ends: Ends) -> None:
    near, transport = ends
    assert not transport.key_update_owed
    with trio.move_on_after(0.05) as scope:
        await transport.read()
    assert scope.cancelled_caught
    near.sendall(b"GET")
    assert await transport.read() == b"GET"
    near.shutdown(socket.SHUT_WR)
    assert await transport.read() == b""
    assert await transport.read() == b""


async def test_a_reset_is_a_lost_connection(ends: Ends) -> None:
    near, transport = ends
    reset(near)
    with trio.fail_after(30), pytest.raises(ConnectionLost):
        await transport.read()


async def test_a_client_that_sends_all_the_time_leaves_others_their_turn(ends: Ends) -> None:
    near, transport = ends
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        for _ in range(50):
            near.send(b"x")
            await transport.read()
        nursery.cancel_scope.cancel()
    assert turns >= 40

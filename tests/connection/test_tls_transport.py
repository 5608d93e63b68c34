"""A Transport and a real TLS client over loopback: slow clients, responses of several parts, the name asked for."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ktlsd.config.options import LimitOptions
from ktlsd.connection.page_cache import PageCache
from ktlsd.connection.sni import peek_client_hello
from ktlsd.connection.tls_transport import Transport
from ktlsd.connection.transport import TooSlow
from ktlsd.openssl.results import Handshake
from ktlsd.ssl_ffi import Context, Library
from ktlsd.tls.certificate import localhost_certificate
from ktlsd.tls.ktls_probe import loopback_pair
from tests.serving import client_context

DATA = bytes(20_000_000)
IMPATIENT = LimitOptions(send_seconds=1.0)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    context = Context(Library())
    certificate = str(localhost_certificate(tmp_path))
    context.use_certificate(certificate, certificate)
    yield context
    context.close()


@contextlib.contextmanager
def reader(near: socket.socket, amount: int, pause: float) -> Iterator[list[int]]:
    """A client thread that reads `amount` bytes every `pause` seconds; how many bytes it has, in a list of one."""
    received = [0]
    stop = threading.Event()

    def read() -> None:
        with contextlib.suppress(OSError), client_context().wrap_socket(near) as connection:
            while not stop.wait(pause) and (data := connection.recv(amount)):
                received[0] += len(data)

    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    near.settimeout(30)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield received
    finally:
        stop.set()
        near.close()
        thread.join()


async def test_a_steady_reader_is_waited_for_however_slow(context: Context) -> None:
    with loopback_pair() as (near, far), reader(near, 20_000, 0.05) as received:
        transport = Transport(context, far, PageCache(), limits=IMPATIENT)
        await transport.handshake()
        with trio.move_on_after(4):
            await transport.send_text(DATA)
        transport.close()
        # Slow it was: the socket did not become writable again within several stall times, and was not given up.
        assert 0 < received[0] < len(DATA) // 2


async def test_a_reader_that_stops_is_given_up(context: Context) -> None:
    with loopback_pair() as (near, far), reader(near, 2000, 30.0):
        transport = Transport(context, far, PageCache(), limits=IMPATIENT)
        await transport.handshake()
        started = time.monotonic()
        with pytest.raises(TooSlow, match=r"less than 240 bytes a second for 1 s"), trio.fail_after(20):
            await transport.send_text(DATA)
        assert time.monotonic() - started >= IMPATIENT.send_seconds
        transport.close()


@contextlib.contextmanager
def collector(
    near: socket.socket, name: str | None = None, begin: threading.Event | None = None
) -> Iterator[bytearray]:
    """A client thread that shakes hands and reads to the end, from when it may `begin`; the bytes so far."""
    received = bytearray()

    def read() -> None:
        with client_context().wrap_socket(near, server_hostname=name) as connection:
            if begin is not None:
                begin.wait(30)
            while data := connection.recv(65536):
                received.extend(data)

    near.settimeout(30)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield received
    finally:
        thread.join()


async def send_parts(context: Context, folder: Path) -> Handshake:
    """Parts of a file with heads of their own, each of which must arrive before anything else is sent."""
    content = os.urandom(1_000_000)
    (folder / "file.bin").write_bytes(content)
    descriptor = os.open(folder / "file.bin", os.O_RDONLY)
    try:
        with loopback_pair() as (near, far), collector(near) as received:
            transport = Transport(context, far, PageCache())
            try:
                with trio.fail_after(60):
                    facts = await transport.handshake()
                    expected = b""
                    for number, count in enumerate([1, 700, 16384, 700_000]):
                        head, offset = f"--part {number}\r\n\r\n".encode(), number * 1000
                        await transport.send_file(head, descriptor, offset, count)
                        expected += head + content[offset : offset + count]
                        while len(received) < len(expected):  # noqa: ASYNC110 - filled by a thread
                            await trio.sleep(0.01)
                    await transport.send_text(b"--end")
                    await transport.finish()
            finally:
                transport.close()
        assert bytes(received) == expected + b"--end"
    finally:
        os.close(descriptor)
    return facts


async def test_slow_readers_of_different_files_get_what_is_theirs(tmp_path: Path) -> None:
    """All pieces go through the same memory, and sockets that take little at a time have others come between."""
    contents = [os.urandom(1_500_000 + number) for number in range(6)]
    waiting, begin = 0, threading.Event()
    page_cache = PageCache()
    with contextlib.closing(Context(Library(), ktls=False)) as context, contextlib.ExitStack() as stack:
        certificate = str(localhost_certificate(tmp_path))
        context.use_certificate(certificate, certificate)

        async def send(content: bytes, far: socket.socket, descriptor: int) -> None:
            with contextlib.closing(Transport(context, far, page_cache)) as transport:
                nonlocal waiting
                await transport.handshake()
                waiting += 1
                if waiting == len(contents):
                    # The others wait in the middle of a piece, which is more than unread sockets take,
                    # and go on only after this one has put its own into the memory.
                    begin.set()
                await transport.send_file(b"head of %d" % len(content), descriptor, 0, len(content))
                assert transport.sent == len(b"head of %d" % len(content)) + len(content)
                await transport.finish()

        collected = []
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number, content in enumerate(contents):
                    path = tmp_path / f"{number}.bin"
                    path.write_bytes(content)
                    near, far = stack.enter_context(loopback_pair())
                    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
                    collected.append(stack.enter_context(collector(near, begin=begin)))
                    nursery.start_soon(send, content, far, stack.enter_context(path.open("rb")).fileno())
        stack.close()
        assert collected == [b"head of %d" % len(content) + content for content in contents]


async def begin_parts(context: Context, folder: Path, send_buffer: int) -> Handshake:
    """Parts of a file of which as much is sent as the socket takes, and then the rest and some more, when others have
    used the memory and the client reads."""
    content, size, more = os.urandom(3_000_000), 50_000, 20_000
    (folder / "file.bin").write_bytes(content)
    page_cache, begin = PageCache(), threading.Event()
    blocked, expected = 0, b""
    with contextlib.ExitStack() as stack:
        descriptor = stack.enter_context((folder / "file.bin").open("rb")).fileno()
        near, far = stack.enter_context(loopback_pair())
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
        received = stack.enter_context(collector(near, begin=begin))
        transport = stack.enter_context(contextlib.closing(Transport(context, far, page_cache)))
        stack.callback(begin.set)
        with trio.fail_after(60):
            facts = await transport.handshake()
            for offset in range(0, len(content) - size, size):
                head = b"part at %d" % offset
                rest = transport.begin_file(head, descriptor, offset, size)
                expected += head + content[offset : offset + size]
                if rest is not None:
                    blocked += 1
                    page_cache.load(b"", descriptor, 0, size)
                    begin.set()
                    # SSL_write may be given more than what it could not send before.
                    await transport.send_file(bytes(rest.data), descriptor, rest.offset, rest.size + more)
                    expected += content[offset + size : offset + size + more]
            await transport.finish()
        assert transport.sent == len(expected)
    assert received == expected
    assert blocked
    return facts


async def test_what_is_begun_without_waiting_arrives_whole(tmp_path: Path) -> None:
    with contextlib.closing(Context(Library(), ktls=False)) as context:
        certificate = str(localhost_certificate(tmp_path))
        context.use_certificate(certificate, certificate)
        assert not (await begin_parts(context, tmp_path, 20_000)).ktls_tx


@pytest.mark.ktls
async def test_what_the_kernel_begins_without_waiting_arrives_whole(context: Context, tmp_path: Path) -> None:
    # With much less than this, Linux 6.1 keeps an open record that it never finds the room to send.
    assert (await begin_parts(context, tmp_path, 100_000)).ktls_tx


async def test_parts_of_a_file_arrive_one_by_one(tmp_path: Path) -> None:
    with contextlib.closing(Context(Library(), ktls=False)) as context:
        certificate = str(localhost_certificate(tmp_path))
        context.use_certificate(certificate, certificate)
        assert not (await send_parts(context, tmp_path)).ktls_tx


@pytest.mark.ktls
async def test_parts_of_a_file_arrive_one_by_one_from_the_kernel(context: Context, tmp_path: Path) -> None:
    assert (await send_parts(context, tmp_path)).ktls_tx


@pytest.mark.parametrize(
    ("asked", "name"), [("www.example.org", "www.example.org"), ("WWW.Example.org", "www.example.org"), (None, None)]
)
async def test_the_name_asked_for_is_the_name_that_was_peeked(
    context: Context, asked: str | None, name: str | None
) -> None:
    with loopback_pair() as (near, far), collector(near, asked):
        with trio.fail_after(30):
            assert (await peek_client_hello(far)).server_name == name
            transport = Transport(context, far, PageCache())
            assert (await transport.handshake()).server_name == name
            await transport.finish()
        transport.close()

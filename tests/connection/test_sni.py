"""The host name is found on a real socket: nothing is consumed, and nothing spins while bytes are missing."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
import trio

from ktlsd.connection.sni import peek_client_hello
from ktlsd.tls.client_hello import LONGEST_HELLO
from ktlsd.tls.ktls_probe import loopback_pair
from tests.tls.test_client_hello import PADDING, REAL, SERVER_NAME, huge, message, names, record, split

LARGE = split(record(message([(PADDING, bytes(4000)), (SERVER_NAME, names((0, b"www.example.org")))])), [1000])
PIECES = 100
PAUSE_SECONDS = 0.003


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with loopback_pair() as (near, far):
        yield near, far


class Steps(trio.abc.Instrument):
    """How often each task was run."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.of[task.name] = self.of.get(task.name, 0) + 1


@pytest.fixture
def steps() -> Steps:
    return Steps()


def low_water_mark(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


async def find(sock: socket.socket, found: list[str | None]) -> None:
    found.append((await peek_client_hello(sock)).server_name)


@pytest.mark.parametrize("hello", [REAL, LARGE], ids=["usual", "large"])
async def test_a_whole_hello_is_looked_at_and_left(pair: tuple[socket.socket, socket.socket], hello: bytes) -> None:
    near, far = pair
    near.sendall(hello)
    with trio.fail_after(10):
        assert (await peek_client_hello(far)).server_name == "www.example.org"
    assert low_water_mark(far) == 1
    received = b""
    while len(received) < len(hello):
        await trio.lowlevel.wait_readable(far)
        received += far.recv(65536)
    assert received == hello


@pytest.mark.parametrize("hello", [REAL, LARGE], ids=["usual", "large"])
async def test_pieces_are_waited_for_by_the_kernel(
    pair: tuple[socket.socket, socket.socket], steps: Steps, hello: bytes
) -> None:
    near, far = pair
    found: list[str | None] = []
    size = len(hello) // PIECES
    trio.lowlevel.add_instrument(steps)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(find, far, found, name="finder")
            for start in range(0, len(hello), size):
                assert found == []
                near.send(hello[start : start + size])
                await trio.sleep(PAUSE_SECONDS)
    trio.lowlevel.remove_instrument(steps)
    assert found == ["www.example.org"]
    # One for each look, of which a record has one or two; without the low-water mark each piece would have one.
    assert steps.of["finder"] < PIECES // 2


async def test_a_hello_that_does_not_go_on_is_waited_for_without_a_look(
    pair: tuple[socket.socket, socket.socket], steps: Steps
) -> None:
    near, far = pair
    near.send(REAL[:100])
    trio.lowlevel.add_instrument(steps)
    with trio.move_on_after(0.3) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(find, far, [], name="finder")
    trio.lowlevel.remove_instrument(steps)
    assert scope.cancelled_caught
    assert steps.of["finder"] < 10
    assert low_water_mark(far) == 1
    assert far.recv(200) == REAL[:100]


@pytest.mark.parametrize("sent", [b"", REAL[:3], REAL[:100]], ids=["nothing", "a start", "a part"])
async def test_a_client_that_ends_before_has_no_name(pair: tuple[socket.socket, socket.socket], sent: bytes) -> None:
    near, far = pair
    near.send(sent)
    near.shutdown(socket.SHUT_WR)
    with trio.fail_after(10):
        assert (await peek_client_hello(far)).server_name is None
    assert far.recv(200) == sent


async def test_a_client_that_ends_while_it_is_waited_for_has_no_name(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    near.send(REAL[:100])
    found: list[str | None] = []
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(find, far, found)
            await trio.sleep(0.1)
            assert found == []
            near.shutdown(socket.SHUT_WR)
    assert found == [None]
    assert low_water_mark(far) == 1


async def test_a_client_that_resets_has_no_name(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    near.send(REAL[:100])
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    near.close()
    with trio.fail_after(10):
        assert (await peek_client_hello(far)).server_name is None


@pytest.mark.parametrize("data", [b"SSH", REAL[:6] + b"\2\x01\x45", record(b"")])
async def test_what_is_no_hello_is_not_waited_for(pair: tuple[socket.socket, socket.socket], data: bytes) -> None:
    near, far = pair
    near.send(data)
    with trio.fail_after(10):
        assert (await peek_client_hello(far)).server_name is None


async def test_a_record_of_another_type_ends_the_wait(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """With a few bytes, where the ClientHello said that hundreds are missing."""
    near, far = pair
    near.send(record(REAL[5:55]))
    found: list[str | None] = []
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(find, far, found)
            await trio.sleep(0.1)
            assert found == []
            near.send(record(b"", kind=23))
    assert found == [None]
    assert low_water_mark(far) == 1


@pytest.mark.parametrize("size", [41, 16384])
async def test_the_longest_hello_fits_into_the_socket(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    near, far = pair
    whole = huge()
    hello = b"".join(record(whole[start : start + size]) for start in range(0, len(whole), size))
    assert 131400 < len(hello) <= LONGEST_HELLO
    found: list[str | None] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(find, far, found)
            start = 0
            while start < len(hello):
                await trio.lowlevel.wait_writable(near)
                start += near.send(hello[start : start + 1000])
    assert found == ["example.org"]
    assert low_water_mark(far) == 1

"""poller.py over real sockets: those that show something in the same turn go on step by step, together."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from ktlsd.connection.poller import Batch, Poller, Steps

SOME = 5


class Stepping:
    """Receives, makes an answer and sends it, each in a step of its own."""

    def __init__(
        self, number: int, sock: socket.socket, seen: list[tuple[str, int]], trouble: str, *, low_priority: bool
    ) -> None:
        self._number, self._socket, self._seen, self._trouble = number, sock, seen, trouble
        self.low_priority = low_priority

    def _see(self, step: str) -> None:
        self._seen.append((step, self._number))
        if step == self._trouble:
            raise OSError(f"no memory to {step}")

    def ready(self, batch: Batch) -> Steps:
        request = self._socket.recv(16)
        self._see("receive")
        yield
        answer = batch.setdefault(request, request.upper())
        self._see("make")
        yield
        self._socket.send(answer)
        self._see("send")


@contextlib.asynccontextmanager
async def watched(
    trouble: str = "", *, low_priority: int | None = None
) -> AsyncIterator[tuple[list[socket.socket], list[tuple[str, int]]]]:
    """SOME clients' ends, and what was done for all of them: the second one has trouble with a step, one is patient."""
    seen: list[tuple[str, int]] = []
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(contextlib.closing(Poller()))
        clients = []
        for number in range(SOME):
            near, far = (stack.enter_context(end) for end in socket.socketpair())
            far.setblocking(False)
            stepping = Stepping(number, far, seen, trouble if number == 1 else "", low_priority=number == low_priority)
            watch.set(far.fileno(), stepping)
            clients.append(near)
        for client in clients:
            client.send(b"word")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            await trio.testing.wait_all_tasks_blocked()
            yield clients, seen
            nursery.cancel_scope.cancel()


async def test_all_receive_before_one_makes_and_all_make_before_one_sends() -> None:
    async with watched() as (clients, seen):
        assert [client.recv(16, socket.MSG_DONTWAIT) for client in clients] == SOME * [b"WORD"]
    everybody = range(SOME)
    assert seen == [(step, number) for step in ("receive", "make", "send") for number in everybody]


async def test_who_may_take_long_begins_after_all_others_have_sent() -> None:
    async with watched(low_priority=0) as (clients, seen):
        assert [client.recv(16, socket.MSG_DONTWAIT) for client in clients] == SOME * [b"WORD"]
    assert [step for step, number in seen if number == 0] == ["receive", "make", "send"]
    assert [number for _, number in seen[-3:]] == [0, 0, 0]


@pytest.mark.parametrize("trouble", ["receive", "make", "send"])
async def test_what_others_have_received_is_answered_whatever_happens_to_one(
    trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(trouble) as (clients, seen):
        others = [client for number, client in enumerate(clients) if number != 1]
        assert [client.recv(16, socket.MSG_DONTWAIT) for client in others] == len(others) * [b"WORD"]
    # A failed step is not started again.
    assert seen.count((trouble, 1)) == 1
    assert seen[-1] == ("send", SOME - 1)
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot poll connections, retrying: no memory to {trouble}"
    ]

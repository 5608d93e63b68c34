"""Responses that are sent at a pace (http/byte_rate.py): the wait for the next turn, and the calls of a transport.

Strategy: the kernel's own pacing (SO_MAX_PACING_RATE) knows one TCP connection only, no stream and no client network,
and was up to 3 times too fast (docs/performance.md, "Send rates"). So a body is handed to the transport turn by turn.
"""

from __future__ import annotations

import time

import trio

from ktlsd.connection.scheduler import current_scheduler
from ktlsd.connection.transport import PacedTransport
from ktlsd.http.byte_rate import Pace


async def next_turn(pace: Pace, most: int) -> int:
    """Wait for the next turn; how many of the next `most` bytes, at least one, are to be sent in it."""
    now = time.monotonic()
    count, at = pace.next_turn(most, now)
    if at > now:
        with current_scheduler().busy(-1):
            await trio.sleep(at - now)
    return count


async def send_text(transport: PacedTransport, pace: Pace | None, data: bytes | bytearray) -> None:
    """PacedTransport.send_text() at this pace, if there is one."""
    if pace is None:
        await transport.send_text(data)
        return
    sent = 0
    while sent < len(data):
        turn = await next_turn(pace, len(data) - sent)
        await transport.send_text(data[sent : sent + turn])
        sent += turn


async def send_file(
    transport: PacedTransport, pace: Pace | None, head: bytes, descriptor: int, offset: int, count: int
) -> None:
    """PacedTransport.send_file() at this pace, if there is one."""
    if pace is None:
        await transport.send_file(head, descriptor, offset, count)
        return
    end = offset + count
    while offset < end:
        turn = await next_turn(pace, end - offset)
        await transport.send_file(head, descriptor, offset, turn)
        head = b""
        offset += turn

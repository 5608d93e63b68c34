"""Coroutines that are tried on the spot: their result, or the word that they would wait, and nothing is left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import trio
import trio.lowlevel

from ktlsd.attempt import WouldWait, attempt, needs_task


async def answer(number: int) -> int:
    return number + 1


async def outer(number: int) -> int:
    return await answer(number) + 1


def test_what_needs_no_wait_returns_at_once() -> None:
    assert attempt(outer(1)) == 3


def test_what_would_wait_is_undone() -> None:
    steps: list[str] = []

    @contextlib.contextmanager
    def held() -> Iterator[None]:
        steps.append("taken")
        try:
            yield
        finally:
            steps.append("given back")

    async def waits() -> int:
        with held():
            try:
                needs_task()
            except Exception:
                steps.append("taken for a failure")
            await trio.lowlevel.checkpoint()
        return 1

    with pytest.raises(WouldWait):
        attempt(waits())
    assert steps == ["taken", "given back"]
    # In a task it waits.
    assert trio.run(waits) == 1


def test_a_failure_is_the_callers() -> None:
    async def fails() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        attempt(fails())
    # The attempt is over.
    needs_task()


async def test_a_wait_without_a_word_before_it_is_a_defect() -> None:
    async def waits() -> None:
        await trio.sleep(1)

    with pytest.raises(RuntimeError, match="without a call of needs_task"):
        attempt(waits())
    needs_task()

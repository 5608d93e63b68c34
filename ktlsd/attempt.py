"""Coroutines that usually need not wait, run to their end on the spot: no task, no turn of the event loop.

Strategy: code that is about to wait calls needs_task(). During an attempt that raises WouldWait, which unwinds like any
exception, and the caller starts again in a task. In a task it does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")


class WouldWait(BaseException):
    """An attempt ends without a result, since the coroutine would have to wait: no failure for a handler to catch."""


class _State(threading.local):
    """Of the event loop of this thread."""

    attempting = False


_state: Final = _State()


def attempt(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that does not wait. Raises WouldWait, and the coroutine's exceptions."""
    _state.attempting = True
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        _state.attempting = False
        coroutine.close()
    raise RuntimeError("a coroutine waited during an attempt without a call of needs_task() before")


def needs_task() -> None:
    """Called before a wait. Raises WouldWait during an attempt."""
    if _state.attempting:
        raise WouldWait

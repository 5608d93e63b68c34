"""The pytest fixture `ktlsd_server`: servers for tests, each in a thread of the test's own process.

Strategy: pytest loads this module in every run wherever ktlsd is installed, so it imports nothing of ktlsd before the
fixture is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ktlsd import RunningServer

_DEFAULTS = {"drain_seconds": 1}


@pytest.fixture
def ktlsd_server() -> Iterator[Callable[[Mapping[str, Any]], RunningServer]]:
    """Start a server by the keys of a ktlsd.toml: `ktlsd_server({"root": tmp_path})`. It ends with the test."""
    from ktlsd import serving_in_thread

    with contextlib.ExitStack() as servers:

        def start(settings: Mapping[str, Any]) -> RunningServer:
            return servers.enter_context(serving_in_thread({**_DEFAULTS, **settings}))

        yield start

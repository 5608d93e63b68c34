"""The applications that the Python servers carry: starlette's static files, and nothing at all.

Strategy: granian serves files itself and still requires an application; uvicorn and hypercorn get the usual one.
"""

from __future__ import annotations

import os
from typing import Any


async def nothing(_scope: Any, protocol: Any) -> None:
    """An RSGI application without content."""
    protocol.response_empty(404, [])


def static() -> Any:
    """An ASGI application that serves the folder BENCH_ROOT."""
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

    return Starlette(routes=[Mount("/", StaticFiles(directory=os.environ["BENCH_ROOT"]))])

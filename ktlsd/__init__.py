"""A static-file HTTPS server that lets the kernel encrypt straight from the page cache.

`__all__` has the names for other programs, described in docs/python.md; each is imported when it is first used. All
modules are private.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ktlsd.config.refusal import Refusal
    from ktlsd.embedding import RunningServer, serving, serving_in_thread

__version__ = "0.1.0"
__all__ = ["Refusal", "RunningServer", "__version__", "serving", "serving_in_thread"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("ktlsd.config.refusal" if name == "Refusal" else "ktlsd.embedding"), name)


def __dir__() -> list[str]:
    return __all__

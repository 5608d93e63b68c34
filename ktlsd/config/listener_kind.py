"""The purpose of a listening socket: on the lowest floor, since metrics count by it."""

from __future__ import annotations

import enum


class Kind(enum.Enum):
    """The purpose of a listening socket; the value is its name in metrics and in systemd's socket units."""

    HTTPS = "https"
    """TLS and the sites."""
    REDIRECT = "http"
    """Plain HTTP with the way to HTTPS."""
    BACKEND = "backend"
    """Plain HTTP with the sites, for proxies that end TLS."""

    # Each connection is counted by it, and Enum's own is Python code.
    __hash__ = object.__hash__

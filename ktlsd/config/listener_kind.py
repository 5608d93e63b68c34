"""What a listening socket is for: on the lowest floor, since metrics count by it."""

from __future__ import annotations

import enum


class Kind(enum.Enum):
    """What a listening socket is for; the value is its name where it is counted, and where systemd passes it."""

    HTTPS = "https"
    """TLS and the sites."""
    REDIRECT = "http"
    """Plain HTTP with the way to HTTPS."""
    BACKEND = "backend"
    """Plain HTTP with the sites, for proxies that end TLS."""

    # Each connection is counted by it, and Enum's own is Python code.
    __hash__ = object.__hash__

"""The site of a host name: exact names, then wildcards, then the default. Pure.

Strategy: both kinds of names are keys of one dictionary; a look-up tries the name itself and then each of its parents
with a "*." before it, the longest first, as nginx does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Sites(Generic[T]):
    """Sites by host name; T is the type of a site."""

    def __init__(self, default: T, named: Iterable[tuple[Iterable[str], T]] = ()) -> None:
        """`named` has for each site its names in lower case: "example.org", or "*.example.org"."""
        self.default = default
        self._by_name = {name: site for names, site in named for name in names}
        self._any_wild = any(name.startswith("*.") for name in self._by_name)

    def of_name(self, name: str | None) -> T:
        """The site that a host name belongs to; the default for None and for unknown names."""
        found = self.named(name)
        return self.default if found is None else found

    def named(self, name: str | None) -> T | None:
        """The site that has a host name; None for None and for unknown names."""
        if not self._by_name or name is None:
            return None
        name = name.lower().removesuffix(".")
        if (exact := self._by_name.get(name)) is not None:
            return exact
        while self._any_wild and "." in name:
            name = name.partition(".")[2]
            if (wild := self._by_name.get("*." + name)) is not None:
                return wild
        return None

    def of_request(self, host: str | None, server_name: str | None) -> T | None:
        """The site of a request; None where it is not the one that the client asked for in the handshake (421).

        A client that sent no server name (RFC 6066 section 3) may ask for any site: such are health checks and
        proxies. RFC 9110 section 15.5.20.
        """
        site = self.of_name(host)
        if server_name not in (None, host) and self.of_name(server_name) is not site:
            return None
        return site

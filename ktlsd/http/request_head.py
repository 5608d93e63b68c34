"""A request head as each version of HTTP reads it: the type that deciding and logging take.

Strategy: the names are h11's, so that its Request is one as it is; HTTP/2 fills the same names from its pseudo-header
fields (RFC 9113 section 8.3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ktlsd.http.request_fields import Field


class RequestHead(Protocol):
    """The start of a request, before its body."""

    @property
    def method(self) -> bytes: ...

    @property
    def target(self) -> bytes:
        """As it was sent, or the value of :path."""

    @property
    def http_version(self) -> bytes:
        """Without "HTTP/"."""

    @property
    def headers(self) -> Sequence[Field]:
        """All fields in the order in which they came, under lower-case names; "host" has the value of :authority."""

"""The events of a connection, which receiving bytes gives in their order: pure.

Strategy: one small type for each. Growing windows and changed priorities are no events: sender.py takes note of them,
and its next_turn() tells what can be sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ktlsd.http.request_fields import Field
from ktlsd.http.request_head import RequestHead
from ktlsd.http2.errors import Exceeded
from ktlsd.http2.request_fields import SharedHead


class Request(Struct, frozen=True, gc=False):
    """A valid request, to be answered."""

    stream_id: int
    head: RequestHead
    """The same object for the same request again, while it is remembered."""
    shared: SharedHead
    """The parts that are not in the head: scheme, content length, priority."""
    ended: bool
    """Whether nothing follows. Otherwise RequestEnded, BodyTooLarge or StreamReset comes."""


class HeadTooLarge(Struct, frozen=True, gc=False):
    """A request whose header list is beyond the limit: to be answered with 431, as a Request would be."""

    stream_id: int
    method: bytes
    """Empty if it is not known."""
    list_bytes: int
    ended: bool
    accept: bytes | None = None
    """The value of the field, if it is known."""


class BodyReceived(Struct, frozen=True, gc=False):
    """A piece of a request body, which is thrown away."""

    stream_id: int
    count: int
    """Bytes without padding."""


class BodyTooLarge(Struct, frozen=True, gc=False):
    """A request body that does not fit in the window, which never grows: it is to be answered without the rest.

    The stream is reset with NO_ERROR after the response (RFC 9113 section 8.1). Its end may come all the same.
    """

    stream_id: int


class RequestEnded(Struct, frozen=True, gc=False):
    """The end of a request that was not `ended`."""

    stream_id: int
    trailers: Sequence[Field]


class StreamReset(Struct, frozen=True, gc=False):
    """The end of a stream before the end of its response. Nothing can be sent on it any more.

    Also of a request that was never an event, since it is malformed or refused.
    """

    stream_id: int
    code: int
    """A client can send codes that no RFC has."""
    by_peer: bool
    reason: str
    exceeded: Exceeded | None = None
    """The limit that was the reason."""


class GoawayReceived(Struct, frozen=True, gc=False):
    """The client will open no more streams."""

    code: int


class ConnectionFailed(Struct, frozen=True, gc=False):
    """A connection error: the last event. What is to be sent ends with GOAWAY; then the connection has to be closed."""

    code: int
    reason: str
    exceeded: Exceeded | None


Event = (
    Request
    | HeadTooLarge
    | BodyReceived
    | BodyTooLarge
    | RequestEnded
    | StreamReset
    | GoawayReceived
    | ConnectionFailed
)

"""Limits of connections and handshakes, the minimum send rate, and the throttle of log lines about limits: pure.

Strategy: connections are counted by client network; the handshakes and the requests of a network have token buckets,
stored as one number each (GCRA, ITU-T I.371), and the oldest buckets are evicted. Callers pass times, in seconds of any
clock.
"""

from __future__ import annotations

import enum
import math
import sys
from ipaddress import IPv6Address
from typing import Final

from ktlsd.config.networks import Address
from ktlsd.config.options import LimitOptions

BURST_SECONDS: Final = 10
"""Size of the token bucket, in seconds' worth of handshakes."""
MOST_NETWORKS: Final = 16384
"""Maximum number of token buckets."""
QUIET_SECONDS: Final = 10.0
"""Minimum time between two log lines about the same limit."""

# Descriptors for listeners, logs, folders, and refused connections (admission.py). Of the rest, each connection may
# need a second one for a file.
_RESERVED_DESCRIPTORS: Final = 128
_CROWDED_PART: Final = 16
_TICK_SECONDS: Final = 1e-6


class Limit(enum.Enum):
    """The limits; the value is the key in [limits], if there is one."""

    HANDSHAKE = "handshake_seconds"
    HEAD = "head_seconds"
    IDLE = "idle_seconds"
    SEND = "send_bytes_per_second"
    FILE = "file_seconds"
    REQUESTS = "requests_per_connection"
    KEY_UPDATES = "key_updates_per_connection"
    HEAD_BYTES = "head_bytes"
    HEADER_FIELDS = "header_fields"
    TARGET_BYTES = "target_bytes"
    HTTP2_CONCURRENT_STREAMS = "http2_concurrent_streams"
    HTTP2_HEADER_BLOCK = "http2_header_block_bytes"
    HTTP2_CONTINUATIONS = "http2_continuations"
    HTTP2_RESETS = "http2_resets_per_second"
    HTTP2_OVERHEAD_FRAMES = "http2_overhead_frames_per_second"
    CONNECTIONS = "connections"
    CLIENT_CONNECTIONS = "client_connections"
    CLIENT_HANDSHAKES = "client_handshakes_per_second"
    CLIENT_REQUESTS = "requests_per_second"
    """Of a [[rate]]."""
    CLIENT_RESPONSES = "concurrent"
    """Of a [[rate]]."""
    CLIENT_PASSWORDS = "client_wrong_passwords_per_minute"
    CROWDED = "crowded"
    """An idle connection was closed to make room."""
    DESCRIPTORS = "open_files"
    """No descriptor for one more connection (EMFILE, ENFILE)."""
    MEMORY = "memory"


def most_connections(wanted: int, descriptors: int) -> int:
    """The connection limit of a process with so many descriptors; at most `wanted`."""
    return max(1, min(wanted, (descriptors - _RESERVED_DESCRIPTORS) // 2))


def descriptors_for(connections: int) -> int:
    """The number of descriptors that a process needs for so many connections."""
    return 2 * connections + _RESERVED_DESCRIPTORS


def network_of(address: Address, limits: LimitOptions) -> int:
    """The client network of an address, as a unique number."""
    if isinstance(address, IPv6Address):
        return ~(int(address) >> (address.max_prefixlen - limits.client_ipv6_prefix))
    return int(address) >> (address.max_prefixlen - limits.client_ipv4_prefix)


class TokenBuckets:
    """The token buckets of client networks.

    They are bounded: first those that are full again are forgotten, then the oldest. A client that wants to have its
    own forgotten needs tokens of MOST_NETWORKS other networks, each of which has a bucket of its own to spend.
    """

    def __init__(self, rate: float = 1, most: float = 1) -> None:
        self.rate = rate
        """Tokens a second that a bucket gets."""
        self.most = most
        """Tokens in a full bucket."""
        # The time at which the bucket of a network is full again, ordered by the network's last token.
        self._full_at: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, network: int, now: float) -> float:
        """Seconds until a network's bucket has a token; 0 if it has one."""
        full_at = self._full_at.get(network)
        if full_at is None or full_at <= now:
            return 0.0
        missing = full_at - now - (self.most - 1) / self.rate
        # Times of a clock have fewer digits.
        return missing if missing > _TICK_SECONDS else 0.0

    def take(self, network: int, now: float) -> None:
        """Take a token of a network's bucket; an empty one is filled later for it."""
        full_at = max(self._full_at.pop(network, now), now) + 1 / self.rate
        self._full_at[network] = full_at
        # Two for each that is added: full buckets are removed faster than new ones are added.
        for _ in range(2):
            oldest = next(iter(self._full_at))
            if self._full_at[oldest] > now and len(self._full_at) <= MOST_NETWORKS:
                break
            del self._full_at[oldest]

    def spent(self, network: int, now: float) -> float:
        """The tokens that a network's bucket lacks."""
        return max(0.0, self._full_at.get(network, now) - now) * self.rate

    def put_back(self, network: int) -> None:
        """Put a token back that was taken."""
        if network in self._full_at:
            self._full_at[network] -= 1 / self.rate


class ConnectionLimiter:
    """Counts the open connections of one process, in total and by client network."""

    def __init__(self, limits: LimitOptions, most: int) -> None:
        """`most` is the maximum of connections in total."""
        self.open = 0
        self._by_network: dict[int, int] = {}
        self._handshakes = TokenBuckets()
        self.use(limits, most)

    def use(self, limits: LimitOptions, most: int) -> None:
        """Apply other limits from here on; open connections stay."""
        self.limits = limits
        self.most = most
        self._handshakes.rate = limits.client_handshakes_per_second
        self._handshakes.most = limits.client_handshakes_per_second * BURST_SECONDS

    @property
    def crowded(self) -> bool:
        """True if few connections are left."""
        return self.open > self.most - self.most // _CROWDED_PART

    @property
    def remembered(self) -> int:
        """The number of stored entries."""
        return len(self._by_network) + len(self._handshakes)

    def permit(self) -> ConnectionPermit:
        """Count one more connection for the lifetime of the result; a refused one does not count."""
        return ConnectionPermit(self)

    def enter(self, network: int, now: float, *, with_handshake: bool) -> Limit | None:
        """Count one more connection of a network; the limit that forbids it. `with_handshake`: it makes a TLS
        handshake."""
        limits = self.limits
        here = self._by_network.get(network, 0)
        if limits.client_connections and here >= limits.client_connections:
            return Limit.CLIENT_CONNECTIONS
        if with_handshake and limits.client_handshakes_per_second:
            if self._handshakes.wait(network, now):
                return Limit.CLIENT_HANDSHAKES
            self._handshakes.take(network, now)
        self._by_network[network] = here + 1
        return None

    def leave(self, network: int) -> None:
        left = self._by_network[network] - 1
        if left:
            self._by_network[network] = left
        else:
            del self._by_network[network]


class FileLimiter:
    """Counts the open files of one process beyond one for each connection, which the streams of HTTP/2 may have."""

    def __init__(self, connections: ConnectionLimiter | None = None, descriptors: int = sys.maxsize) -> None:
        self.others = 0
        """Files beyond the first of a connection."""
        self._connections = connections
        left = descriptors - _RESERVED_DESCRIPTORS
        # Connections that come later find room while the files of others are still open.
        self._most = left - left // _CROWDED_PART

    @property
    def room(self) -> bool:
        """Whether there are descriptors for one more such file."""
        connections = 0 if self._connections is None else self._connections.open
        return 2 * connections + self.others < self._most


class ConnectionPermit:
    """One connection, counted until it closes."""

    __slots__ = ("_limiter", "network", "refused")

    def __init__(self, limiter: ConnectionLimiter) -> None:
        self._limiter = limiter
        self.refused = Limit.CONNECTIONS if limiter.open >= limiter.most else None
        """The limit on connections in total, if it forbids this one."""
        self.network: int | None = None

    def __enter__(self) -> ConnectionPermit:
        if self.refused is None:
            self._limiter.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        if self.refused is None:
            self._limiter.open -= 1
            if self.network is not None:
                self._limiter.leave(self.network)

    def is_of(self, address: Address, now: float, *, with_handshake: bool) -> Limit | None:
        """Count the connection for its client network; the limit that forbids it. Call once."""
        network = network_of(address, self._limiter.limits)
        refused = self._limiter.enter(network, now, with_handshake=with_handshake)
        if refused is None:
            self.network = network
        return refused


class SendRateCheck:
    """Enforces the minimum send rate, averaged over windows of the time that the server waits for the client."""

    __slots__ = ("_before", "_least", "_seconds", "left")

    def __init__(self, limits: LimitOptions) -> None:
        self.left = self._seconds = limits.send_seconds
        """Seconds of waiting until the end of the window."""
        self._least = max(1, limits.send_bytes_per_second * limits.send_seconds)
        self._before: int | None = None

    @property
    def begins(self) -> bool:
        """True if begin() is due."""
        return self._before is None

    def begin(self, taken: int) -> None:
        """Begin a window; `taken` is the number of bytes that the client has acknowledged so far."""
        self._before = taken
        self.left = self._seconds

    def waited(self, seconds: float) -> bool:
        """Add time spent waiting for the client; true at the end of the window."""
        self.left -= seconds
        return self.left <= 0

    def is_fast_enough(self, taken: int) -> bool:
        """True if the client took enough in the window that ends here; begins another."""
        before = taken if self._before is None else self._before
        self.begin(taken)
        return taken - before >= self._least


class LogThrottle:
    """Throttles log lines about limits: at most one for each limit, or other subject, in QUIET_SECONDS."""

    def __init__(self) -> None:
        self._last: dict[enum.Enum, tuple[float, int]] = {}

    def due(self, limit: enum.Enum, now: float) -> int | None:
        """The number of lines suppressed since the last one; None if this one is suppressed too."""
        at, suppressed = self._last.get(limit, (-math.inf, 0))
        if now - at < QUIET_SECONDS:
            self._last[limit] = (at, suppressed + 1)
            return None
        self._last[limit] = (now, 0)
        return suppressed

    def ending(self, limit: Limit, value: object, now: float) -> str | None:
        """The end of a log line, which names the limit, its value if there is one, and how many lines were suppressed;
        None if this one is suppressed too."""
        suppressed = self.due(limit, now)
        if suppressed is None:
            return None
        shown = f"{value:g}" if isinstance(value, float) else value
        named = limit.value if value is None else f"{limit.value} = {shown}"
        return f": limit {named}{more(suppressed)}"


def more(suppressed: int) -> str:
    """The end of a log line before which so many were suppressed."""
    return f" ({suppressed} more since the last such line)" if suppressed else ""

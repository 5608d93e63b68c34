"""Who may come in, how fast a response must be taken, and what is said about those who are turned away: pure.

Strategy: connections are counted by their client's network; the handshakes of a network have a token bucket, kept as
one number (GCRA, ITU-T I.371), and the oldest buckets are forgotten. Times are the caller's, in seconds of any clock.
"""

from __future__ import annotations

import enum
import math
from ipaddress import IPv6Address
from typing import Final

from ktlsd.config.networks import Address
from ktlsd.config.options import LimitOptions

BURST_SECONDS: Final = 10
"""How many seconds' worth of handshakes a network may make at once, after it made none for so long."""
MOST_NETWORKS: Final = 16384
"""Of how many networks handshakes are remembered."""
QUIET_SECONDS: Final = 10.0
"""Between two lines of the log about the same limit."""

# Descriptors for listeners, logs, folders, and those who are told that there is no room (admission.py). Of the rest, a
# connection may need one more for a file.
_RESERVED_DESCRIPTORS: Final = 128
_CROWDED_PART: Final = 16


class Limit(enum.Enum):
    """What can be reached; the value is the key in [limits], where there is one."""

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
    CONNECTIONS = "connections"
    CLIENT_CONNECTIONS = "client_connections"
    CLIENT_HANDSHAKES = "client_handshakes_per_second"
    CROWDED = "crowded"
    """An idle connection was ended to make room."""
    DESCRIPTORS = "open_files"
    """No descriptor for one more connection (EMFILE, ENFILE)."""
    MEMORY = "memory"


def most_connections(wanted: int, descriptors: int) -> int:
    """How many connections a process with so many descriptors may have, `wanted` at most."""
    return max(1, min(wanted, (descriptors - _RESERVED_DESCRIPTORS) // 2))


def descriptors_for(connections: int) -> int:
    """How many descriptors a process needs for so many connections."""
    return 2 * connections + _RESERVED_DESCRIPTORS


def network_of(address: Address, limits: LimitOptions) -> int:
    """The client network that an address belongs to, as a number that no other network has."""
    if isinstance(address, IPv6Address):
        return ~(int(address) >> (address.max_prefixlen - limits.client_ipv6_prefix))
    return int(address) >> (address.max_prefixlen - limits.client_ipv4_prefix)


class Gate:
    """One process's open connections, in all and by client network."""

    def __init__(self, limits: LimitOptions, most: int) -> None:
        """`most` is how many connections there may be in all."""
        self.open = 0
        self._by_network: dict[int, int] = {}
        # When the bucket of a network is full again; the network that shook hands last is the last.
        self._full_at: dict[int, float] = {}
        self.use(limits, most)

    def use(self, limits: LimitOptions, most: int) -> None:
        """Take other limits from now on; who is there may stay."""
        self.limits = limits
        self.most = most

    @property
    def crowded(self) -> bool:
        """Whether there is little room left."""
        return self.open > self.most - self.most // _CROWDED_PART

    @property
    def remembered(self) -> int:
        """Networks of which anything is known."""
        return len(self._by_network) + len(self._full_at)

    def visit(self) -> Visit:
        """One more connection, for as long as this lasts; one that is refused does not count."""
        return Visit(self)

    def enter(self, network: int, now: float, *, shakes: bool) -> Limit | None:
        """Count one more connection of a network, which `shakes` hands or not; the limit that forbids it."""
        limits = self.limits
        here = self._by_network.get(network, 0)
        if limits.client_connections and here >= limits.client_connections:
            return Limit.CLIENT_CONNECTIONS
        if shakes and limits.client_handshakes_per_second and not self._take_token(network, now):
            return Limit.CLIENT_HANDSHAKES
        self._by_network[network] = here + 1
        return None

    def _take_token(self, network: int, now: float) -> bool:
        rate = self.limits.client_handshakes_per_second
        full_at = max(self._full_at.get(network, now), now) + 1 / rate
        if full_at - now > BURST_SECONDS:
            return False
        self._full_at.pop(network, None)
        self._full_at[network] = full_at
        # Two for each that is added: those that have become full again go sooner than they come.
        for _ in range(2):
            oldest = next(iter(self._full_at))
            if self._full_at[oldest] > now and len(self._full_at) <= MOST_NETWORKS:
                break
            del self._full_at[oldest]
        return True

    def leave(self, network: int) -> None:
        left = self._by_network[network] - 1
        if left:
            self._by_network[network] = left
        else:
            del self._by_network[network]


class Visit:
    """One connection's passage through a Gate."""

    __slots__ = ("_gate", "network", "refused")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.refused = Limit.CONNECTIONS if gate.open >= gate.most else None
        """The limit that forbids it in all."""
        self.network: int | None = None

    def __enter__(self) -> Visit:
        if self.refused is None:
            self._gate.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        if self.refused is None:
            self._gate.open -= 1
            if self.network is not None:
                self._gate.leave(self.network)

    def is_of(self, address: Address, now: float, *, shakes: bool) -> Limit | None:
        """Count it for its client's network; the limit that forbids it. Call it once."""
        network = network_of(address, self._gate.limits)
        refused = self._gate.enter(network, now, shakes=shakes)
        if refused is None:
            self.network = network
        return refused


class Pace:
    """Whether a client takes what it is sent fast enough: so much in each stretch of the time that it is waited for."""

    __slots__ = ("_before", "_least", "_seconds", "left")

    def __init__(self, limits: LimitOptions) -> None:
        self.left = self._seconds = limits.send_seconds
        """Seconds that the client may be waited for until it is looked at again."""
        self._least = max(1, limits.send_bytes_per_second * limits.send_seconds)
        self._before: int | None = None

    @property
    def begins(self) -> bool:
        """Whether begin() is due."""
        return self._before is None

    def begin(self, taken: int) -> None:
        """Begin a stretch; `taken` is how many bytes the client has taken so far."""
        self._before = taken
        self.left = self._seconds

    def waited(self, seconds: float) -> bool:
        """Count time that the client was waited for; whether it is to be looked at now."""
        self.left -= seconds
        return self.left <= 0

    def keeps_up(self, taken: int) -> bool:
        """Whether the client took enough in the stretch that ends here; if so, begin another."""
        before = taken if self._before is None else self._before
        self.begin(taken)
        return taken - before >= self._least


class Hush:
    """Lets one line of the log through for each limit, and then none for QUIET_SECONDS."""

    def __init__(self) -> None:
        self._last: dict[Limit, tuple[float, int]] = {}

    def due(self, limit: Limit, now: float) -> int | None:
        """How many lines were kept back since the last; None where this one is, too."""
        at, kept_back = self._last.get(limit, (-math.inf, 0))
        if now - at < QUIET_SECONDS:
            self._last[limit] = (at, kept_back + 1)
            return None
        self._last[limit] = (now, 0)
        return kept_back

"""Limits on connections, per client and in total, and the choice of the one to close for another.

The bytes of large bodies read per second are limited as well: clients that send more wait.
"""

from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import Protocol

from prometheus_client import Gauge

OPEN = Gauge("lsr_connections", "Open connections")
GRACE = 0.01  # seconds in which a connection is not closed to make room: its request may lie in the kernel
BURST = 0.25  # seconds of the rate of bodies that may come at once
FULL = "there are too many connections; try again later"
TOO_MUCH = "too many bytes wait to be sent or read; try again later"


class Awaited(Enum):
    """The event that the server awaits from a client."""

    REQUEST = "a further request"
    HEAD = "the head of a request"
    BODY = "the body of a request"
    READING = "the reading of an answer"
    TURN = "nothing"  # the client has sent further requests without waiting for this answer


@dataclass(frozen=True)
class Limits:
    """The resources that clients may use."""

    connections: int
    client_connections: int  # limit per client address
    held: int  # bytes of unfinished bodies and unread answers; one client may have half of it
    body_rate: int  # bytes of large bodies read per second; one client may have half of it
    # Limits for each wait. Uvicorn's own one, between requests, ends when the body of an answered request comes late.
    seconds: dict[Awaited, int]


class Connection(Protocol):
    """A connection of a client."""

    address: str  # the client's address, as `client_of` returns it

    def end(self, status: int, reason: str) -> None:
        """Close the connection, with an answer if a request may await one, and remove it from all groups."""


class Pace:
    """A rate limit in bytes per second, with bursts of BURST seconds after a pause."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._due = 0.0  # when all bytes that have come are within the rate

    def take(self, size: int, now: float) -> float:
        """Count received bytes, and return for how many seconds reading should pause."""
        self._due = max(self._due, now - BURST) + size / self._rate
        return max(0.0, self._due - now)


class Group:
    """Connections that share limits: all of one client, or all of the server."""

    def __init__(self, connections: int, held: int, body_rate: float) -> None:
        self.pace = Pace(body_rate)
        self._most = connections
        self._most_held = held
        self._open: set[Connection] = set()
        self._waiting: dict[Connection, float] = {}  # when each wait for a client began, the longest wait first
        self._held: dict[Connection, int] = {}  # bytes, the longest wait first

    def __len__(self) -> int:
        return len(self._open)

    def has_room(self, now: float) -> bool:
        """Return whether a connection may be added; a full group first closes the one that has waited longest."""
        if len(self._open) < self._most:
            return True
        longest = next(iter(self._waiting), None)
        if longest is None or now - self._waiting[longest] < GRACE:
            return False
        longest.end(503, FULL)
        return True

    def add(self, connection: Connection) -> None:
        """Count a connection as open."""
        self._open.add(connection)

    def wait(self, connection: Connection, since: float) -> None:
        """Record that a connection starts to wait for its client."""
        self.proceed(connection)
        if connection in self._open:
            self._waiting[connection] = since

    def hold(self, connection: Connection, size: int) -> None:
        """Record how many bytes a waiting connection holds; above the limit, close those that have waited longest."""
        if connection in self._waiting:
            self._held[connection] = size
        while sum(self._held.values()) > self._most_held and len(self._held) > 1:
            next(iter(self._held)).end(503, TOO_MUCH)

    def proceed(self, connection: Connection) -> None:
        """Note that a connection does not wait for its client any more."""
        self._waiting.pop(connection, None)
        self._held.pop(connection, None)

    def leave(self, connection: Connection) -> None:
        """Remove a connection."""
        self.proceed(connection)
        self._open.discard(connection)


class Connections:
    """All open connections, by client."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._all = Group(limits.connections, limits.held, limits.body_rate)
        self._by_client: dict[str, Group] = {}
        OPEN.set_function(lambda: len(self._all))

    def admit(self, connection: Connection, now: float) -> bool:
        """Count a new connection as open; return False if there is no room for it."""
        own = self._by_client.get(connection.address) or self._make_group()
        if not (own.has_room(now) and self._all.has_room(now)):
            return False
        # Set again: the connection that was closed to make room may have been the client's last one.
        self._by_client[connection.address] = own
        for group in self._groups(connection):
            group.add(connection)
        return True

    def _make_group(self) -> Group:
        limits = self.limits
        return Group(limits.client_connections, limits.held // 2, limits.body_rate / 2)

    def pace(self, connection: Connection, size: int, now: float) -> float:
        """Count bytes of a large body, and return for how many seconds reading it should pause."""
        return max(group.pace.take(size, now) for group in self._groups(connection))

    def wait(self, connection: Connection, since: float) -> None:
        """Record that a connection starts to wait for its client."""
        for group in self._groups(connection):
            group.wait(connection, since)

    def hold(self, connection: Connection, size: int) -> None:
        """Record how many bytes a waiting connection holds."""
        for group in self._groups(connection):
            group.hold(connection, size)

    def proceed(self, connection: Connection) -> None:
        """Note that a connection does not wait for its client any more."""
        for group in self._groups(connection):
            group.proceed(connection)

    def leave(self, connection: Connection) -> None:
        """Remove a connection, and its client after its last connection."""
        for group in self._groups(connection):
            group.leave(connection)
        own = self._by_client.get(connection.address)
        if own is not None and len(own) == 0:
            del self._by_client[connection.address]

    def _groups(self, connection: Connection) -> list[Group]:
        own = self._by_client.get(connection.address)
        return [self._all] if own is None else [own, self._all]


def client_of(host: str) -> str:
    """Return the address by which connections are counted: for IPv6 the /64 prefix, which one client owns."""
    address = ip_address(host.partition("%")[0])
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ip_network((address, 64), strict=False))

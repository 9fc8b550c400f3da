"""Pure: no I/O, no clock, no logging. One segment's learning switch: which way a station's address lies.

A way is a VM's port or a peer (the switch of another host). A frame's source address is learned with the way it came;
a frame to a known address takes that way only, any other goes everywhere, and two rules keep it from coming back:

    came from a port    all other ports, all peers
    came from a peer    all ports; never another peer, which has had it from the sender itself (split horizon)

A station that moves (a VM that was migrated) is found again with its first frame: the latest way counts. How much one
way can teach is bounded, so that a guest that invents addresses can't push out the others'.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

MAC_BYTES = 6
AGEING_S = 300.0  # IEEE 802.1Q, 8.8.3: the recommended default
MAX_ADDRESSES_PER_WAY = 1024


class Learned(StrEnum):
    """What a frame has told about where its sender is."""

    KNOWN = "known"
    NEW = "new"
    MOVED = "moved"
    REFUSED = "refused"  # its way has taught too many addresses already


class Way:
    """Where frames come from and go to; told apart by identity."""

    is_peer = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.addresses = 0


@dataclass(slots=True)
class _Entry:
    way: Way
    seen_s: float


class LearningSwitch:
    """Addresses and ways of one segment. Times are seconds on any clock that doesn't go back."""

    def __init__(self, max_addresses_per_way: int = MAX_ADDRESSES_PER_WAY) -> None:
        self._max_per_way = max_addresses_per_way
        self._entries: dict[bytes, _Entry] = {}
        self._ports: list[Way] = []
        self._peers: list[Way] = []

    @property
    def ports(self) -> tuple[Way, ...]:
        """All ports, in the order in which they were added."""
        return tuple(self._ports)

    @property
    def address_count(self) -> int:
        """How many addresses are known."""
        return len(self._entries)

    def add(self, way: Way) -> None:
        """A way more; it gets the frames that go everywhere from now on."""
        (self._peers if way.is_peer else self._ports).append(way)

    def remove(self, way: Way) -> None:
        """The way is gone, and with it what was learned from it."""
        (self._peers if way.is_peer else self._ports).remove(way)
        gone = [mac for mac, entry in self._entries.items() if entry.way is way]
        for mac in gone:
            self._drop(mac)

    def learn(self, mac: bytes, way: Way, now_s: float) -> Learned:
        """A frame from `mac` came this way."""
        entry = self._entries.get(mac)
        if entry is not None and entry.way is way:
            entry.seen_s = now_s
            return Learned.KNOWN
        if way.addresses >= self._max_per_way:
            return Learned.REFUSED
        way.addresses += 1
        if entry is None:
            self._entries[mac] = _Entry(way, now_s)
            return Learned.NEW
        entry.way.addresses -= 1
        entry.way, entry.seen_s = way, now_s
        return Learned.MOVED

    def way_to(self, mac: bytes, now_s: float) -> Way | None:
        """Where the station is; None: not known, or too long ago."""
        entry = self._entries.get(mac)
        if entry is None or now_s - entry.seen_s > AGEING_S:
            return None
        return entry.way

    def ways_for(self, destination: bytes, ingress: Way, now_s: float) -> Iterable[Way]:
        """Which ways a frame takes that came in by `ingress`: none, one or many; never `ingress`."""
        if not destination[0] & 1:
            way = self.way_to(destination, now_s)
            if way is not None:
                stays = way is ingress or (way.is_peer and ingress.is_peer)
                return () if stays else (way,)
        if ingress.is_peer:
            return tuple(self._ports)
        return (*(port for port in self._ports if port is not ingress), *self._peers)

    def forget_old(self, now_s: float) -> int:
        """Drop what wasn't heard of for the ageing time; answers how many."""
        old = [mac for mac, entry in self._entries.items() if now_s - entry.seen_s > AGEING_S]
        for mac in old:
            self._drop(mac)
        return len(old)

    def _drop(self, mac: bytes) -> None:
        self._entries.pop(mac).way.addresses -= 1

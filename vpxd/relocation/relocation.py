"""A relocation as it will be done: where everything of the VM is afterwards. Pure: no I/O, no clock, no logging."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from vpxd.inventory.records import VmPolicies
from vpxd.inventory.values import DiskFormat, VmConfig

HOME = 0  # the key under which the home stands among the disks


class RelocationKind(StrEnum):
    """The Migrate wizard's three types."""

    COMPUTE = "compute"
    STORAGE = "storage"
    BOTH = "both"


@dataclass(frozen=True)
class FilePlace:
    """Where the home (key HOME) or one disk is, and where it will be.

    `name` and `uuid` are of the datastore afterwards, `source_name` and `source_uuid` of the present one. An empty
    `uuid`: the destination doesn't see that datastore; `visible_name` is what the destination calls it where it does.
    `needed_bytes` are taken for certain there, `most_bytes` at most; 0 where nothing moves.
    """

    key: int
    source_name: str
    source_uuid: str
    name: str
    uuid: str
    moved: bool
    source_format: DiskFormat = DiskFormat.SAME_AS_SOURCE
    format: DiskFormat = DiskFormat.SAME_AS_SOURCE
    needed_bytes: int = 0
    most_bytes: int = 0
    format_chosen: bool = False

    @property
    def label(self) -> str:
        """For people."""
        return "the home" if self.key == HOME else f"disk {self.key}"


@dataclass(frozen=True)
class Relocation:
    """What the VM is afterwards, on one destination. `needed_bytes`, `most_bytes`: (datastore's uuid, bytes)."""

    destination_vm: VmConfig
    destination_home: str
    source_home_datastore_uuid: str
    destination_home_datastore_uuid: str
    moved_disks: tuple[int, ...] = ()
    moves_home: bool = False
    changes_host: bool = True
    powered_off: bool = False
    policies: VmPolicies = field(default_factory=lambda: VmPolicies(""))
    places: tuple[FilePlace, ...] = ()

    @property
    def moves_files(self) -> bool:
        """Whether the home or a disk moves."""
        return self.moves_home or bool(self.moved_disks)

    @property
    def kind(self) -> RelocationKind:
        """The wizard's type; one that moves nothing on the same host counts as STORAGE (and is refused)."""
        if not self.changes_host:
            return RelocationKind.STORAGE
        return RelocationKind.BOTH if self.moves_files else RelocationKind.COMPUTE

    @property
    def needed_bytes(self) -> tuple[tuple[str, int], ...]:
        """What is taken for certain on each destination datastore."""
        return self._sums(lambda place: place.needed_bytes)

    @property
    def most_bytes(self) -> tuple[tuple[str, int], ...]:
        """What may be taken at most on each destination datastore: thin disks can grow to their capacity."""
        return self._sums(lambda place: place.most_bytes)

    def _sums(self, of: Callable[[FilePlace], int]) -> tuple[tuple[str, int], ...]:
        sums: dict[str, int] = {}
        for place in self.places:
            if place.moved and place.uuid:
                sums[place.uuid] = sums.get(place.uuid, 0) + of(place)
        return tuple(sums.items())

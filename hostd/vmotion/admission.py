"""Pure: no I/O, no clock, no logging. Admission: memory and vCPUs of the host, handed out before anything is made.

One object owns the counters, and it never awaits, so two requests can't both take the last of it. A reservation is kept
under the VM's uuid and lasts as long as something on this host can run the VM: from power-on (or the preparation of a
migration's destination) to the end of its guest. A guest that is found running is counted even when it no longer fits:
what runs, runs.
"""

from dataclasses import dataclass

from runtime.faults import InsufficientCpuResources, InsufficientMemoryResources, ResourceInUse


@dataclass(frozen=True)
class Reservation:
    """What one VM has reserved."""

    vm_uuid: str
    ram_bytes: int
    vcpus: int


class Admission:
    """The host's reservations."""

    def __init__(self, memory_bytes: int, vcpu_capacity: int) -> None:
        self.memory_bytes = memory_bytes
        self.vcpu_capacity = vcpu_capacity
        self._reservations: dict[str, Reservation] = {}

    @property
    def memory_reserved_bytes(self) -> int:
        """Reserved by all VMs together; may exceed the capacity after `adopt`."""
        return sum(reservation.ram_bytes for reservation in self._reservations.values())

    @property
    def vcpus_reserved(self) -> int:
        """Reserved by all VMs together."""
        return sum(reservation.vcpus for reservation in self._reservations.values())

    def reservation(self, vm_uuid: str) -> Reservation | None:
        """What the VM has, if it has any."""
        return self._reservations.get(vm_uuid)

    def reserve(self, wanted: Reservation) -> None:
        """Take it if it fits.

        :raises InsufficientMemoryResources: with what was asked and what is left; nothing changed.
        :raises InsufficientCpuResources: the same of vCPUs.
        :raises ResourceInUse: the VM has a reservation already.
        """
        if wanted.vm_uuid in self._reservations:
            message = "The VM has a reservation on this host already."
            raise ResourceInUse(message, kind="reservation", name=wanted.vm_uuid)
        free_bytes = max(self.memory_bytes - self.memory_reserved_bytes, 0)
        if wanted.ram_bytes > free_bytes:
            message = f"The VM needs {wanted.ram_bytes} bytes of memory, {free_bytes} are not reserved."
            raise InsufficientMemoryResources(
                message, requested_bytes=wanted.ram_bytes, unreserved_bytes=free_bytes
            )
        free_vcpus = max(self.vcpu_capacity - self.vcpus_reserved, 0)
        if wanted.vcpus > free_vcpus:
            message = f"The VM needs {wanted.vcpus} vCPUs, {free_vcpus} are not reserved."
            raise InsufficientCpuResources(message, requested_vcpus=wanted.vcpus, unreserved_vcpus=free_vcpus)
        self._reservations[wanted.vm_uuid] = wanted

    def adopt(self, found: Reservation) -> None:
        """Count a guest that was found running, whether it fits or not."""
        self._reservations[found.vm_uuid] = found

    def release(self, vm_uuid: str) -> None:
        """Give back what the VM has; nothing happens if it has none."""
        self._reservations.pop(vm_uuid, None)

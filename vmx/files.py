"""Pure: no I/O, no clock, no logging. The files of a VM in its home folder, as vmx uses them."""

from dataclasses import dataclass
from pathlib import Path

from runtime.ondisk.owner_record import owner_path, run_lock_path


@dataclass(frozen=True)
class VmFiles:
    """`home` is the folder as this host sees it. The logs are appended to by whichever host runs the guest."""

    home: Path
    vm_name: str

    @property
    def owner_record(self) -> Path:
        """Who may run the VM."""
        return owner_path(self.home, self.vm_name)

    @property
    def run_lock(self) -> Path:
        """Held as long as a process exists that can run the guest."""
        return run_lock_path(self.home, self.vm_name)

    @property
    def console_log(self) -> Path:
        """What the guest wrote to its first serial port."""
        return self.home / "console.log"

    @property
    def heartbeat_log(self) -> Path:
        """What the guest wrote to its second serial port."""
        return self.home / "heartbeat.log"

    @property
    def qemu_log(self) -> Path:
        """QEMU's own messages."""
        return self.home / "qemu.log"

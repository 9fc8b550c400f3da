"""What vmx's own errors are to the world: the guest's process in the words of runtime/faults.py."""

from runtime.faults import GuestDied, GuestStartFailed, VimFault
from vmx.guest.exit_status import ExitStatus


def guest_died(status: ExitStatus | None) -> GuestDied:
    """QEMU ended by itself, and the VM with it."""
    return GuestDied(f"The guest's process ended by itself: {status}.", exit_status=str(status))


def start_fault(error: Exception) -> VimFault:
    """Why a guest didn't come up; the details are in QEMU's log, whose last lines `error` carries."""
    if isinstance(error, VimFault):
        return error
    return GuestStartFailed(f"The guest can't be started: {error}", reason=str(error)[:1000])

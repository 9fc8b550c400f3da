"""Pure: no I/O, no clock, no logging. What to do with one end of a migration whose vmx is gone.

The owner record decides, never the last message that was or wasn't heard:

    end          record names   QEMU      so
    source       this host      lives     KEEP        the VM is ours: the migration failed, the guest is left alone
    source       this host      dead      KEEP        the VM is ours, and off
    source       another        any       GIVEN       it's the other's: what is left of the guest here is ended
    destination  this host      lives     ARRIVED     the VM is ours, whether its guest was let go or not
    destination  this host      dead      GIVE_BACK   it never ran here: the record is given back, the source resumes
                                          ARRIVED     (it was seen running here: its death is the VM's)
    destination  another        any       DROP        a shell that was never ours to run: ended
    any          can't be read  any       WAIT        nobody guesses
"""

from enum import Enum

from hostd.vmotion.journal import Role


class Owner(Enum):
    """Whom the owner record names."""

    HERE = "here"
    ELSEWHERE = "elsewhere"
    UNKNOWN = "unknown"


class Resolution(Enum):
    """What to do; the module's table says when."""

    KEEP = "keep"
    GIVEN = "given"
    ARRIVED = "arrived"
    GIVE_BACK = "giveBack"
    DROP = "drop"
    WAIT = "wait"


def resolve(role: Role, owner: Owner, *, seen_running: bool, guest_alive: bool) -> Resolution:
    """The module's table. `seen_running`: the guest was seen running on this host (asked at a destination only)."""
    if owner is Owner.UNKNOWN:
        return Resolution.WAIT
    if role is Role.SOURCE:
        return Resolution.KEEP if owner is Owner.HERE else Resolution.GIVEN
    if owner is Owner.ELSEWHERE:
        return Resolution.DROP
    return Resolution.ARRIVED if guest_alive or seen_running else Resolution.GIVE_BACK

"""The table of what to do with an end whose vmx is gone: every row."""

import itertools

import pytest

from hostd.vmotion.journal import Role
from hostd.vmotion.resolve import Owner, Resolution, resolve

# role, owner, seen running, guest alive -> resolution
TABLE = {
    (Role.SOURCE, Owner.HERE, False, False): Resolution.KEEP,
    (Role.SOURCE, Owner.HERE, False, True): Resolution.KEEP,
    (Role.SOURCE, Owner.HERE, True, False): Resolution.KEEP,
    (Role.SOURCE, Owner.HERE, True, True): Resolution.KEEP,
    (Role.SOURCE, Owner.ELSEWHERE, False, False): Resolution.GIVEN,
    (Role.SOURCE, Owner.ELSEWHERE, False, True): Resolution.GIVEN,
    (Role.SOURCE, Owner.ELSEWHERE, True, False): Resolution.GIVEN,
    (Role.SOURCE, Owner.ELSEWHERE, True, True): Resolution.GIVEN,
    (Role.DESTINATION, Owner.HERE, False, False): Resolution.GIVE_BACK,
    (Role.DESTINATION, Owner.HERE, False, True): Resolution.ARRIVED,
    (Role.DESTINATION, Owner.HERE, True, False): Resolution.ARRIVED,
    (Role.DESTINATION, Owner.HERE, True, True): Resolution.ARRIVED,
    (Role.DESTINATION, Owner.ELSEWHERE, False, False): Resolution.DROP,
    (Role.DESTINATION, Owner.ELSEWHERE, False, True): Resolution.DROP,
    (Role.DESTINATION, Owner.ELSEWHERE, True, False): Resolution.DROP,
    (Role.DESTINATION, Owner.ELSEWHERE, True, True): Resolution.DROP,
}


@pytest.mark.parametrize(
    ("role", "owner", "seen", "alive"),
    list(itertools.product([Role.SOURCE, Role.DESTINATION], Owner, [False, True], [False, True])),
)
def test_resolve_every_row(role: Role, owner: Owner, seen: bool, alive: bool) -> None:
    expected = Resolution.WAIT if owner is Owner.UNKNOWN else TABLE[role, owner, seen, alive]
    assert resolve(role, owner, seen_running=seen, guest_alive=alive) is expected


def test_resolve_never_lets_both_ends_have_the_vm() -> None:
    """What the source keeps, the destination hasn't; what the destination has, the source gives."""
    for seen, alive in itertools.product([False, True], repeat=2):
        for source_owner, destination_owner in ((Owner.HERE, Owner.ELSEWHERE), (Owner.ELSEWHERE, Owner.HERE)):
            source = resolve(Role.SOURCE, source_owner, seen_running=seen, guest_alive=alive)
            destination = resolve(Role.DESTINATION, destination_owner, seen_running=seen, guest_alive=alive)
            assert (source is Resolution.KEEP) != (destination is Resolution.ARRIVED) or (
                destination is Resolution.GIVE_BACK
            )

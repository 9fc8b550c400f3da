"""The learning switch against what any switch must do, for every order of frames, moves and lost ports."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vswitch.table import AGEING_S, Learned, LearningSwitch, Way

BROADCAST = b"\xff" * 6
WAYS = 6


class _Peer(Way):
    is_peer = True


def mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, number >> 8, number & 255))


def make(ports: int, peers: int) -> tuple[LearningSwitch, list[Way]]:
    ways = [Way(f"port {n}") for n in range(ports)] + [_Peer(f"peer {n}") for n in range(peers)]
    switch = LearningSwitch()
    for way in ways:
        switch.add(way)
    return switch, ways


def test_address_is_new_then_known_then_moved() -> None:
    switch, (first, second) = make(2, 0)
    assert switch.learn(mac(1), first, 0.0) is Learned.NEW
    assert switch.learn(mac(1), first, 1.0) is Learned.KNOWN
    assert switch.learn(mac(1), second, 2.0) is Learned.MOVED
    assert switch.way_to(mac(1), 2.0) is second
    assert (first.addresses, second.addresses) == (0, 1)


def test_address_not_heard_of_for_long_is_unknown() -> None:
    switch, (first, second, third) = make(3, 0)
    switch.learn(mac(1), first, 0.0)
    assert list(switch.ways_for(mac(1), second, AGEING_S)) == [first]
    assert set(switch.ways_for(mac(1), second, AGEING_S + 1)) == {first, third}
    assert switch.forget_old(AGEING_S + 1) == 1
    assert switch.address_count == 0


def test_way_cannot_teach_more_than_its_share() -> None:
    switch = LearningSwitch(max_addresses_per_way=3)
    bad, good = Way("bad"), Way("good")
    switch.add(bad)
    switch.add(good)
    answers = [switch.learn(mac(number), bad, 0.0) for number in range(5)]
    assert answers == [Learned.NEW] * 3 + [Learned.REFUSED] * 2
    assert switch.learn(mac(9), good, 0.0) is Learned.NEW


def test_removed_way_takes_its_addresses_along() -> None:
    switch, (first, second, peer) = make(2, 1)
    switch.learn(mac(1), first, 0.0)
    switch.learn(mac(2), second, 0.0)
    switch.remove(first)
    assert switch.way_to(mac(1), 0.0) is None
    assert switch.way_to(mac(2), 0.0) is second
    assert list(switch.ways_for(BROADCAST, second, 0.0)) == [peer]


FRAMES = st.lists(
    st.tuples(
        st.integers(0, WAYS - 1),  # which way it comes in by
        st.integers(0, 5),  # from whom
        st.integers(0, 6),  # to whom; 6: everybody
        st.floats(0, 200),  # s since the last one
        st.sampled_from(["frame", "frame", "frame", "remove"]),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(FRAMES)
def test_frames_go_where_they_must_and_never_back(frames: list[tuple[int, int, int, float, str]]) -> None:
    """Against a model: the last way of each address, its age, and the ways that are there."""
    switch, ways = make(3, 3)
    there = list(ways)
    last: dict[int, tuple[Way, float]] = {}
    now_s = 0.0
    for index, source, destination, passed_s, kind in frames:
        way = ways[index]
        now_s += passed_s
        if way not in there:
            switch.add(way)
            there.append(way)
        elif kind == "remove":
            switch.remove(way)
            there.remove(way)
            last = {number: entry for number, entry in last.items() if entry[0] is not way}
            continue
        switch.learn(mac(source), way, now_s)
        last[source] = (way, now_s)
        taken = list(switch.ways_for(BROADCAST if destination == 6 else mac(destination), way, now_s))
        assert len(set(map(id, taken))) == len(taken), "nobody gets it twice"
        assert way not in taken, "it never goes back"
        assert not (way.is_peer and any(one.is_peer for one in taken)), "split horizon"
        found, seen_s = last.get(destination, (None, 0.0))
        if found is not None and now_s - seen_s <= AGEING_S:
            wanted = [] if found is way or (found.is_peer and way.is_peer) else [found]
        else:
            wanted = [one for one in there if one is not way and not (one.is_peer and way.is_peer)]
        assert {one.name for one in taken} == {one.name for one in wanted}
        assert sum(one.addresses for one in there) == switch.address_count

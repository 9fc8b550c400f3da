"""Virtual switches as processes: who gets which frame, on one host, between hosts, and over a switch's death."""

import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.framework.vswitch_rig import BROADCAST, SwitchRig, switch_rig
from vswitch.frames import vxlan_header

RSS_LIMIT_MIB = 28.0
KNOWN = "02:00:00:00:00:01"


@pytest.fixture
def one_host() -> Iterator[SwitchRig]:
    with switch_rig() as made:
        yield made


@pytest.fixture
def three_hosts() -> Iterator[SwitchRig]:
    with switch_rig(3, "100,200") as made:
        yield made


def test_frame_to_a_known_address_reaches_its_port_alone(one_host: SwitchRig) -> None:
    first, second, third = (one_host.talkative(1, number) for number in (1, 2, 3))
    frame = first.send(second.mac, b"for the second")
    assert second.receive() == frame
    assert third.hears_nothing()
    assert first.hears_nothing()


def test_broadcast_reaches_all_ports_but_the_sender(one_host: SwitchRig) -> None:
    first, second, third = (one_host.talkative(1, number) for number in (1, 2, 3))
    frame = first.send(BROADCAST, b"to all")
    assert second.receive() == frame
    assert third.receive() == frame
    assert first.hears_nothing()


def test_port_that_never_sent_gets_nothing(one_host: SwitchRig) -> None:
    """A masked destination: its socket is there, and the guest doesn't run yet."""
    first, second = one_host.talkative(1, 1), one_host.talkative(1, 2)
    masked = one_host.station(1, 3)
    frame = first.send(BROADCAST)
    first.send(masked.mac)
    assert second.receive() == frame
    assert masked.hears_nothing()
    masked.send(BROADCAST, b"here I am")
    answer = first.send(masked.mac, b"welcome")
    assert masked.receive() == answer


def test_frames_cross_hosts_once_and_stay_in_their_segment(three_hosts: SwitchRig) -> None:
    first = three_hosts.talkative(1, 1)
    second, third = three_hosts.talkative(2, 2), three_hosts.talkative(3, 3)
    other_segment = three_hosts.talkative(2, 4, 200)
    frame = first.send(BROADCAST, b"to all hosts")
    for station in (second, third):
        assert station.receive() == frame
        assert station.hears_nothing(), "split horizon: a peer passes nothing on to a peer"
    assert other_segment.hears_nothing()
    frame = second.send(first.mac, b"only to the first")
    assert first.receive() == frame
    assert third.hears_nothing()


def test_station_that_moved_is_found_with_its_first_frame(three_hosts: SwitchRig) -> None:
    here, far = three_hosts.talkative(1, 1), three_hosts.talkative(3, 3)
    assert here.send(far.mac, b"before") == far.receive()
    moved = three_hosts.station(2, 3)  # the same address behind another host
    announcement = moved.send(BROADCAST, b"RARP", kind=0x8035)
    assert here.receive() == announcement
    assert far.receive() == announcement
    frame = here.send(moved.mac, b"after")
    assert moved.receive() == frame
    assert far.hears_nothing()
    back = three_hosts.station(3, 3)  # QEMU binds the path anew
    announcement = back.send(BROADCAST, b"RARP", kind=0x8035)
    assert here.receive() == announcement
    frame = here.send(back.mac, b"again")
    assert back.receive() == frame


@pytest.mark.parametrize(
    "frame",
    [b"", b"\x02" * 13, b"\xff" * 6 + b"\x03" * 6 + b"\x08\0" + bytes(46), b"\xff" * 6 + bytes(54)],
    ids=["empty", "short", "from a group", "from nobody"],
)
def test_malformed_frame_is_dropped(one_host: SwitchRig, frame: bytes) -> None:
    first, second = one_host.talkative(1, 1), one_host.talkative(1, 2)
    first.send_raw(frame)
    good = first.send(second.mac, b"good")
    assert second.receive() == good


def test_stranger_and_unknown_segment_are_not_heard() -> None:
    with switch_rig(1, "100", outsiders=1) as rig:
        station, switch = rig.talkative(1, 1), rig.hosts[0].address
        frame = b"\xff" * 6 + b"\x02\0\0\0\0\x09" + b"\x08\0" + bytes(46)
        with _udp(rig.stranger) as stranger, _udp(rig.outside[0]) as peer:
            stranger.sendto(vxlan_header(100) + frame, switch)
            peer.sendto(vxlan_header(101) + frame, switch)
            peer.sendto(b"\0" * 8 + frame, switch)
            peer.sendto(b"\x08", switch)
            peer.sendto(vxlan_header(100) + frame[:13], switch)
            assert station.hears_nothing()
            peer.sendto(vxlan_header(100) + frame, switch)
            assert station.receive() == frame
            station.send("02:00:00:00:00:09", b"answer")
            peer.settimeout(5)
            datagram = peer.recv(2000)
            while b"answer" not in datagram:
                datagram = peer.recv(2000)
            assert datagram.startswith(vxlan_header(100))
        status = rig.hosts[0].stop()
        assert status == 0
        assert "strangers=4" in rig.hosts[0].log()


def test_full_port_keeps_a_burst_in_order(one_host: SwitchRig) -> None:
    """More than the kernel's queue of a unix socket: the guest had no processor for a while."""
    first, second = one_host.talkative(1, 1), one_host.talkative(1, 2)
    frames = [first.send(second.mac, f"burst {number}".encode()) for number in range(150)]
    assert [second.receive() for _ in frames] == frames


def test_killed_switch_leaves_its_ports_to_the_next(one_host: SwitchRig) -> None:
    host = one_host.hosts[0]
    first, second = one_host.talkative(1, 1), one_host.talkative(1, 2)
    gone = one_host.talkative(1, 3)
    masked_path = one_host.talkative(1, 4)
    gone.close()
    masked_path.close()
    host.stop(signal.SIGKILL)
    masked = one_host.station(1, 4)  # another socket under a path that the old switch knew
    host.start()
    frame = first.send(BROADCAST, b"still here")
    assert second.receive() == frame, "it has said nothing to the new switch"
    assert masked.hears_nothing()
    frame = second.send(first.mac, b"and back")
    assert first.receive() == frame


def test_second_switch_on_one_directory_is_refused(one_host: SwitchRig) -> None:
    host = one_host.hosts[0]
    first, second = one_host.talkative(1, 1), one_host.talkative(1, 2)
    running, host.process = host.process, None
    try:
        with pytest.raises(AssertionError, match="another switch serves"):
            host.start()
    finally:
        host.process = running
    frame = first.send(second.mac, b"the first one serves")
    assert second.receive() == frame


def test_idle_switch_is_small(one_host: SwitchRig) -> None:
    process = one_host.hosts[0].process
    assert process is not None
    with open(f"/proc/{process.pid}/statm", encoding="ascii") as statm:
        rss_mib = int(statm.read().split()[1]) * 4096 / (1 << 20)
    assert rss_mib < RSS_LIMIT_MIB, rss_mib
    print("resident MiB:", round(rss_mib, 1))


def test_one_loud_port_does_not_keep_others_from_their_turn(three_hosts: SwitchRig) -> None:
    """A port that sends without end; another one's frames arrive all the same."""
    loud, quiet, listener = (three_hosts.talkative(1, number) for number in (1, 2, 3))
    far = three_hosts.talkative(2, 4)
    far.send(BROADCAST, b"known")
    loud.socket.setblocking(False)
    until_s = time.monotonic() + 1.0
    answered = 0
    listener.socket.setblocking(False)
    while time.monotonic() < until_s:
        try:
            for _ in range(20):
                loud.send(far.mac, b"noise")
        except BlockingIOError:
            quiet.send(listener.mac, b"quiet")
        try:
            answered += b"quiet" in listener.socket.recv(2000)
        except BlockingIOError:
            continue
    assert answered > 10


def _udp(address: tuple[str, int]) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(address)
    return made

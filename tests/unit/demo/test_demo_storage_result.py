"""out/storage.json, and what the storage demonstration calls a problem."""

import json
from dataclasses import replace

import pytest

from demo.heartbeat_observer import Beat
from demo.pings import PingRecord
from demo.storage_result import BOTH, COMPUTE, STORAGE, Act, DiskState, Peer, Proof, Seen, StorageResult
from images.fsync_check import FsyncCheck
from proto.vim.v1 import vm_config_pb2
from proto.vmotion.v1 import status_pb2
from proto.vpxd.v1 import inventory_pb2

MIB = 1 << 20
THIN = vm_config_pb2.DISK_FORMAT_THIN
LAZY = vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED
KEYS = (
    "ok",
    "total_ms",
    "stun_ms",
    "guest_gap_ms",
    "disk_bytes",
    "wire_bytes",
    "ping_sent",
    "ping_lost",
    "fsync_verified",
    "disk_gbps",
    "qemu_img_gbps",
)


def _vm(host: str) -> inventory_pb2.Vm:
    return inventory_pb2.Vm(name="store01", host=host, host_name=host)


def _disk(path: str, disk_format: int = THIN, taken_mib: int = 40, inode: int = 1) -> DiskState:
    return DiskState(path, disk_format, 64 * MIB, taken_mib * MIB, taken_mib * MIB, inode)


def _status(**changes: object) -> status_pb2.MigrationStatus:
    status = status_pb2.MigrationStatus(
        stun_ms=20, total_ms=900, wire_bytes=41 * MIB, memory_verified=True, encrypted=True
    )
    status.disks.add(
        key=2000, capacity_bytes=64 * MIB, data_bytes=40_000_000, copied_bytes=40_000_000, duration_ms=40
    )
    for name, value in changes.items():
        setattr(status, name, value)
    return status


BETWEEN = Act(
    BOTH,
    _vm("esx01"),
    _vm("esx02"),
    _status(),
    (1.0, 1.9, 2.9),
    (),
    _disk("[local] disks/a.vmdk", LAZY, 64),
    _disk("[local] a/a.vmdk", inode=2),
)
PROOF = Proof(100, FsyncCheck(1, 1000, 101, 100, 101, (), 0), True)


def _seen(*more_lines: str, lost: tuple[int, ...] = ()) -> Seen:
    lines = [f"HB {number} {number * 10} 0" for number in range(400)]
    beats = [Beat(number * 10_000_000, line) for number, line in enumerate(lines)]
    told = ("FSYNC acknowledged=100 checked=99 wrong=0 passes=3 longest_ms=7", *more_lines)
    beats += [Beat(3_990_000_000, line) for line in told]
    sent = [number / 100 for number in range(400)]
    answered = {number: at_s for number, at_s in enumerate(sent) if number not in lost}
    return Seen(beats, PingRecord(10.0, sent, answered))


def _judged(act: Act = BETWEEN, seen: Seen | None = None, proof: Proof = PROOF) -> StorageResult:
    result = StorageResult([act], seen or _seen(), proof, Peer(40.0, 20.0))
    result.judge()
    return result


def test_document_has_the_named_figures_and_the_acts() -> None:
    result = _judged()
    document = json.loads(json.dumps(result.document()))
    assert result.problems == []
    assert list(document)[: len(KEYS)] == list(KEYS)
    assert document["ok"] is True
    assert document["fsync_verified"] is True
    assert (document["disk_bytes"], document["disk_gbps"]) == (40_000_000, 1.0)
    assert (document["qemu_img_gbps"], document["qemu_img_quiet_gbps"]) == (1.0, 2.0)
    assert (document["ping_sent"], document["ping_lost"]) == (191, 0)
    assert [act["name"] for act in document["acts"]] == [BOTH]
    assert document["missed_goals"] == []


def test_document_of_a_run_that_broke_off_has_the_same_keys() -> None:
    result = StorageResult(problems=["it broke off"])
    document = result.document()
    assert list(document)[: len(KEYS)] == list(KEYS)
    assert document["ok"] is False
    assert document["fsync_verified"] is False


def test_missed_goals_are_no_problems() -> None:
    act = replace(BETWEEN, status=_status(stun_ms=51.0))
    act.status.disks[0].duration_ms = 50
    result = _judged(act, _seen(lost=tuple(range(150, 158))))
    assert result.ok
    stun, pings, rate = result.missed_goals
    assert "stun 51.0 ms" in stun
    assert "8 pings lost, aimed at 6" in pings
    assert "0.80 GB/s, aimed at 0.9 of 1.00" in rate


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"left": ("/a/b",)}, "/a/b is still there"),
        ({"complaints": ("GUEST FAILED",)}, "the guest says: GUEST FAILED"),
        ({"status": _status(memory_verified=False)}, "memory isn't verified"),
        ({"status": _status(encrypted=False)}, "weren't encrypted"),
        ({"status": _status(qemu_ram_transferred_bytes=5 * MIB)}, "carried 5242880 bytes of RAM"),
        ({"disk_after": _disk("[local] a/a.vmdk", taken_mib=64)}, "thin disk takes all"),
        ({"name": STORAGE, "after": _vm("esx01")}, "stunned for 20.0 ms"),
        ({"name": COMPUTE}, "its disk was copied"),
    ],
)
def test_what_did_not_hold_of_an_act_is_a_problem(changes: dict[str, object], words: str) -> None:
    result = _judged(replace(BETWEEN, **changes))  # type: ignore[arg-type]
    assert any(words in problem for problem in result.problems), result.problems
    assert not result.ok


def test_disk_that_was_not_copied_whole_is_a_problem() -> None:
    act = replace(BETWEEN, status=_status())
    act.status.disks[0].copied_bytes -= 512
    assert "only 39999488 were copied" in _judged(act).problems[0]


@pytest.mark.parametrize(
    "line",
    [
        "FSYNC WRONG slot=60 expected=61 holds=zero found=0",
        "FSYNC acknowledged=120 checked=99 wrong=1 passes=3 longest_ms=7",
    ],
)
def test_record_that_the_guest_misses_is_a_problem(line: str) -> None:
    result = _judged(seen=_seen(line))
    assert result.problems
    assert not result.fsync_verified


def test_record_that_the_disk_misses_is_a_problem() -> None:
    lost = replace(PROOF, check=FsyncCheck(1, 1000, 99, 100, 101, (), 0))
    assert not _judged(proof=lost).fsync_verified
    assert not _judged(proof=replace(PROOF, filler_whole=False)).ok


def test_reboot_and_silence_are_problems() -> None:
    seen = _seen()
    again = Seen([*seen.beats, Beat(4_000_000_000, "HB 0 0 0")], seen.pings)
    assert "booted anew" in _judged(seen=again).problems[0]
    dumb = Seen([], PingRecord(10.0, [1.5, 1.6], {}))
    words = " ".join(_judged(seen=dumb).problems)
    assert "no heartbeat was seen" in words
    assert "no ping was answered" in words

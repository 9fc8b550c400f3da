"""What the demonstration makes of what it saw."""

import json

from demo.result import Migration, Result, heartbeat_problems, migration_problems
from tests.framework.fake_vpxd import migration_script


def _migration(gap_ms: float | None = 12.5) -> Migration:
    return Migration("esx01", "esx02", migration_script()[-1].migration, gap_ms)


def _beats(*sequence: int, wrong: int = 0) -> list[str]:
    return [f"HB {number} {number * 10} {wrong}" for number in sequence]


def test_document_has_the_promised_keys() -> None:
    result = Result(migrations=[_migration()])
    document = json.loads(json.dumps(result.document()))
    assert document["ok"] is True
    (one,) = document["migrations"]
    assert {
        "source",
        "destination",
        "total_ms",
        "stun_ms",
        "stun_parts_ms",
        "guest_gap_ms",
        "iterations",
        "ram_bytes",
        "wire_bytes",
        "tracer",
        "encrypted",
        "memory_verified",
    } <= set(one)
    assert {"pages", "bytes", "duration_ms", "dirty_pages"} <= set(one["iterations"][0])
    assert abs(sum(one["stun_parts_ms"].values()) - one["stun_ms"]) < 0.01


def test_migration_problems_of_a_good_one_are_none() -> None:
    assert migration_problems(_migration()) == []


def test_migration_problems_name_each_thing_that_didnt_hold() -> None:
    bad = _migration(None)
    bad.status.memory_verified = bad.status.encrypted = False
    bad.status.qemu_ram_transferred_bytes = 4 << 20
    text = "\n".join(migration_problems(bad))
    for words in ("isn't verified", "weren't encrypted", "4194304 bytes of RAM", "no heartbeat"):
        assert words in text


def test_missed_goals_dont_make_it_fail() -> None:
    slow = _migration(250.0)
    slow.status.stun_ms = 80
    result = Result(migrations=[slow], idle_rss_mib={"vpxd": 95.0, "vmx": 60.0})
    assert result.ok
    assert len(result.missed_goals) == 3


def test_heartbeats_in_order_are_no_problem() -> None:
    assert heartbeat_problems(_beats(7, 8, 9)) == []


def test_heartbeats_show_repetition_gap_boot_and_wrong_stamps() -> None:
    assert "a repetition" in heartbeat_problems(_beats(7, 8, 8))[0]
    assert "a repetition" in heartbeat_problems(_beats(7, 8, 7))[0]
    assert "heartbeats 9 to 10 are missing" in heartbeat_problems(_beats(7, 8, 11))[0]
    assert "booted anew" in heartbeat_problems(_beats(7, 8, 0))[0]
    assert "3 wrong stamps" in heartbeat_problems(_beats(7, wrong=3))[0]
    assert "is no heartbeat" in heartbeat_problems(["HB 7 7", "garbage"])[0]
    assert heartbeat_problems([]) == ["no heartbeat was seen at all"]
    assert len(heartbeat_problems(["garbage"] * 1000)) < 15

"""The tables at the end of a migration."""

import io

from rich.console import Console

from proto.vim.v1 import task_pb2
from proto.vmotion.v1 import status_pb2
from tests.framework.fake_vpxd import migration_script
from vpxd.cli.migration_report import PhaseTimes, phase_rows, report, stun_parts, stun_table, summary
from vpxd.cli.migration_view import picture

_P = status_pb2


def _text(view: object) -> str:
    console = Console(file=io.StringIO(), width=120, markup=False, highlight=False)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _last() -> status_pb2.MigrationStatus:
    return migration_script()[-1].migration


def test_phase_times_each_phase_lasts_until_the_next_begins() -> None:
    times = PhaseTimes()
    assert times.see(_P.MIGRATION_PHASE_UNSPECIFIED, 1.0)
    assert not times.see(_P.MIGRATION_PHASE_PREPARE, 1.5), "vpxd's own checks count as preparing"
    assert times.see(_P.MIGRATION_PHASE_PRE_COPY, 2.0)
    assert times.lasted_ms(5.0) == {_P.MIGRATION_PHASE_PREPARE: 1000, _P.MIGRATION_PHASE_PRE_COPY: 3000}


def test_phase_rows_stun_is_one_row_with_the_sources_figure_before_verify() -> None:
    rows = phase_rows(_last())
    assert [name for name, _, _ in rows] == [
        "prepare", "handshake", "pre-copy", "stun", "verify", "complete", "total",
    ]  # fmt: skip
    assert rows[3][1] == _last().stun_ms
    assert [how for _, _, how in rows] == ["vpxd", "source", "source", "source", "source", "vpxd", "vpxd"]


def test_stun_table_parts_and_shares_add_up() -> None:
    status = _last()
    assert abs(sum(ms for _, ms in stun_parts(status)) - status.stun_ms) < 1e-6
    text = _text(stun_table(status))
    assert "device state" in text
    assert "100 %" in text


def test_report_of_nothing_measured_doesnt_divide_by_zero() -> None:
    status = status_pb2.MigrationStatus(iterations=[status_pb2.Iteration(number=0)])
    assert "PASS" in _text(report(status))
    assert "0 %" not in _text(stun_table(status_pb2.MigrationStatus())).replace("100 %", "")


def test_summary_says_plainly_what_wasnt_encrypted_or_verified() -> None:
    text = summary(status_pb2.MigrationStatus(stun_ms=5))
    assert "NOT encrypted" in text
    assert "memory not verified" in text


def test_picture_of_every_state_of_a_migration_fits_a_terminal() -> None:
    times = PhaseTimes()
    assert "prepare" in _text(picture("web01", task_pb2.TaskInfo(), times, 0.0))
    for number, task in enumerate(migration_script()):
        times.see(task.migration.phase, float(number))
        lines = _text(picture("web01: esx01 → esx02", task, times, number + 0.5)).splitlines()
        assert max(map(len, lines)) <= 120
        assert any("pre-copy" in line for line in lines)


def _with_disks(phase: int) -> task_pb2.TaskInfo:
    status = status_pb2.MigrationStatus(phase=phase, total_ms=900.0)  # type: ignore[arg-type]
    status.disks.add(
        key=2000,
        capacity_bytes=1 << 30,
        data_bytes=400_000_000,
        copied_bytes=200_000_000,
        wire_bytes=150_000_000,
        mirrored_bytes=4096,
        duration_ms=100.0,
    )
    return task_pb2.TaskInfo(id="task-7", migration=status, state=task_pb2.TASK_STATE_RUNNING)


def test_report_of_disks_has_their_bytes_and_rate_and_no_memory_tables() -> None:
    text = _text(report(_with_disks(_P.MIGRATION_PHASE_SUCCEEDED).migration))
    assert "2000" in text
    assert "2.00 GB/s" in text
    assert "4.0 KiB" in text
    assert "PASS" not in text
    assert "Traced by" not in text


def test_summary_of_files_only_says_nothing_of_memory() -> None:
    text = summary(_with_disks(_P.MIGRATION_PHASE_SUCCEEDED).migration)
    assert text == "900 ms in all, 191 MiB of disk data"


def test_picture_of_a_disk_copy_has_a_bar_for_each_disk_between_handshake_and_pre_copy() -> None:
    times = PhaseTimes()
    times.see(_P.MIGRATION_PHASE_HANDSHAKE, 0.0)
    times.see(_P.MIGRATION_PHASE_DISK_COPY, 1.0)
    lines = _text(picture("web01", _with_disks(_P.MIGRATION_PHASE_DISK_COPY), times, 2.0)).splitlines()
    names = [line.split()[1] for line in lines[1:] if line.strip()]
    assert names.index("handshake") < names.index("disk") < names.index("pre-copy")
    assert any("disk 2000" in line and "50 %" in line and "4.0 KiB mirrored" in line for line in lines)


def test_picture_of_a_waiting_migration_says_its_place_and_what_it_waits_for() -> None:
    task = task_pb2.TaskInfo(queue_position=2, queue_reason="the host esx01 has 0 of 16 units free")
    assert "number 2 in line: the host esx01" in _text(picture("web01", task, PhaseTimes(), 0.0))

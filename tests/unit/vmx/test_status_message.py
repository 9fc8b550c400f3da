"""All that a migration knows about itself is told, phase by phase."""

import pytest

from proto.vmotion.v1 import status_pb2
from runtime.faults import MigrationFault
from vmx.migration.phases import PublishedPhase
from vmx.migration.progress import DiskReport, IterationReport, Progress, StunReport
from vmx.status_message import migration_status


def test_status_says_all_that_the_progress_knows() -> None:
    progress = Progress(
        migration_id=5,
        ram_bytes=1 << 30,
        phase=PublishedPhase.FAILED,
        iteration=2,
        pages_total=10,
        pages_sent=12,
        iterations=(IterationReport(0, 100, 40, 409600, 250000, 1.5, 7),),
        stun=StunReport(1.0, 2.0, 3.0, 4.0, 5.0),
        fault=MigrationFault("It failed.", phase="stun"),
        disks=(DiskReport(2000, 1 << 30, 5 << 20, 4 << 20, 3 << 20, 2 << 20, 1 << 20, 9.5, switched=True),),
    )
    status = migration_status(progress)
    assert status.phase == status_pb2.MIGRATION_PHASE_FAILED
    assert status.pages_remaining == 0, "never negative"
    assert status.stun_ms == 15.0
    assert (status.iterations[0].zero_pages, status.iterations[0].dirty_pages) == (40, 7)
    assert status.failure == "It failed."
    assert [disk.key for disk in status.disks] == [2000]
    assert (status.disks[0].copied_bytes, status.disks[0].mirrored_bytes) == (4 << 20, 1 << 20)
    assert status.disks[0].switched


@pytest.mark.parametrize("phase", PublishedPhase)
def test_every_published_phase_has_its_message(phase: PublishedPhase) -> None:
    status = migration_status(Progress(1, 1, phase))
    assert status_pb2.MigrationPhase.Name(status.phase) == f"MIGRATION_PHASE_{phase.name}"

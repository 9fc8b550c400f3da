"""Pure: no I/O, no clock, no logging. A migration's progress as the message that its watchers get."""

from proto.vmotion.v1 import status_pb2
from vmx.migration.phases import PublishedPhase
from vmx.migration.progress import DiskReport, IterationReport, Progress, StunReport

_PHASE = {phase: status_pb2.MigrationPhase.Value(f"MIGRATION_PHASE_{phase.name}") for phase in PublishedPhase}


def migration_status(progress: Progress) -> status_pb2.MigrationStatus:
    """The progress as a message."""
    return status_pb2.MigrationStatus(
        migration_id=progress.migration_id,
        phase=_PHASE[progress.phase],
        iteration=progress.iteration,
        ram_bytes=progress.ram_bytes,
        pages_total=progress.pages_total,
        pages_sent=progress.pages_sent,
        pages_remaining=max(0, progress.pages_total - progress.pages_sent),
        rate_bytes_per_s=progress.rate_bytes_per_s,
        dirty_rate_bytes_per_s=progress.dirty_rate_bytes_per_s,
        wire_bytes=progress.wire_bytes + sum(one.wire_bytes for one in progress.disks),
        iterations=[_iteration(one) for one in progress.iterations],
        stun_ms=progress.stun.stun_ms,
        stun_parts=_stun_parts(progress.stun),
        device_state_bytes=progress.device_state_bytes,
        qemu_ram_transferred_bytes=progress.qemu_ram_transferred_bytes,
        tracer=progress.tracer,
        encrypted=progress.encrypted,
        memory_verified=progress.memory_verified,
        total_ms=progress.total_ms,
        streams=progress.streams,
        switchover_reason=progress.switchover_reason,
        failure=str(progress.fault) if progress.fault else "",
        phases=[
            status_pb2.PhaseTime(phase=_PHASE[one.phase], duration_ms=one.duration_ms)
            for one in progress.phases
        ],
        disks=[_disk(one) for one in progress.disks],
    )


def _iteration(one: IterationReport) -> status_pb2.Iteration:
    return status_pb2.Iteration(
        number=one.number,
        pages=one.pages,
        zero_pages=one.zero_pages,
        ram_bytes=one.ram_bytes,
        wire_bytes=one.wire_bytes,
        duration_ms=one.duration_ms,
        dirty_pages=one.dirty_pages,
    )


def _stun_parts(stun: StunReport) -> status_pb2.StunParts:
    return status_pb2.StunParts(
        stop_ms=stun.stop_ms,
        last_pages_ms=stun.last_pages_ms,
        device_state_ms=stun.device_state_ms,
        hand_over_ms=stun.hand_over_ms,
        resume_ms=stun.resume_ms,
    )


def _disk(one: DiskReport) -> status_pb2.DiskProgress:
    return status_pb2.DiskProgress(
        key=one.key,
        capacity_bytes=one.capacity_bytes,
        data_bytes=one.data_bytes,
        copied_bytes=one.copied_bytes,
        zero_bytes=one.zero_bytes,
        wire_bytes=one.wire_bytes,
        mirrored_bytes=one.mirrored_bytes,
        duration_ms=one.duration_ms,
        switched=one.switched,
    )

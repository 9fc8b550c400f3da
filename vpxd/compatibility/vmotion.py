"""The vMotion network. Pure: no I/O, no clock, no logging."""

from runtime.faults import VMotionNotConfigured, VMotionProtocolIncompatible
from vpxd.compatibility.finding import Finding, FindingGroup, HostFacts, Move, error


def check(move: Move) -> tuple[Finding, ...]:
    """For a guest or files that go to another host: both have a vMotion address and a stream version in common."""
    if not move.needs_vmotion:
        return ()
    findings = [*_configured(move.destination, FindingGroup.HOST)]
    if move.source is not None:
        findings += _configured(move.source, FindingGroup.SOURCE)
    return (*findings, *_version(move))


def _configured(host: HostFacts, group: FindingGroup) -> tuple[Finding, ...]:
    if host.info.vmotion_address:
        return ()
    fault = VMotionNotConfigured(f"{host.name} has no vMotion address", host=host.name)
    return (error(fault, f"configure a vMotion address on {host.name}", group),)


def _version(move: Move) -> tuple[Finding, ...]:
    if move.source is None:
        return ()
    here, there = move.source.info.capability, move.destination.info.capability
    newest_common = min(here.stream_version_max, there.stream_version_max)
    if newest_common >= max(here.stream_version_min, there.stream_version_min):
        return ()
    fault = VMotionProtocolIncompatible(
        f"{move.source.name} and {move.destination.name} have no version of the vMotion stream in common",
        offered=f"{here.stream_version_min}-{here.stream_version_max}",
        supported=f"{there.stream_version_min}-{there.stream_version_max}",
    )
    return (error(fault, "update the older of both hosts"),)

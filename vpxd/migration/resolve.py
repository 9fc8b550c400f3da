"""Asks both hosts what became of a migration, and lets the pure `verdict` decide. Never guesses."""

import asyncio
from dataclasses import dataclass

import structlog

from runtime.faults import MigrationFault, VimFault
from vpxd.agents.vpxa_client import VpxaClient
from vpxd.migration.parts import WorkflowParts
from vpxd.migration.steps import Migration, client_of
from vpxd.migration.verdict import HostAnswer, Verdict, decide, decide_parted, decide_within_host
from vpxd.migration.way import Way

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Resolution:
    """The verdict; `fault` says why where it is FAILED; `source` is the source's answer, None where it gave none."""

    verdict: Verdict
    fault: VimFault | None
    source: HostAnswer | None


async def resolve(parts: WorkflowParts, migration: Migration) -> Resolution:
    """Asks both hosts at once, each under a deadline; within one host, this one."""
    if migration.way is Way.WITHIN_HOST:
        answer = await _ask(client_of(parts, migration.source), migration.id)
        return _resolved(migration, decide_within_host(answer), answer, None)
    source, destination = await asyncio.gather(
        _ask(client_of(parts, migration.source), migration.id),
        _ask(client_of(parts, migration.destination), migration.id),
    )
    judge = decide_parted if migration.entry.terms.home else decide
    verdict = judge(migration.source.info.uuid, migration.destination.info.uuid, source, destination)
    return _resolved(migration, verdict, source, destination)


def _resolved(
    migration: Migration, verdict: Verdict, source: HostAnswer | None, destination: HostAnswer | None
) -> Resolution:
    _log.info(
        "migration_resolved",
        migration_id=migration.id,
        verdict=verdict.value,
        source=_short(source),
        destination=_short(destination),
    )
    fault = _fault(migration, source, destination) if verdict is Verdict.FAILED else None
    return Resolution(verdict, fault, source)


async def _ask(client: VpxaClient, migration_id: int) -> HostAnswer | None:
    try:
        return await client.query_migration(migration_id)
    except VimFault as fault:
        _log.info("query_migration_failed", fault=type(fault).__name__, reason=fault.message)
        return None


def _fault(migration: Migration, source: HostAnswer | None, destination: HostAnswer | None) -> VimFault:
    told = next(
        (answer.fault for answer in (source, destination) if answer is not None and answer.fault), None
    )
    if told is not None:
        return told
    return MigrationFault(
        f"the migration of {migration.vm.name} ended before the hand-over; the VM stayed on {migration.source.name}"
    )


def _short(answer: HostAnswer | None) -> str:
    if answer is None:
        return "silent"
    if not answer.known:
        return "unknown"
    return f"{answer.progress.phase.name.lower()}, owner {answer.owner_host_uuid or '?'}, epoch {answer.owner_epoch}"

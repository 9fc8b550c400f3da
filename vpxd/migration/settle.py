"""Brings a destination's last word to a source that can't hear it, where the two have no home of the VM in common.

Each has an owner record of its own then. A source that has given the VM away and lost the connection keeps its guest
stunned until its own record says what became of it; nobody but vpxd can bring it the word of the other one.
"""

import asyncio

import structlog

from runtime.faults import VimFault
from vpxd.agents.vpxa_client import VpxaClient
from vpxd.inventory.records import Host
from vpxd.migration.parts import WorkflowParts
from vpxd.migration.steps import client_of
from vpxd.migration.verdict import HostAnswer, last_word

_log = structlog.get_logger(__name__)


async def settle(
    parts: WorkflowParts, migration_id: int, source_host: Host, destination_host: Host
) -> bool | None:
    """Asks both hosts, and tells the source where the destination's word is final.

    :returns: the word that the source has heard: whether the destination has the VM; None where there is none yet.
    """
    source, destination = client_of(parts, source_host), client_of(parts, destination_host)
    answers = await asyncio.gather(_ask(source, migration_id), _ask(destination, migration_id))
    word = last_word(destination_host.info.uuid, *answers)
    if word is None:
        return None
    try:
        await source.settle_migration(migration_id, destination_has_vm=word)
    except VimFault as fault:
        _log.warning("settle_not_heard", fault=type(fault).__name__, reason=fault.message)
        return None
    _log.warning("migration_settled", migration_id=migration_id, destination_has_vm=word)
    return word


async def _ask(client: VpxaClient, migration_id: int) -> HostAnswer | None:
    try:
        return await client.query_migration(migration_id)
    except VimFault as fault:
        _log.info("query_migration_failed", fault=type(fault).__name__, reason=fault.message)
        return None

"""The migration of a powered-off VM whose files stay: the source forgets it, the destination registers it.

    unregister at the source -> register at the destination -> its NICs into the destination's networks
      <----------------- registered at the source again, with its own networks, on a fault ----------------

The source goes first because the files may have one owner only. What is lost when vpxd ends in between is only the
registration; `restore` brings it back.
"""

import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace

import structlog

from runtime.faults import HostNotReachable, ManagedObjectNotFound, TimedOut, VimFault
from vpxd.inventory.values import NetworkAdapter, VmState
from vpxd.migration.parts import WorkflowParts
from vpxd.migration.steps import Migration, client_of

_log = structlog.get_logger(__name__)


async def move(parts: WorkflowParts, migration: Migration) -> VmState:
    """The VM as the destination has it. :raises VimFault: on it the source has the VM again."""
    task, vm = migration.entry.task, migration.vm
    await client_of(parts, migration.source).unregister_vm(vm.uuid, task)
    try:
        state = await client_of(parts, migration.destination).register_vm(vm.home, task)
    except VimFault:
        await _log_failure(restore(parts, migration), "restore_registration")
        raise
    return await plug_nics_or_restore(parts, migration, state)


async def plug_nics_or_restore(parts: WorkflowParts, migration: Migration, state: VmState) -> VmState:
    """As `plug_nics`. :raises VimFault: on it the source has the VM again."""
    try:
        return await plug_nics(parts, migration, state)
    except VimFault:
        await _log_failure(restore(parts, migration), "restore_registration")
        raise


async def plug_nics(parts: WorkflowParts, migration: Migration, state: VmState) -> VmState:
    """Brings a registered VM's NICs into the networks that were ordered, where they aren't in them."""
    wanted = migration.entry.terms.config
    if wanted is None:
        return state
    return await _with_nics(parts, migration, state, wanted.nics)


async def restore(parts: WorkflowParts, migration: Migration) -> None:
    """The source registers the VM again, with its own networks, once the destination doesn't have it."""
    task, vm = migration.entry.task, migration.vm
    # A destination that is silent may have it: then the owner record refuses the source.
    with suppress(ManagedObjectNotFound, HostNotReachable, TimedOut):
        await client_of(parts, migration.destination).unregister_vm(vm.uuid, task)
    state = await client_of(parts, migration.source).register_vm(vm.home, task)
    here = replace(migration, destination=migration.source)
    state = await _with_nics(parts, here, state, vm.config.nics)
    parts.live.learned(migration.source.id, state, time.monotonic())


async def _with_nics(
    parts: WorkflowParts, migration: Migration, state: VmState, nics: tuple[NetworkAdapter, ...]
) -> VmState:
    if state.config.nics == nics:
        return state
    config = replace(state.config, nics=nics)
    client = client_of(parts, migration.destination)
    return await client.reconfigure_vm(state.uuid, config, migration.entry.task)


async def _log_failure(step: Awaitable[None], name: str) -> None:
    try:
        await step
    except VimFault as fault:
        _log.error("undo_failed", step=name, fault=type(fault).__name__, reason=fault.message)

"""Follows a migration that runs on the hosts until its end: progress upwards, a wish to cancel downwards.

watching --FAILED--> its fault          watching --SUCCEEDED--> done
   | no word                                ^
   v                                        | still running
asking again for Patience.lost_s --> both hosts asked for the owner record --> succeeded / failed / undecided

A wish to cancel goes to the source; where that doesn't answer within Patience.cancel_s, to the destination too. Either
answer ends it: a destination that has given up before the hand-over makes a later hand-over fail, and the source,
which still owns the VM, is told afterwards (Migration.unheard).
"""

import asyncio
from contextlib import aclosing, suppress

import structlog

from runtime.faults import (
    ManagedObjectNotFound,
    MigrationFault,
    PastPointOfNoReturn,
    RequestCanceled,
    TimedOut,
    VimFault,
)
from vpxd.agents.vpxa_client import MigrationUpdate
from vpxd.inventory.records import Host
from vpxd.migration.parts import WorkflowParts
from vpxd.migration.progress import MigrationProgress, Phase, percent, words
from vpxd.migration.resolve import resolve
from vpxd.migration.settle import settle
from vpxd.migration.steps import Migration, client_of
from vpxd.migration.verdict import Verdict
from vpxd.migration.way import Way

_log = structlog.get_logger(__name__)


class Follower:
    """Follows one migration. `phase` is the last one heard of."""

    def __init__(self, parts: WorkflowParts, migration: Migration) -> None:
        self._parts = parts
        self._migration = migration
        self.phase = Phase.UNSPECIFIED

    async def follow(self) -> None:
        """Returns when the guest runs at the destination; a wish to cancel is handed down to the source.

        :raises RequestCanceled: it was canceled; the source is as it was.
        :raises TimedOut: nothing could be found out for Patience.undecided_s.
        :raises VimFault: the fault with which it failed; the VM stayed at the source.
        """
        watching = asyncio.ensure_future(self._watch())
        canceling = asyncio.ensure_future(self._hand_cancel_down())
        settling = asyncio.ensure_future(self._settle_when_stuck())
        try:
            await asyncio.wait({watching, canceling}, return_when=asyncio.FIRST_COMPLETED)
            canceled = self._canceled() if canceling.done() and canceling.result() else None
            if not watching.done() and canceled is not None:
                raise canceled
            await watching
        finally:
            for helper in (watching, canceling, settling):
                helper.cancel()
                with suppress(asyncio.CancelledError, VimFault):
                    await helper

    async def _settle_when_stuck(self) -> None:
        """Tells a source, whose hand-over doesn't end and whose home isn't the destination's, how it ended."""
        if not self._migration.entry.terms.home or self._migration.way is not Way.BETWEEN_HOSTS:
            return
        patience, stuck_s = self._parts.patience, 0.0
        while stuck_s < patience.stuck_s or await self._settle() is None:
            # The hosts' states can't be waited for from here: they are asked again.
            await asyncio.sleep(patience.pause_s)
            handing_over = self.phase in (Phase.SWITCHOVER, Phase.VERIFY)
            stuck_s = stuck_s + patience.pause_s if handing_over else 0.0

    async def _settle(self) -> bool | None:
        migration = self._migration
        return await settle(self._parts, migration.id, migration.source, migration.destination)

    async def _hand_cancel_down(self) -> bool:
        """Answers whether it is canceled; False when it was too late."""
        task, migration = self._migration.task, self._migration
        await task.canceled()
        source = asyncio.ensure_future(self._cancel_on(migration.source))
        asking = [source]
        try:
            await asyncio.wait(asking, timeout=self._parts.patience.cancel_s)
            if not source.done() and migration.way is Way.BETWEEN_HOSTS:
                asking.append(asyncio.ensure_future(self._cancel_on(migration.destination)))
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            canceled = source.result() if source.done() else asking[-1].result()
        finally:
            for asked in asking:
                asked.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        if not canceled:
            task.pass_point_of_no_return()
            task.advance(0, "too late to cancel: the VM has been handed over")
        return canceled

    async def _cancel_on(self, host: Host) -> bool:
        """Asks one host until it answers: whether it has canceled, or it was too late."""
        client = client_of(self._parts, host)
        while True:
            try:
                await client.cancel_migration(self._migration.id)
                return True
            except PastPointOfNoReturn:
                return False
            except VimFault as fault:
                _log.info(
                    "cancel_not_heard", host=host.name, fault=type(fault).__name__, reason=fault.message
                )
            # The host doesn't answer: it is asked again until it does, or until the watcher knows the end.
            await asyncio.sleep(self._parts.patience.pause_s)

    async def _watch(self) -> None:
        loop, patience = asyncio.get_running_loop(), self._parts.patience
        silent_since_s: float | None = None
        while True:
            heard, forgotten = False, False
            try:
                updates = client_of(self._parts, self._migration.source).watch_migration(self._migration.id)
                async with aclosing(updates):
                    async for update in updates:
                        heard = True
                        if self._take(update):
                            return
            except _Failed as failed:
                raise failed.fault from None
            except ManagedObjectNotFound:
                forgotten = True
            except VimFault as fault:
                _log.info("migration_stream_broken", fault=type(fault).__name__, reason=fault.message)
            silent_since_s = loop.time() if heard or silent_since_s is None else silent_since_s
            silent_s = loop.time() - silent_since_s
            if forgotten or silent_s >= patience.lost_s:
                verdict = await self._resolve(silent_s)
                if verdict is Verdict.SUCCEEDED:
                    return
                if verdict is Verdict.RUNNING:
                    silent_since_s = None
            # A stream that breaks at once would be made again without end: there is no event to wait for.
            await asyncio.sleep(patience.pause_s)

    def _take(self, update: MigrationUpdate) -> bool:
        """Tells the task; answers whether the migration has succeeded."""
        progress, task = update.progress, self._migration.task
        if progress.phase is not self.phase:
            _log.info("migration_phase", phase=progress.phase.name.lower(), migration_id=self._migration.id)
        self.phase = progress.phase
        task.set_migration(progress.status)
        if progress.phase is Phase.FAILED:
            raise _Failed(self._canceled() or update.fault or _failure(progress))
        if progress.handed_over and not task.past_point_of_no_return:
            task.pass_point_of_no_return()
        task.advance(percent(progress, self._migration.moves_memory), words(progress))
        return progress.phase is Phase.SUCCEEDED

    def _canceled(self) -> RequestCanceled | None:
        """That it was canceled, if it was: then whatever it failed with is the canceling's doing."""
        task = self._migration.task
        if not task.cancel_requested or task.past_point_of_no_return:
            return None
        return RequestCanceled(f"{task.id} was canceled", phase=self.phase.name.lower())

    async def _resolve(self, silent_s: float) -> Verdict:
        task, source = self._migration.task, self._migration.source
        if self._migration.entry.terms.home and self._migration.way is Way.BETWEEN_HOSTS:
            await self._settle()
        resolution = await resolve(self._parts, self._migration)
        if resolution.source is not None and resolution.source.progress.status:
            task.set_migration(resolution.source.progress.status)
        if resolution.fault is not None:
            raise self._canceled() or resolution.fault
        if resolution.verdict is Verdict.UNDECIDED:
            task.advance(0, f"{source.name} doesn't answer; waiting for the owner record")
            if silent_s >= self._parts.patience.undecided_s:
                raise TimedOut(
                    f"what became of the migration of {self._migration.vm.name} could not be found out: "
                    f"neither {source.name} nor the owner record said so",
                    operation="QueryMigration",
                    timeout_s=self._parts.patience.undecided_s,
                )
        return resolution.verdict


class _Failed(Exception):
    """The migration itself failed; not to be taken for a fault of the stream that tells it."""

    def __init__(self, fault: VimFault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def _failure(progress: MigrationProgress) -> VimFault:
    return MigrationFault(progress.failure or "the migration failed; its source doesn't say why")

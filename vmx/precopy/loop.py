"""Iterative pre-copy: send everything, then again and again what the guest wrote meanwhile, until the policy ends it.

    runs = tracer.start()                     everything that isn't a hole
    loop: send runs ─▶ runs = tracer.collect() ─▶ policy: CONTINUE | SWITCH_OVER | FAIL

Scan and protect come first, then the copy: a page that the guest writes while it is copied is reported by the next
scan. What the last scan found is returned, not sent: it belongs to the stun's last pages.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from runtime.faults import ProgressStalled
from vmx.guest.memory import MappedMemory
from vmx.guest.pages import PAGE_BYTES, PageRuns, page_total
from vmx.migration.progress import IterationReport, ProgressBoard
from vmx.precopy import policy
from vmx.stream.sender import IterationSent, SourceStreams
from vmx.threads import in_thread
from vmx.trace.contract import Tracer

# How often a running pass is told to watchers.
_PUBLISH_EVERY_S = 0.1

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Tools:
    """What one migration's passes work with."""

    streams: SourceStreams
    tracer: Tracer
    memory: MappedMemory
    board: ProgressBoard


class PreCopy:
    """The passes of one migration. Numbers of passes go on into the stun (`send`), so every pass has its own."""

    def __init__(self, tools: Tools, limits: policy.Limits) -> None:
        self._tools = tools
        self._limits = limits
        self._next_number = 0
        self._passes: list[policy.PassStats] = []

    async def run(self) -> PageRuns:
        """Copy memory while the guest runs; returns the pages that are left for the stun.

        :raises ProgressStalled: the policy gave up; the guest writes faster than can be sent.
        :raises StreamError: the stream failed.
        :raises TraceError: the tracer failed.
        """
        runs = await in_thread(self._tools.tracer.start)
        while True:
            sent = await self.send(runs)
            runs = await in_thread(self._tools.tracer.collect)
            dirty_pages = page_total(runs)
            self._note(sent, dirty_pages)
            decision = policy.decide(self._passes, self._limits)
            _log.info(
                "iteration_done",
                iteration=sent.iteration,
                pages=sent.pages,
                zero_pages=sent.zero_pages,
                wire_bytes=sent.wire_bytes,
                duration_ms=round(sent.duration_ms, 3),
                dirty_pages=dirty_pages,
                verdict=decision.verdict.value,
                reason=decision.reason,
            )
            board = self._tools.board
            board.publish(replace(board.now, switchover_reason=decision.reason))
            if decision.verdict is policy.Verdict.SWITCH_OVER:
                return runs
            if decision.verdict is policy.Verdict.FAIL:
                rate = policy.bandwidth_bytes_per_s(self._passes)
                message = f"Memory can't be copied within the switchover goal: {decision.reason}."
                raise ProgressStalled(
                    message,
                    phase="pre-copy",
                    iteration=sent.iteration,
                    dirty_pages=dirty_pages,
                    rate_bytes_per_s=rate,
                )

    async def send(self, runs: PageRuns) -> IterationSent:
        """Send one set of pages; returns when the destination has placed them all.

        :raises StreamError: the stream failed.
        """
        number, self._next_number = self._next_number, self._next_number + 1
        streams = self._tools.streams
        begin = streams.progress().pages
        board = self._tools.board
        board.publish(replace(board.now, iteration=number, pages_total=page_total(runs), pages_sent=0))
        ticker = asyncio.create_task(self._publish_while_sending(begin), name="pre-copy-progress")
        try:
            tracer, memory = self._tools.tracer, self._tools.memory
            record_sent = tracer.record_sent if tracer.sends_from_copy else None
            return await in_thread(
                streams.send_iteration, number, runs, memory, record_sent, on_cancel=_abort(streams)
            )
        finally:
            ticker.cancel()
            await asyncio.wait([ticker])

    def note_last_pages(self, sent: IterationSent) -> None:
        """Take the stun's passes into the published list: nothing was dirty after them."""
        self._note(sent, 0)

    def _note(self, sent: IterationSent, dirty_pages: int) -> None:
        self._passes.append(
            policy.PassStats(sent.iteration, sent.pages - sent.zero_pages, sent.duration_ms, dirty_pages)
        )
        report = IterationReport(
            sent.iteration,
            sent.pages,
            sent.zero_pages,
            sent.ram_bytes,
            sent.wire_bytes,
            sent.duration_ms,
            dirty_pages,
        )
        seconds = max(sent.duration_ms, 0.001) / 1000
        board = self._tools.board
        board.publish(
            replace(
                board.now,
                iterations=(*board.now.iterations, report),
                pages_sent=sent.pages,
                rate_bytes_per_s=sent.ram_bytes / seconds,
                dirty_rate_bytes_per_s=dirty_pages * PAGE_BYTES / seconds,
                wire_bytes=self._tools.streams.progress().wire_bytes,
            )
        )

    async def _publish_while_sending(self, begin: int) -> None:
        board, streams = self._tools.board, self._tools.streams
        started = time.monotonic()
        while True:
            await asyncio.sleep(_PUBLISH_EVERY_S)
            now = streams.progress()
            pages = now.pages - begin
            rate = pages * PAGE_BYTES / (time.monotonic() - started)
            board.publish(
                replace(board.now, pages_sent=pages, rate_bytes_per_s=rate, wire_bytes=now.wire_bytes)
            )


def _abort(streams: SourceStreams) -> Callable[[], None]:
    return lambda: streams.abort("the migration was canceled")

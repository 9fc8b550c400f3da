"""Which page tracer a guest gets, and the names that users of tracers need.

The kernel's page tables are the better source: exact, faster, and they cost the guest least. Where they can't be had
(a kernel before 6.7, a container without userfaultfd, a guest adopted without its descriptor) hashes do.
"""

from __future__ import annotations

from structlog.typing import FilteringBoundLogger

from vmx.trace.contract import Tracer, TracerKind, TraceTarget
from vmx.trace.errors import TracerUnavailable
from vmx.trace.hash_scan import HashScanTracer
from vmx.trace.pagemap_scan import PagemapScanTracer

__all__ = ["TraceTarget", "Tracer", "TracerKind", "choose_tracer"]


def choose_tracer(target: TraceTarget, forced: TracerKind | None, log: FilteringBoundLogger) -> Tracer:
    """The tracer for this guest, by what the kernel offers unless one is forced; says which and why in the log.

    :raises TracerUnavailable: a forced one can't be had.
    """
    if forced is TracerKind.HASH_SCAN:
        return _chosen(HashScanTracer(target), "forced", log)
    try:
        tracer = PagemapScanTracer(target)
    except TracerUnavailable as unavailable:
        if forced is not None:
            raise
        return _chosen(HashScanTracer(target), str(unavailable), log)
    return _chosen(tracer, "available" if forced is None else "forced", log)


def _chosen(tracer: Tracer, reason: str, log: FilteringBoundLogger) -> Tracer:
    log.info("tracer_chosen", tracer=tracer.kind.value, reason=reason)
    return tracer

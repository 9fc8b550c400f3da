"""Is the CPU that QEMU has made the one that the guest is fixed to?

QEMU starts a guest also where the accelerator lacks a feature that was asked for: it warns, leaves the feature out, and
the guest dies of an illegal instruction later (SIGILL, or worse in its kernel). So it is asked, before the first
instruction, what it has left out (the CPU's property `unavailable-features`).
"""

from __future__ import annotations

import structlog

from runtime.faults import FeatureRequirementsNotMet
from vmx.guest.errors import QmpBadReply
from vmx.guest.process import GuestProcess
from vmx.guest.qmp import QmpConnection

_log = structlog.get_logger(__name__)


async def require_cpu(process: GuestProcess, host_name: str) -> None:
    """Nothing where the guest's CPU isn't fixed.

    :raises FeatureRequirementsNotMet: QEMU can't make it here; `feature` is the first that lacks, the text has all.
    :raises QmpFailure: QEMU doesn't say.
    """
    cpu = process.spec.cpu
    if cpu is None:
        return
    lacking = cpu.lacking(await _unavailable_features(process.qmp))
    if lacking:
        _log.error("cpu_features_lacking", features=lacking)
        message = f"QEMU on {host_name} can't give the guest these CPU features: {', '.join(lacking)}."
        raise FeatureRequirementsNotMet(message, feature=f"cpuid.{lacking[0]}", host=host_name)


async def _unavailable_features(qmp: QmpConnection) -> list[str]:
    cpus = await qmp.execute("query-cpus-fast")
    if not isinstance(cpus, list) or not cpus or not isinstance(cpus[0], dict):
        raise QmpBadReply("query-cpus-fast", "it is no list of CPUs")
    arguments = {"path": str(cpus[0].get("qom-path")), "property": "unavailable-features"}
    names = await qmp.execute("qom-get", arguments)
    if not isinstance(names, list):
        raise QmpBadReply("qom-get", "unavailable-features is no list")
    return [str(name) for name in names]

"""What a VM's configuration must be before a host is asked. Pure: no I/O, no clock, no logging.

The host checks again, with what only it can know: whether files exist, whether there is room.
"""

import re
import uuid
from collections.abc import Iterable
from dataclasses import replace

from runtime.cpu_baselines import BASELINE_OF
from runtime.faults import InvalidArgument, InvalidDatastorePath, InvalidVmConfig
from runtime.ondisk.datastore_path import DatastorePath
from vpxd.inventory.names import require_name
from vpxd.inventory.values import HostInfo, VmConfig

RAM_UNIT_BYTES = 2 * 1024 * 1024
MAX_RAM_BYTES = 16 * 1024**4
MAX_VCPUS = 255
MAX_TEXT_CHARS = 4_096
_VERSIONED_Q35 = re.compile(r"pc-q35-(\d+)\.(\d+)")
_DEFAULT_CPU_MODEL = "qemu64"


def require_valid(config: VmConfig) -> VmConfig:
    """The configuration with its uuid in canonical form, and without a guest's CPU: that isn't the client's to say.

    :raises InvalidVmConfig: a property can't be; `property` names it.
    """
    try:
        require_name(config.name, "name")
    except InvalidArgument as error:
        raise InvalidVmConfig(error.message, property="name") from error
    _require(1 <= config.vcpus <= MAX_VCPUS, "vcpus", f"must be from 1 to {MAX_VCPUS}, not {config.vcpus}")
    _require(
        0 < config.ram_bytes <= MAX_RAM_BYTES and config.ram_bytes % RAM_UNIT_BYTES == 0,
        "ram_bytes",
        f"must be a multiple of {RAM_UNIT_BYTES} bytes and at most {MAX_RAM_BYTES}, not {config.ram_bytes}",
    )
    for name, text in (
        ("machine_type", config.machine_type),
        ("cpu_model", config.cpu_model),
        ("boot.kernel_command_line", config.boot.kernel_command_line),
    ):
        _require(
            len(text) <= MAX_TEXT_CHARS and text.isprintable(),
            name,
            "has unprintable characters or is too long",
        )
    _require(
        len(config.annotation) <= MAX_TEXT_CHARS, "annotation", f"has more than {MAX_TEXT_CHARS} characters"
    )
    for name, path in (("boot.kernel", config.boot.kernel), ("boot.initrd", config.boot.initrd)):
        _require_path(name, path)
    known = not config.evc_mode or config.evc_mode in BASELINE_OF
    _require(known, "evc_mode", f"is no EVC mode: {config.evc_mode[:60]!r}")
    return replace(config, uuid=_canonical(config.uuid), guest_cpu=None)


def with_defaults(config: VmConfig, hosts: Iterable[HostInfo]) -> VmConfig:
    """Empty uuid, machine type and CPU model chosen so that the VM can go to every one of these hosts.

    The newest versioned q35 machine that all of them can run; where they have none in common, the host that
    gets the VM will say so.
    """
    capabilities = [host.capability for host in hosts]
    machine_type, cpu_model = config.machine_type, config.cpu_model
    if not machine_type and capabilities:
        common = set.intersection(*(set(capability.machine_types) for capability in capabilities))
        machine_type = max(filter(_VERSIONED_Q35.fullmatch, common), key=_version, default="")
    if not cpu_model and capabilities:
        models = set.intersection(*(set(capability.cpu_models) for capability in capabilities))
        cpu_model = _DEFAULT_CPU_MODEL if _DEFAULT_CPU_MODEL in models else min(models, default="")
    return replace(
        config, uuid=config.uuid or str(uuid.uuid4()), machine_type=machine_type, cpu_model=cpu_model
    )


def _version(machine_type: str) -> tuple[int, int]:
    match = _VERSIONED_Q35.fullmatch(machine_type)
    assert match is not None
    return int(match[1]), int(match[2])


def _canonical(text: str) -> str:
    if not text:
        return ""
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise InvalidVmConfig(f"uuid can't be read: {text[:60]!r}", property="uuid") from error


def _require_path(name: str, path: str) -> None:
    if not path:
        return
    try:
        DatastorePath.parse(path)
    except InvalidDatastorePath as error:
        raise InvalidVmConfig(f"{name} is no datastore path: {path[:120]!r}", property=name) from error


def _require(holds: bool, name: str, problem: str) -> None:
    if not holds:
        raise InvalidVmConfig(f"{name} {problem}", property=name)

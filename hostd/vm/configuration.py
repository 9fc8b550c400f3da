"""Pure: no I/O, no clock, no logging. A VM's configuration: its rules, and its form as entries of a .vmx file.

Keys are VMware's where it has one for the case (displayName, numvcpus, memSize, vc.uuid, annotation); the rest begin
with "vpx.".
"""

import re
import uuid as uuid_module
from collections.abc import Mapping

from hostd.vm import devices
from hostd.vm.config_file import VmxEntries
from proto.vim.v1 import vm_config_pb2
from runtime.faults import InvalidDatastorePath, InvalidVmConfig
from runtime.ondisk.datastore_path import DatastorePath

MIB = 1 << 20
RAM_STEP_BYTES = 2 * MIB
RAM_MIN_BYTES = 16 * MIB
RAM_MAX_BYTES = 1 << 42  # 4 TiB: far below what a page table, a digest table or a file offset can hold
VCPUS_MAX = 64
_NAME_MAX_CHARS = 80
_NAME_MAX_BYTES = 200  # with ".vmx" or ".runlock" it's still a file name (NAME_MAX 255)
_ANNOTATION_MAX_CHARS = 4096
_COMMAND_LINE_MAX_CHARS = 2048  # COMMAND_LINE_SIZE of x86 Linux
_CHANGE_VERSION_MAX = (1 << 63) - 1

_MACHINE_TYPE = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}-[0-9]{1,3}(\.[0-9]{1,3}){1,2}")
_CPU_MODEL = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(,[+-]?[A-Za-z0-9._-]{1,40}(=[A-Za-z0-9._-]{1,40})?){0,100}"
)
_NUMBER = re.compile(r"[0-9]{1,19}")

_FIXED_ENTRIES = {".encoding": "UTF-8", "config.version": "8", "virtualHW.version": "21"}


def validate(config: vm_config_pb2.VmConfig) -> None:
    """Check every field by itself.

    :raises InvalidVmConfig: the first that can't be; `property` names it.
    """
    if not is_canonical_uuid(config.uuid):
        raise InvalidVmConfig("The uuid isn't a UUID in its canonical text form.", "uuid")
    validate_name(config.name)
    if not 1 <= config.vcpus <= VCPUS_MAX:
        raise InvalidVmConfig(f"{config.vcpus} vCPUs isn't between 1 and {VCPUS_MAX}.", "vcpus")
    if not RAM_MIN_BYTES <= config.ram_bytes <= RAM_MAX_BYTES or config.ram_bytes % RAM_STEP_BYTES:
        message = f"RAM of {config.ram_bytes} bytes isn't a multiple of 2 MiB between 16 MiB and 4 TiB."
        raise InvalidVmConfig(message, "ram_bytes")
    if not _MACHINE_TYPE.fullmatch(config.machine_type):
        raise InvalidVmConfig('The machine type isn\'t a versioned one such as "pc-q35-7.2".', "machine_type")
    if not _CPU_MODEL.fullmatch(config.cpu_model):
        raise InvalidVmConfig("The CPU model isn't a model's name with features.", "cpu_model")
    if len(config.annotation) > _ANNOTATION_MAX_CHARS or "\0" in config.annotation:
        message = f"The annotation is longer than {_ANNOTATION_MAX_CHARS} characters or has a NUL."
        raise InvalidVmConfig(message, "annotation")
    if config.change_version > _CHANGE_VERSION_MAX:
        raise InvalidVmConfig("The change version is out of range.", "change_version")
    _validate_boot(config.boot)
    devices.validate(config)


def validate_name(name: str) -> None:
    """A VM's name is also its home folder's and its files' name.

    :raises InvalidVmConfig: it can't be.
    """
    if not 1 <= len(name) <= _NAME_MAX_CHARS:
        raise InvalidVmConfig(f"The name must have 1 to {_NAME_MAX_CHARS} characters.", "name")
    if "/" in name or not name.isprintable() or name != name.strip() or name.startswith("."):
        message = (
            "The name may not have '/' or control characters, begin with a dot, or begin or end with a space."
        )
        raise InvalidVmConfig(message, "name")
    if len(name.encode("utf-8", "replace")) > _NAME_MAX_BYTES:
        raise InvalidVmConfig(f"The name is longer than {_NAME_MAX_BYTES} bytes.", "name")


def is_canonical_uuid(text: str) -> bool:
    """Whether it's a UUID as RFC 4122 prints it: lower case, with hyphens."""
    try:
        return str(uuid_module.UUID(text)) == text
    except ValueError:
        return False


def to_entries(config: vm_config_pb2.VmConfig) -> dict[str, str]:
    """The .vmx entries that say this configuration. It must be valid."""
    return {
        **_FIXED_ENTRIES,
        "displayName": config.name,
        "vc.uuid": config.uuid,
        "numvcpus": str(config.vcpus),
        "memSize": str(config.ram_bytes // MIB),
        "annotation": config.annotation,
        "vpx.machineType": config.machine_type,
        "vpx.cpuModel": config.cpu_model,
        "vpx.boot.kernel": config.boot.kernel,
        "vpx.boot.initrd": config.boot.initrd,
        "vpx.boot.commandLine": config.boot.kernel_command_line,
        "vpx.changeVersion": str(config.change_version),
        **devices.to_entries(config),
    }


def from_entries(entries: VmxEntries) -> vm_config_pb2.VmConfig:
    """The configuration that the entries say, validated.

    :raises InvalidVmConfig: an entry is missing or can't be; `property` names it.
    """
    config = vm_config_pb2.VmConfig(
        uuid=_required(entries, "vc.uuid"),
        name=_required(entries, "displayName"),
        vcpus=_number(entries, "numvcpus", VCPUS_MAX),
        ram_bytes=_number(entries, "memSize", RAM_MAX_BYTES // MIB) * MIB,
        machine_type=_required(entries, "vpx.machineType"),
        cpu_model=_required(entries, "vpx.cpuModel"),
        annotation=entries.get("annotation", ""),
        change_version=_number(entries, "vpx.changeVersion", _CHANGE_VERSION_MAX),
    )
    boot = vm_config_pb2.Boot(
        kernel=entries.get("vpx.boot.kernel", ""),
        initrd=entries.get("vpx.boot.initrd", ""),
        kernel_command_line=entries.get("vpx.boot.commandLine", ""),
    )
    if boot != vm_config_pb2.Boot():  # no kernel is no Boot, as it was before it was written
        config.boot.CopyFrom(boot)
    devices.add_from_entries(entries, config)
    validate(config)
    return config


def _validate_boot(boot: vm_config_pb2.Boot) -> None:
    if not boot.kernel and (boot.initrd or boot.kernel_command_line):
        raise InvalidVmConfig("There's an initrd or a kernel command line but no kernel.", "boot.kernel")
    for field, path in (("boot.kernel", boot.kernel), ("boot.initrd", boot.initrd)):
        try:
            if path:
                DatastorePath.parse(path)
        except InvalidDatastorePath as error:
            raise InvalidVmConfig(f"The path in {field} isn't a datastore path.", field) from error
    text = boot.kernel_command_line
    if len(text) > _COMMAND_LINE_MAX_CHARS or not text.isprintable():
        message = (
            f"The kernel command line is longer than {_COMMAND_LINE_MAX_CHARS} or has control characters."
        )
        raise InvalidVmConfig(message, "boot.kernel_command_line")


def _required(entries: Mapping[str, str], key: str) -> str:
    if key not in entries:
        raise InvalidVmConfig(f"The .vmx file has no {key}.", key)
    return entries[key]


def _number(entries: Mapping[str, str], key: str, maximum: int) -> int:
    text = _required(entries, key)
    if not _NUMBER.fullmatch(text) or int(text) > maximum:
        raise InvalidVmConfig(f"{key} in the .vmx file isn't a number up to {maximum}.", key)
    return int(text)

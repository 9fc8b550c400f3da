"""vmx's settings, as hostd gives them in the environment of the process. Read here and nowhere else."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.daemon.settings import Settings, SettingsError
from vmx.guest.command_line import Accelerator


@dataclass(frozen=True)
class Config:
    """`run_dir` is this VM's own directory for sockets: short, because a socket's address is at most 107 bytes."""

    vm_uuid: str
    run_dir: Path
    host_name: str
    host_uuid: str
    vmotion_address: str
    qemu_binary: Path
    accelerator: Accelerator
    log_json: bool

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Config":
        """:raises SettingsError: a setting is missing or can't be; it names the variable."""
        settings = Settings(environment)
        qemu = settings.text("VMX_QEMU", "qemu-system-x86_64")
        found = shutil.which(qemu)
        if found is None:
            raise SettingsError("VMX_QEMU", f"names no program: {qemu!r}")
        accelerators = tuple(one.value for one in Accelerator)
        return cls(
            vm_uuid=settings.text("VMX_VM_UUID"),
            run_dir=settings.path("VMX_RUN_DIR"),
            host_name=settings.text("VMX_HOST_NAME"),
            host_uuid=settings.text("VMX_HOST_UUID"),
            vmotion_address=settings.text("VMX_VMOTION_ADDRESS", "-"),
            qemu_binary=Path(found),
            accelerator=Accelerator(settings.choice("VMX_ACCELERATOR", accelerators, Accelerator.TCG.value)),
            log_json=settings.flag("LOG_JSON"),
        )

"""A VM's CPU, fixed at power-on: kept in its .vmx file from its guest's start to its end.

The file is written before the guest starts, so that a hostd that begins anew, or a destination, finds what the guest
runs on. All functions block.
"""

from hostd.host import cpu_features
from hostd.host.facts import HostFacts
from hostd.vm import home as home_files
from hostd.vm.home import Home
from proto.vim.v1 import vm_config_pb2


def fix(home: Home, config: vm_config_pb2.VmConfig, host: HostFacts, cluster_mode: str) -> None:
    """Put the CPU that the guest gets into `config` and its .vmx file. The VM is this host's, which is checked already.

    :raises EvcAdmissionFailed: its own EVC mode is above its cluster's, `cluster_mode`.
    :raises FeatureRequirementsNotMet: this host lacks a feature. :raises InvalidVmConfig: a mode isn't one.
    :raises NoDiskSpace: :raises CannotAccessFile: the file can't be written.
    """
    capability = host.capability
    baseline = cpu_features.baseline_in_force(config.evc_mode, cluster_mode)
    cpu = cpu_features.fix_guest_cpu(
        capability.cpu, config.cpu_model, baseline, capability.accelerator, host.name
    )
    _put(config, cpu)
    home_files.write_config(home, config)


def forget(home: Home, vm_uuid: str, host_uuid: str) -> vm_config_pb2.VmConfig:
    """Take the CPU of a guest that has ended out of the .vmx file; the configuration as it is then.

    :raises FileLocked: the VM is another host's by now: nothing was written. And as `home_files.write_config`.
    """
    home_files.require_owner(home, vm_uuid, host_uuid)
    config = home_files.read_config(home)
    if config.HasField("guest_cpu"):
        _put(config, None)
        home_files.write_config(home, config)
    return config


def _put(config: vm_config_pb2.VmConfig, cpu: vm_config_pb2.GuestCpu | None) -> None:
    config.ClearField("guest_cpu")
    if cpu is not None:
        config.guest_cpu.CopyFrom(cpu)

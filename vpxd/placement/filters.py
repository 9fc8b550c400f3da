"""Which hosts can take a new VM. Pure: no I/O, no clock, no logging.

For a VM that exists already, the filters are the compatibility checks.
"""

from vpxd.compatibility.finding import HostFacts
from vpxd.inventory.values import HostConnection, VmConfig

_MIB = 1024 * 1024


def reasons_against(config: VmConfig, datastore: str, host: HostFacts) -> tuple[str, ...]:
    """Why the host can't take a new VM with its home on `datastore` (a name or uuid); empty: it can.

    Memory and vCPUs are reserved when the VM is powered on; here the host only has to be big enough at all.
    """
    info, reasons = host.info, []
    if host.connection is not HostConnection.CONNECTED:
        reasons.append(host.connection.value)
    store = info.datastore_named(datastore) or info.datastore_with_uuid(datastore)
    if store is None:
        reasons.append("doesn't see the datastore")
    elif not store.accessible:
        reasons.append("can't access the datastore now")
    if config.ram_bytes > info.memory_bytes:
        reasons.append(f"has only {info.memory_bytes // _MIB} MiB of memory")
    if config.vcpus > info.vcpu_capacity:
        reasons.append(f"has only {info.vcpu_capacity} vCPUs")
    if config.machine_type and config.machine_type not in info.capability.machine_types:
        reasons.append(f"can't run the machine type {config.machine_type}")
    if config.cpu_model and config.cpu_model not in info.capability.cpu_models:
        reasons.append(f"doesn't know the CPU model {config.cpu_model}")
    return tuple(reasons)

"""The VM's home. Pure: no I/O, no clock, no logging.

A datastore is the same one where its uuid is the same. Its name must be the same too, because paths carry the name.
"""

from runtime.faults import InaccessibleDatastore
from vpxd.compatibility.finding import Finding, Move, error


def check(move: Move) -> tuple[Finding, ...]:
    """The destination sees the datastore that the VM's home is on."""
    vm, host = move.vm, move.destination
    store = host.info.datastore_with_uuid(vm.home_datastore_uuid) if vm.home_datastore_uuid else None
    if store is not None and store.accessible and store.name == vm.home_datastore:
        return ()
    if not vm.home_datastore_uuid:
        text = f"the datastore of {vm.config.name}'s home {vm.home} isn't known to its host"
        remedy = "mount the datastore on the VM's present host again"
    elif store is None:
        text = f"{host.name} doesn't see the datastore {vm.home_datastore} that {vm.config.name}'s home is on"
        remedy = f"mount {vm.home_datastore} on {host.name}, or choose a host that sees it"
    elif not store.accessible:
        text = f"{host.name} can't access the datastore {vm.home_datastore} now"
        remedy = f"repair the access of {host.name} to {vm.home_datastore}"
    else:
        text = f"{host.name} sees the datastore {vm.home_datastore} under another name: {store.name}"
        remedy = f"mount it as {vm.home_datastore} on {host.name}"
    return (error(InaccessibleDatastore(text, datastore=vm.home_datastore, host=host.name), remedy),)

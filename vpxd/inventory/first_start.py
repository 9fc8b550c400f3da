"""What is there from the first start: a datacenter, a cluster, and the two networks that every host has."""

from vpxd.inventory.ids import Kind
from vpxd.inventory.records import Cluster, Datacenter, Network
from vpxd.inventory.store import InventoryStore

DATACENTER = "Datacenter"
CLUSTER = "Cluster"
MANAGEMENT_NETWORK = "Management Network"
VMOTION_NETWORK = "vMotion Network"


async def make_first_objects(store: InventoryStore) -> None:
    """Makes them where no datacenter is there; all of them or none."""
    if store.inventory.datacenters:
        return
    async with store.transaction() as transaction:
        datacenter = Datacenter(await transaction.new_id(Kind.DATACENTER), DATACENTER)
        transaction.put(datacenter)
        transaction.put(Cluster(await transaction.new_id(Kind.CLUSTER), CLUSTER, datacenter.id))
        for name in (MANAGEMENT_NETWORK, VMOTION_NETWORK):
            transaction.put(Network(await transaction.new_id(Kind.NETWORK), name))

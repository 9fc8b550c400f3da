"""The Vpxd service: its parts put together."""

from vpxd.services.inventory_service import InventoryService
from vpxd.services.task_service import TaskService
from vpxd.services.vm_service import VmService


class VpxdService(InventoryService, VmService, TaskService):
    """All rpcs of proto/vpxd/v1/service.proto."""

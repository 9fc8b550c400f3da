"""One migration's order, for the tests of this folder."""

from vmx.migration.order import Endpoint, MigrationOrder

SOURCE, DESTINATION, THIRD = "uuid-of-esx01", "uuid-of-esx02", "uuid-of-esx03"
ORDER = MigrationOrder(
    migration_id=4711,
    task_id="task-1",
    vm_uuid="vm-uuid",
    vm_name="web01",
    ram_bytes=32 << 20,
    source=Endpoint(SOURCE, "esx01", "127.0.2.1"),
    destination=Endpoint(DESTINATION, "esx02", "127.0.2.2"),
    key=bytes(32),
)

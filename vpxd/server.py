"""vpxd put together: opens what it keeps, takes up what was under way, listens, and ends in the reverse order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from proto.vpxd.v1 import clusters_pb2_grpc, enrollment_pb2_grpc, service_pb2_grpc, storage_pb2_grpc
from runtime.rpc.identity import Role
from runtime.rpc.server import enrollment_server, network_server
from vpxd import VERSION, trust
from vpxd.agents.host_agent import AgentParts
from vpxd.agents.intake import Intake
from vpxd.agents.registry import AgentRegistry
from vpxd.compatibility.facts import Facts
from vpxd.config import Config
from vpxd.enrollment.tokens import EnrollmentDesk
from vpxd.events.log import EventLog
from vpxd.inventory.database import Database
from vpxd.inventory.first_start import make_first_objects
from vpxd.inventory.live import LiveState
from vpxd.inventory.schema import bring_to_newest
from vpxd.inventory.store import InventoryStore
from vpxd.inventory.vm_lock import EntityLocks
from vpxd.migration.limits.queue import MigrationLimits
from vpxd.migration.parts import Patience, WorkflowParts
from vpxd.migration.workflow import MigrationWorkflow
from vpxd.operations.parts import Parts
from vpxd.services.base import ServiceParts
from vpxd.services.clusters_service import ClustersService
from vpxd.services.enrollment_service import EnrollmentService
from vpxd.services.storage_service import StorageService
from vpxd.services.vpxd_service import VpxdService
from vpxd.tasks.archive import TaskArchive
from vpxd.tasks.manager import TaskManager
from vpxd.tasks.recovery import hold, recover

_log = structlog.get_logger(__name__)
ORIGIN = "vpxd"


class VpxdServer:
    """One vpxd. Serves inside `async with VpxdServer(config).running()`; then `address` has the real port."""

    def __init__(self, config: Config, patience: Patience | None = None) -> None:
        self._config = config
        self._patience = patience or Patience()
        self.address = ""
        self.join_address = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["VpxdServer"]:
        """Everything that vpxd does, while the body runs.

        :raises VimFault: :raises SchemaUpgradeFailed: it can't start; nothing is left running.
        """
        config = self._config
        async with AsyncExitStack() as stack:
            trusted = await asyncio.to_thread(trust.establish, config)
            database = Database(config.database_url)
            stack.push_async_callback(database.close)
            if await bring_to_newest(database.engine, config.database_url):
                _log.info("schema_upgraded")
            events = EventLog(database)
            await events.load()
            store = InventoryStore(database, events)
            await store.load()
            await make_first_objects(store)

            parts = self._parts(trusted, database, events, store)
            hold(parts.locks, store)
            await stack.enter_async_context(parts.agents.running(list(store.inventory.hosts.values())))
            await stack.enter_async_context(parts.tasks.running(config.stop_grace_s))
            await recover(parts.tasks, store, parts.workflow)
            await self._listen(stack, trusted, parts)
            _log.info(
                "vpxd_serves",
                address=self.address,
                join_address=self.join_address,
                hosts=len(store.inventory.hosts),
                vms=len(store.inventory.vms),
            )
            yield self
            _log.info("vpxd_stops")

    def _parts(
        self, trusted: trust.Trust, database: Database, events: EventLog, store: InventoryStore
    ) -> Parts:
        live, locks = LiveState(), EntityLocks()
        agents = AgentRegistry(
            AgentParts(
                identity=trusted.identity,
                intake=Intake(store, live, locks),
                live=live,
                events=events,
                heartbeat_s=self._config.heartbeat_s,
                heartbeat_timeout_s=self._config.heartbeat_timeout_s,
            )
        )
        facts = Facts(store.inventory, live, locks)
        tasks = TaskManager(TaskArchive(database), locks)
        limits = MigrationLimits(self._config.vmotion_link_gbps)
        shared = WorkflowParts(store, live, facts, agents, locks, limits, self._patience)
        workflow = MigrationWorkflow(shared, tasks)
        return Parts(store, live, locks, facts, agents, tasks, events, workflow)

    async def _listen(self, stack: AsyncExitStack, trusted: trust.Trust, parts: Parts) -> None:
        config = self._config
        desk = EnrollmentDesk(parts.store, trusted.authority)
        joining = enrollment_server(config.join_listen, trusted.identity, ORIGIN)
        enrollment_pb2_grpc.add_EnrollmentServicer_to_server(EnrollmentService(desk), joining.grpc)
        await joining.start()
        stack.push_async_callback(joining.stop, 0.5)
        self.join_address = joining.address

        advertised = config.advertise if config.advertise != config.join_listen else joining.address
        services = ServiceParts(parts, desk, trusted.authority, advertised, VERSION)
        server = network_server(config.listen, trusted.identity, frozenset({Role.CLIENT}), ORIGIN)
        service_pb2_grpc.add_VpxdServicer_to_server(VpxdService(services), server.grpc)
        storage_pb2_grpc.add_StorageServicer_to_server(StorageService(services), server.grpc)
        clusters_pb2_grpc.add_ClustersServicer_to_server(ClustersService(parts), server.grpc)
        await server.start()
        stack.push_async_callback(server.stop, 0.5)
        self.address = server.address
        await asyncio.to_thread(trust.write_client_settings, config, server.address)

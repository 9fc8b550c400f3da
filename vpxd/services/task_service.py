"""Vpxd's rpcs about tasks and events."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from proto.vim.v1.task_pb2 import Event, TaskInfo
from proto.vpxd.v1 import service_pb2 as api
from runtime.faults import InvalidArgument
from vpxd.operations import lookup
from vpxd.services import mapping
from vpxd.services.base import Adapter, Context
from vpxd.services.mapping import task_info

DEFAULT_LIMIT = 100
MAX_LIMIT = 2_000  # so many tasks with their tables stay below a message's greatest size


class TaskService(Adapter):
    """List, get, watch and cancel tasks; list and watch events."""

    async def ListTasks(self, request: api.ListTasksRequest, context: Context) -> api.ListTasksResponse:
        entity = self._entity(request.entity)
        records = await self._parts.tasks.newest(entity, request.active_only, _limit(request.limit))
        return api.ListTasksResponse(tasks=[task_info(record) for record in records])

    async def GetTask(self, request: api.GetTaskRequest, context: Context) -> TaskInfo:
        return task_info(await self._parts.tasks.get(request.task))

    async def WatchTask(self, request: api.GetTaskRequest, context: Context) -> AsyncIterator[TaskInfo]:
        async with aclosing(self._parts.tasks.watch(request.task)) as records:
            async for record in records:
                yield task_info(record)

    async def CancelTask(self, request: api.GetTaskRequest, context: Context) -> TaskInfo:
        return task_info(await self._parts.tasks.cancel(request.task))

    async def ListEvents(self, request: api.ListEventsRequest, context: Context) -> api.ListEventsResponse:
        entity = self._entity(request.entity)
        events = await self._parts.events.newest(_number(request.after_id), entity, _limit(request.limit))
        return api.ListEventsResponse(events=[mapping.event(entry) for entry in events])

    async def WatchEvents(self, request: api.ListEventsRequest, context: Context) -> AsyncIterator[Event]:
        entity = self._entity(request.entity)
        async with aclosing(self._parts.events.watch(_number(request.after_id), entity)) as events:
            async for entry in events:
                yield mapping.event(entry)

    def _entity(self, key: str) -> str:
        return lookup.entity_id(self._parts.store.inventory, key) if key else ""


def _limit(wanted: int) -> int:
    return min(wanted or DEFAULT_LIMIT, MAX_LIMIT)


def _number(event_id: int) -> int:
    """:raises InvalidArgument: greater than any event's id can be."""
    if event_id >= 2**63:
        raise InvalidArgument(f"no event can have the id {event_id}", argument="after_id")
    return event_id

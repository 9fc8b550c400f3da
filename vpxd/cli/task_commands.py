"""`vpx task` and `vpx events`."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from proto.vim.v1 import task_pb2
from proto.vpxd.v1 import service_pb2
from vpxd.cli.command import command
from vpxd.cli.completion import task_ids
from vpxd.cli.errors import Interrupted, NoAnswer
from vpxd.cli.output import Column, ColumnTable, details_of, json_of, print_json, table_of
from vpxd.cli.quantities import ms_text
from vpxd.cli.session import Session
from vpxd.cli.wording import enum_text, moment, operation_text, or_dash, phase_text, time_text

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Tasks: what was asked for, and how it goes.")

TaskId = Annotated[str, typer.Argument(metavar="TASK", help="Its id (task-7).", autocompletion=task_ids)]


@dataclass(frozen=True)
class OneTask:
    task: TaskId


@dataclass(frozen=True)
class ListTasks:
    active: Annotated[bool, typer.Option("--active", help="Only those that haven't ended.")] = False
    entity: Annotated[str, typer.Option("--entity", help="Only those of this VM or host.")] = ""
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="So many of the newest.")] = 100


@command(app, "list", ListTasks)
async def list_tasks(session: Session, arguments: ListTasks) -> None:
    """The newest tasks."""
    request = service_pb2.ListTasksRequest(
        active_only=arguments.active, entity=arguments.entity, limit=arguments.limit
    )
    async with session.connect() as client:
        answer = await client.call(client.stub.ListTasks, request, session.call_timeout_s)
    session.show_list(answer.tasks, _tasks_table, "No tasks.")


def _tasks_table(tasks: Sequence[task_pb2.TaskInfo]) -> ColumnTable:
    columns = (
        Column("ID"),
        Column("OPERATION"),
        Column("ENTITY"),
        Column("STATE"),
        Column("DONE", "right"),
        Column("LINE", "right"),
        Column("STARTED"),
        Column("TOOK", "right"),
        Column("USER", free_text=True),
        Column("WHAT", free_text=True),
    )
    rows = [
        (
            task.id,
            operation_text(task.operation),
            task.entity_name or or_dash(task.entity),
            _state(task),
            f"{task.progress_percent} %",
            str(task.queue_position) if task.queue_position else "-",
            time_text(task.start_time),
            _took(task),
            task.user,
            task.error.message if task.HasField("error") else _now(task),
        )
        for task in tasks
    ]
    return table_of(columns, rows)


@command(app, "show", OneTask)
async def show_task(session: Session, arguments: OneTask) -> None:
    """One task in full; of a migration its tables too."""
    async with session.connect() as client:
        task = await client.call(
            client.stub.GetTask, service_pb2.GetTaskRequest(task=arguments.task), session.call_timeout_s
        )
    session.show(task, _task_details)


def _task_details(task: task_pb2.TaskInfo) -> "Group":
    from rich.console import Group
    from rich.text import Text

    from runtime.rpc.faults import fault_from_proto
    from vpxd.cli.fault_text import say
    from vpxd.cli.migration_report import report

    pairs = [
        ("Id", task.id),
        ("Operation", task.operation),
        ("Entity", f"{task.entity_name} ({task.entity})" if task.entity else "-"),
        ("State", _state(task)),
        ("Progress", f"{task.progress_percent} %"),
        ("Now", or_dash(task.description)),
        ("In line", f"number {task.queue_position}: {task.queue_reason}" if task.queue_position else "-"),
        ("Queued", time_text(task.queue_time)),
        ("Started", time_text(task.start_time)),
        ("Ended", time_text(task.complete_time)),
        ("Took", _took(task)),
        ("Result", or_dash(task.result)),
        ("User", task.user),
        ("Operation id", task.operation_id),
    ]
    if task.HasField("migration"):
        pairs.append(("Phase", phase_text(task.migration.phase)))
    parts: list[Table | Text | Group] = [details_of(pairs)]
    if task.HasField("error"):
        parts.append(Text("\n" + "\n".join(say(fault_from_proto(task.error)))))
    if task.HasField("migration") and (task.migration.iterations or task.migration.disks):
        parts.append(Group(report(task.migration)))
    return Group(*parts)


@command(app, "watch", OneTask)
async def watch_task(session: Session, arguments: OneTask) -> None:
    """Follow a task to its end; exit status as that of the command that started it."""
    from vpxd.cli.task_progress import conclude, finish_migration, wait_for_end

    async with session.connect() as client:
        task = await client.call(
            client.stub.GetTask, service_pb2.GetTaskRequest(task=arguments.task), session.call_timeout_s
        )
        name = task.entity_name or task.entity
        if operation_text(task.operation) in ("migrate", "relocate"):
            ended = await finish_migration(session, client, task, f"{name}: {task.description or 'migrate'}")
        else:
            ended = await wait_for_end(session, client, task)
        conclude(session, ended, f"{ended.id} ({operation_text(ended.operation)} {name}) succeeded.")


@command(app, "cancel", OneTask)
async def cancel_task(session: Session, arguments: OneTask) -> None:
    """Ask a task to stop; it ends with the fault RequestCanceled once everything is undone."""
    async with session.connect() as client:
        task = await client.call(
            client.stub.CancelTask, service_pb2.GetTaskRequest(task=arguments.task), session.call_timeout_s
        )
    if session.json:
        print_json(json_of(task))
    elif task.state in (task_pb2.TASK_STATE_SUCCESS, task_pb2.TASK_STATE_ERROR):
        session.say(f"{task.id} had ended already: {_state(task)}.")
    else:
        session.say(f"{task.id} is being canceled; `vpx task watch {task.id}` shows its end.")


@dataclass(frozen=True)
class ListEvents:
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones, until Ctrl-C.")] = False
    entity: Annotated[str, typer.Option("--entity", help="Only those of this VM or host.")] = ""
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="So many of the newest.")] = 100


def register_events(top: typer.Typer) -> None:
    """Adds `vpx events` to the top level."""

    @command(top, "events", ListEvents)
    async def events(session: Session, arguments: ListEvents) -> None:
        """What has happened, oldest first. With -o json and --follow: one document a line."""
        request = service_pb2.ListEventsRequest(entity=arguments.entity, limit=arguments.limit)
        async with session.connect() as client:
            answer = await client.call(client.stub.ListEvents, request, session.call_timeout_s)
            if not arguments.follow:
                session.show_list(answer.events, _events_table, "No events.")
                return
            for event in answer.events:
                _print_event(session, event)
            session.interruption = Interrupted("Stopped following events.")
            request.after_id = answer.events[-1].id if answer.events else 0
            answers = client.stream(
                client.stub.WatchEvents, request, *filter(None, (session.options.timeout_s,))
            )
            try:
                async with aclosing(answers):
                    async for event in answers:
                        _print_event(session, event)
            except NoAnswer:
                return  # --timeout says how long to follow


def _events_table(events: Sequence[task_pb2.Event]) -> ColumnTable:
    columns = (
        Column("TIME"),
        Column("SEVERITY"),
        Column("TYPE"),
        Column("ENTITY"),
        Column("TASK"),
        Column("MESSAGE", free_text=True),
    )
    rows = [
        (
            time_text(event.time),
            enum_text(task_pb2.EventSeverity, event.severity),
            event.type.removesuffix("Event"),
            event.entity_name or or_dash(event.entity),
            or_dash(event.task),
            event.message,
        )
        for event in events
    ]
    return table_of(columns, rows)


def _print_event(session: Session, event: task_pb2.Event) -> None:
    if session.json:
        print_json(json_of(event), one_line=True)
        return
    severity = enum_text(task_pb2.EventSeverity, event.severity)
    kind = event.type.removesuffix("Event")
    session.say(
        f"{time_text(event.time)}  {severity:<7}  {kind:<20}  {event.entity_name or event.entity}: {event.message}"
    )


def _now(task: task_pb2.TaskInfo) -> str:
    """What it does now; of disks under way each with its share."""
    disks = [
        f"{disk.key} {100 * disk.copied_bytes // disk.data_bytes} %"
        for disk in task.migration.disks
        if disk.data_bytes and task.state == task_pb2.TASK_STATE_RUNNING
    ]
    return f"{task.description} (disks: {', '.join(disks)})" if len(disks) > 1 else task.description


def _state(task: task_pb2.TaskInfo) -> str:
    state = enum_text(task_pb2.TaskState, task.state)
    asked = task.cancel_requested and task.state in (task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING)
    return f"{state} (canceling)" if asked else state


def _took(task: task_pb2.TaskInfo) -> str:
    start = moment(task.start_time)
    if start is None:
        return "-"
    end = moment(task.complete_time) or datetime.now().astimezone()
    return ms_text(max(0.0, (end - start).total_seconds() * 1000))

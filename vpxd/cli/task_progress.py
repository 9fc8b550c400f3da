"""Following a task that a command has started, to its end."""

from contextlib import aclosing
from typing import TYPE_CHECKING

from proto.vim.v1 import task_pb2
from vpxd.cli.client import ENDED, VpxdClient, task_error
from vpxd.cli.console_text import plain
from vpxd.cli.errors import Interrupted, NoAnswer
from vpxd.cli.migration_view import LineView, LiveView, MigrationView, final_report
from vpxd.cli.output import json_of, print_json, print_view
from vpxd.cli.session import Session
from vpxd.cli.wording import operation_text

if TYPE_CHECKING:
    from rich.status import Status
    from rich.text import Text


async def finish(
    session: Session, client: VpxdClient, task: task_pb2.TaskInfo, done: str
) -> task_pb2.TaskInfo:
    """Waits for the task unless --no-wait was given, and says how it went.

    `done` is the sentence for success; "{result}" in it stands for the id of what the task made.

    With -o json the task is printed as it is at the end, failed or not.

    :raises VimFault: the task's error.  :raises NoAnswer: --timeout went by.
    """
    if not session.wait:
        return _started(session, task)
    return conclude(session, await wait_for_end(session, client, task), done)


async def wait_for_end(session: Session, client: VpxdClient, task: task_pb2.TaskInfo) -> task_pb2.TaskInfo:
    """The task's last state, failed or not; on a terminal with a spinner meanwhile.

    :raises NoAnswer: --timeout went by; the task goes on.
    """
    _explain_interruption(session, task)
    if session.interactive:
        with session.stderr.status(_spinner_text(task)) as status:
            return await _last(session, client, task, status)
    return await _last(session, client, task)


async def finish_migration(
    session: Session, client: VpxdClient, task: task_pb2.TaskInfo, title: str
) -> task_pb2.TaskInfo:
    """Shows a migration's task live to its end, and its tables; the caller says the last sentence.

    :raises VimFault: the task's error.  :raises NoAnswer: --timeout went by.
    """
    _explain_interruption(session, task)
    view: MigrationView | None = None
    if session.interactive and task.state not in ENDED:
        view = LiveView(session.stderr, title)
    elif not session.json and task.state not in ENDED:
        view = LineView(session.stderr)
    last = task
    try:
        async with aclosing(client.watch(task.id, session.options.timeout_s)) as states:
            async for last in states:
                if view is not None:
                    view.update(last)
    except NoAnswer as error:
        raise _with_advice(error, task) from error
    finally:
        if view is not None:
            view.close()
    if (
        not session.json
        and last.HasField("migration")
        and (last.migration.iterations or last.migration.disks)
    ):
        print_view(session.stdout, final_report(last))
        session.stdout.print()
    return last


def conclude(session: Session, task: task_pb2.TaskInfo, done: str) -> task_pb2.TaskInfo:
    """Prints an ended task's result. :raises VimFault: the task's error."""
    if session.json:
        print_json(json_of(task))
    if task.state == task_pb2.TASK_STATE_ERROR:
        raise task_error(task)
    session.say(done.replace("{result}", task.result))
    return task


def _started(session: Session, task: task_pb2.TaskInfo) -> task_pb2.TaskInfo:
    if session.json:
        print_json(json_of(task))
    else:
        session.say(task.id)
    return task


def _explain_interruption(session: Session, task: task_pb2.TaskInfo) -> None:
    session.interruption = Interrupted(
        f"Stopped watching; {task.id} ({operation_text(task.operation)}) goes on.", _advice(task)
    )


def _with_advice(error: NoAnswer, task: task_pb2.TaskInfo) -> NoAnswer:
    return NoAnswer(str(error), f"it goes on: {_advice(task)}")


def _advice(task: task_pb2.TaskInfo) -> str:
    cancel = f", `vpx task cancel {task.id}` stops it" if task.cancelable else ""
    return f"`vpx task watch {task.id}` shows it again{cancel}."


async def _last(
    session: Session, client: VpxdClient, task: task_pb2.TaskInfo, status: "Status | None" = None
) -> task_pb2.TaskInfo:
    """The task's last state."""
    last = task
    try:
        async with aclosing(client.watch(task.id, session.options.timeout_s)) as states:
            async for last in states:
                if status is not None:
                    status.update(_spinner_text(last))
    except NoAnswer as error:
        raise _with_advice(error, task) from error
    assert last.state in ENDED, "watch() ends with the task"
    return last


def _spinner_text(task: task_pb2.TaskInfo) -> "Text":
    from rich.text import Text

    percent = f"  {task.progress_percent} %" if task.progress_percent else ""
    description = f"  {task.description}" if task.description else ""
    return Text(
        plain(f"{operation_text(task.operation)} {task.entity_name or task.entity}{percent}{description}")
    )

"""The operation id: valid, inherited by tasks, never forged."""

import asyncio

import pytest
import structlog

from runtime.rpc.operation_id import child, current_operation_id, new_operation_id, use_operation_id


async def test_operation_id_is_inherited_by_tasks_and_not_leaked_by_them() -> None:
    use_operation_id("outer")

    async def inner() -> str:
        inherited = current_operation_id()
        use_operation_id("inner")
        return inherited

    assert await asyncio.create_task(inner()) == "outer"
    assert current_operation_id() == "outer"


async def test_operation_id_child_names_its_parent_and_the_log_has_it() -> None:
    use_operation_id("3f2a91bc")
    assert child("undo") == "3f2a91bc-undo"
    assert structlog.contextvars.get_contextvars()["operation_id"] == "3f2a91bc"


@pytest.mark.parametrize("bad", ["", "a b", "a\nlevel=info", "x" * 129, "ä"])
async def test_operation_id_that_cant_be_one_is_replaced(bad: str) -> None:
    taken = use_operation_id(bad)
    assert taken != bad
    assert current_operation_id() == taken
    assert len(taken) == len(new_operation_id())

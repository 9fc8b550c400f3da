"""One holder at a time; who comes second is told who holds it."""

import pytest

from hostd.vm.config_lock import EMIGRATING, ConfigLocks, Holder
from runtime.faults import TaskInProgress


def test_acquire_held_lock_names_the_holder() -> None:
    rings: list[int] = []
    locks = ConfigLocks(lambda: rings.append(1))
    locks.acquire("vm", Holder(EMIGRATING, "task-7", 42))
    with pytest.raises(TaskInProgress) as caught:
        locks.acquire("vm", Holder("powerOff", "task-8"))
    assert (caught.value.task, caught.value.operation, caught.value.entity) == ("task-7", "emigrating", "vm")
    assert "task-7" in str(caught.value)
    locks.acquire("other", Holder("powerOff"))
    assert len(rings) == 2


def test_release_by_another_holder_changes_nothing() -> None:
    locks = ConfigLocks(lambda: None)
    locks.acquire("vm", Holder(EMIGRATING, "task-7", 42))
    locks.release("vm", Holder(EMIGRATING, "task-7", 43))
    assert locks.holder("vm") == Holder(EMIGRATING, "task-7", 42)
    locks.release("vm", Holder(EMIGRATING, "task-7", 42))
    assert locks.holder("vm") is None


def test_held_block_that_fails_frees_the_lock() -> None:
    locks = ConfigLocks(lambda: None)
    with pytest.raises(RuntimeError), locks.held("vm", Holder("reset")):
        raise RuntimeError
    assert locks.holder("vm") is None

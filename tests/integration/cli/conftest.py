"""A fake vpxd with three hosts and two VMs, and `vpx` talking to it over real mutual TLS."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.framework.fake_vpxd import World, host, running_fake_vpxd, vm
from vpxd.cli.app import app


@dataclass(frozen=True)
class Answer:
    """How `vpx` ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Vpx = Callable[..., Answer]


@pytest.fixture
def world() -> World:
    return World(hosts=[host(1), host(2), host(3)], vms=[vm(), vm("db01", 2, on=False)])


@pytest.fixture
def config(world: World, tmp_path: Path) -> Iterator[Path]:
    with running_fake_vpxd(tmp_path, world) as path:
        yield path


@pytest.fixture
def vpx(config: Path) -> Vpx:
    def run(*words: str) -> Answer:
        result = CliRunner().invoke(app, ["--config", str(config), *words], prog_name="vpx")
        return Answer(result.exit_code, result.stdout, result.stderr)

    return run

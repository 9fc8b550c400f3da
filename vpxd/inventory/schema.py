"""The database's schema, brought to its newest revision at start.

Alembic costs about 10 MiB of memory that vpxd would keep for nothing, so it runs in a short child process, and
only when the revision in the database isn't the newest one.
"""

import asyncio
import re
import sys
from pathlib import Path

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

_REVISION_FILE = re.compile(r"(?P<number>[0-9]{4})_[a-z0-9_]+\.py")
_UPGRADE_TIMEOUT_S = 120.0
SCRIPTS = Path(__file__).parent / "migrations"


class SchemaUpgradeFailed(Exception):
    """The database couldn't be brought to the newest revision; it is as it was before the failing revision."""

    def __init__(self, exit_status: int | None, output: str) -> None:
        super().__init__(f"the database's schema couldn't be upgraded (exit status {exit_status}): {output}")
        self.exit_status = exit_status


def newest_revision() -> str:
    """The newest revision that this version knows: revisions are numbered, the file's name begins with the number."""
    names = (_REVISION_FILE.fullmatch(path.name) for path in (SCRIPTS / "versions").iterdir())
    return max(match["number"] for match in names if match)


async def bring_to_newest(engine: AsyncEngine, url: str) -> bool:
    """Upgrades the schema where it isn't at the newest revision; answers whether it was upgraded.

    :raises SchemaUpgradeFailed: with the end of what alembic said.
    """
    async with engine.connect() as connection:
        present = await connection.run_sync(_present_revision)
    if present == newest_revision():
        return False
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "vpxd.inventory.upgrade",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=Path(__file__).parents[2],  # from where `python -m` finds the package, installed or not
    )
    try:
        # The URL may hold a password, so it isn't an argument, which others could read.
        output, _ = await asyncio.wait_for(child.communicate(url.encode()), _UPGRADE_TIMEOUT_S)
    except TimeoutError as error:
        child.kill()
        await child.wait()
        raise SchemaUpgradeFailed(None, f"no end after {_UPGRADE_TIMEOUT_S:.0f} s") from error
    if child.returncode != 0:
        raise SchemaUpgradeFailed(child.returncode, output.decode(errors="replace")[-2000:])
    return True


def _present_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()

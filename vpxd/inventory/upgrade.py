"""The child process that upgrades the database's schema: reads the database's URL from its standard input."""

import sys

from alembic import command
from alembic.config import Config

from vpxd.inventory.schema import SCRIPTS


def main() -> None:
    """Upgrades to the newest revision; a traceback and a status other than 0 on failure."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["url"] = sys.stdin.read().strip()
    command.upgrade(config, "head")


if __name__ == "__main__":
    main()

"""`python -m vpxd`: runs vpxd with the settings of its environment until SIGTERM or SIGINT."""

import asyncio
import os
import sys

from runtime.daemon.log_setup import setup_logging
from runtime.daemon.run import run_daemon
from vpxd.config import Config
from vpxd.server import VpxdServer


async def _main(stop: asyncio.Event) -> None:
    config = Config.from_environment(os.environ)
    setup_logging("vpxd", json=config.log_json)
    async with VpxdServer(config).running():
        await stop.wait()


if __name__ == "__main__":
    sys.exit(run_daemon(_main))

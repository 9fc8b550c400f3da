"""`python -m hostd`: settings from the environment, then serve until SIGTERM."""

import asyncio
import os
import sys

from hostd.config import Config
from hostd.server import serve
from runtime.daemon.log_setup import setup_logging
from runtime.daemon.run import run_daemon


async def _main(stop: asyncio.Event) -> None:
    config = Config.from_environment(os.environ)
    setup_logging("hostd", config.host_name, json=config.log_json)
    await serve(config, stop)


if __name__ == "__main__":
    sys.exit(run_daemon(_main))

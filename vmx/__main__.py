"""`python -m vmx`: the process of one virtual machine; hostd starts it."""

import asyncio
import os
import sys

from runtime import failpoint
from runtime.daemon.log_setup import setup_logging
from runtime.daemon.run import run_daemon
from vmx.config import Config
from vmx.migration.failpoints import FAILPOINTS
from vmx.server import serve


async def _main(stop: asyncio.Event) -> None:
    config = Config.from_environment(os.environ)
    setup_logging("vmx", config.host_name, config.log_json)
    failpoint.arm(os.environ, FAILPOINTS)
    await serve(config, stop)


if __name__ == "__main__":
    sys.exit(run_daemon(_main))

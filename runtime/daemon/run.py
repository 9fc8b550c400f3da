"""The frame around every daemon's main coroutine: event loop, signals, exit status.

exit 0    `main` returned (after SIGTERM or SIGINT set its stop event, or by itself)
exit 1    `main` raised: logged once
exit 2    a setting is missing or can't be: one line on stderr
exit 130  a second signal while stopping
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import structlog
import uvloop

from runtime.daemon.settings import SettingsError
from runtime.faults import VimFault

EXIT_FAILED = 1
EXIT_SETTINGS = 2
EXIT_SECOND_SIGNAL = 130

_log = structlog.get_logger(__name__)


def run_daemon(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Runs `main(stop)` on a uvloop event loop until it returns; answers the process's exit status.

    SIGTERM or SIGINT sets `stop`, and `main` is to end in good order; a second one ends the process at once.
    Read the settings inside `main`, so that a bad one ends in exit status 2.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_supervise(main))
    except SettingsError as error:
        print(f"settings: {error}", file=sys.stderr)
        return EXIT_SETTINGS
    except VimFault as fault:  # said in one sentence: its traceback helps nobody
        _log.error("daemon_failed", fault=type(fault).__name__, reason=str(fault), cause=_cause_of(fault))
        return EXIT_FAILED
    except Exception:  # noqa: BLE001 - the process's outer edge
        _log.exception("daemon_failed")
        return EXIT_FAILED
    return 0


async def _supervise(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(EXIT_SECOND_SIGNAL)
        _log.info("stopping", signal=number.name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await main(stop)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _cause_of(fault: VimFault) -> str:
    return str(fault.__cause__) if fault.__cause__ is not None else ""

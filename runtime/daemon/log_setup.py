"""Logs of all daemons: structlog on stderr, one event a line, the same keys in the same order.

    2025-01-31T12:00:00.123456Z info  phase_begin  daemon=hostd host=esx02 operation_id=3f2a91bc migration_id=... vm=...

daemon and host are bound for the process's life; operation_id by runtime/rpc; migration_id by whoever works on one
(`structlog.contextvars.bound_contextvars(migration_id=...)`). What libraries log with `logging` comes the same
way, from WARNING up.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_FIRST_KEYS = ("timestamp", "level", "event", "daemon", "host", "operation_id", "migration_id", "peer")
_LAST_KEYS = ("exception", "stack")


def setup_logging(daemon: str, host: str = "", json: bool = False) -> None:
    """Sets up structlog and `logging` for this process; call once, before anything is logged.

    :param json: one JSON object a line; else text for people, in colours only on a terminal.
    """
    constant = {"daemon": daemon, **({"host": host} if host else {})}

    def add_constants(
        _logger: object, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        return {**constant, **event}

    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_constants,
    ]
    final: list[structlog.types.Processor]
    if json:
        final = [
            structlog.processors.format_exc_info,
            _in_order,
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        final = [_in_order, _console(colors=sys.stderr.isatty())]
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


def _console(*, colors: bool) -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(
        colors=colors,
        sort_keys=False,
        pad_event_to=0,
        exception_formatter=structlog.dev.plain_traceback,
    )


def _in_order(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    first = {key: event[key] for key in _FIRST_KEYS if key in event}
    last = {key: event[key] for key in _LAST_KEYS if key in event}
    return {
        **first,
        **{key: value for key, value in event.items() if key not in first and key not in last},
        **last,
    }

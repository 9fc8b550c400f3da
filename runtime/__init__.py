"""What every daemon stands on: faults, RPC with identity, process start and stop, records on disk.

Imported first by each daemon's package, since two libraries look around when they are first imported:

- gRPC reads its log level then. Its own lines (a failed handshake, say) would stand unstructured between ours;
  what matters in them reaches the caller as the error of its call.
- structlog imports rich if it is installed: 4 MiB and 30 ms that no daemon uses. The command line imports rich itself.
"""

import os
import sys

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]  # the import system takes None as "isn't there"
    try:
        import structlog as structlog
    finally:
        del sys.modules["rich"]

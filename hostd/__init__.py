"""The host's own daemon: its VMs' registry, configuration, power, admission, datastores, and its half of migrations."""

import runtime  # noqa: F401  first: it settles what gRPC reads from the environment at its import

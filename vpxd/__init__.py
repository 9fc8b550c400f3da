"""vpxd: the cluster's daemon. Inventory, tasks, events, compatibility, placement and the workflow of a migration."""

import runtime  # noqa: F401  first: it settles what gRPC reads from the environment at its import

VERSION = "0.1.0"

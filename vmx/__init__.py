"""One process per powered-on VM: owns the guest, its RAM, its page tracer and its half of a migration."""

import runtime  # noqa: F401  first: it settles what gRPC reads from the environment at its import

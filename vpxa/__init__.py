"""The host's agent: takes vpxd's orders over the management network and hands them to hostd; decides nothing."""

import runtime  # noqa: F401  first: it settles what gRPC reads from the environment at its import

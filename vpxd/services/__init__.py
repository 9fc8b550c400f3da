"""gRPC adapters: parse, one call, map the result."""

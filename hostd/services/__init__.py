"""hostd's gRPC services: thin adapters from messages to calls."""

"""gRPC as this cluster uses it: servers and channels made in one place, mutual TLS, faults, operation ids."""

"""How a host gets its certificate: one-time tokens."""

"""How a daemon starts, logs and stops."""

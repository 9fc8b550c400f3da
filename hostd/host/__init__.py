"""What this host is, what it can and how it does."""

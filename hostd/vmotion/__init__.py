"""hostd's half of a live migration: admission, journal, source, destination, recovery."""

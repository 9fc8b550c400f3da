"""The datastores that this host sees."""

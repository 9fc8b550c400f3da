"""Datastores and storage policies: what is decided about them, without a host being asked."""

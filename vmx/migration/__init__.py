"""The VM's half of a migration: one list of phases for each role."""

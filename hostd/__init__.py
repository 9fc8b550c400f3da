"""The host's own daemon: its VMs' registry, configuration, power, admission, datastores, and its half of migrations."""

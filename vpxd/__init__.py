"""vpxd: the cluster's daemon. Inventory, tasks, events, compatibility, placement and the workflow of a migration."""

VERSION = "0.1.0"

"""What the cluster consists of: records that survive a restart, and the state that hosts report of them."""

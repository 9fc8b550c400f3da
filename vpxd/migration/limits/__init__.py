"""How many migrations may run at once: costs, the account of what is taken, the queue of what waits."""

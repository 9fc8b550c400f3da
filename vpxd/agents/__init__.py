"""vpxd's side of its hosts: one agent per host owns the connection to the host's vpxa."""

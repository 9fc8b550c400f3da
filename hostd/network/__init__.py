"""The host's networks: its port groups, and the virtual switch that carries them."""

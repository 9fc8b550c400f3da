"""One process per powered-on VM: owns the guest, its RAM, its page tracer and its half of a migration."""

"""The guest: its RAM, the QEMU process that runs it, and the orders it takes."""

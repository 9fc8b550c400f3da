"""The command line client `vpx`, and the typed Python client (vpxd.cli.client) that it stands on.

Clients of vpxd only: nothing here imports the daemons, just `proto` and `runtime`.
"""

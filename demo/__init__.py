"""A cluster of local processes, and the demonstration that runs on it.

python -m demo.local_cluster up|down|status     what `make up` and `make down` call
python -m demo                                  what `make demo` calls
"""

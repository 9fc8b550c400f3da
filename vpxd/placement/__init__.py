"""Which host takes a VM when none is named: filters, score, choice, all pure."""

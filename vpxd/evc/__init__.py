"""EVC: which baselines a cluster's hosts can offer, and what stands against one."""

"""Iterative pre-copy: the loop, its statistics, and the rule that ends it."""

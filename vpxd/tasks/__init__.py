"""Long operations: their states, who watches them, and what becomes of them after a restart."""

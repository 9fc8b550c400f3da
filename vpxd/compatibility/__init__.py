"""Can this VM go to that host, and if not, why: one pure function per subject."""

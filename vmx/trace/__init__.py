"""Page tracing: which guest pages were written since they were last sent."""

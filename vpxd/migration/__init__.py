"""The workflow of a migration: steps with their undoing, limits, progress, and the resolution of doubt."""

"""The small Linux guest that proves migrations: its image's builder, command line and output reader."""

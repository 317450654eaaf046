"""params.yaml, typed: its sections, the file as a whole, and the profiles that take its place."""

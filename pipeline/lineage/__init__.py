"""From a file back to all that made it, forward to what was made of it, and why a stage would run."""

"""The study of patterns: what zeros in blocks cost in accuracy, and what they buy in time."""

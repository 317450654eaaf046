"""Tasks: rows, splits, labels, losses, scores."""

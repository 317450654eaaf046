"""Tasks: examples, splits, batches, and of each kind of task the labels, losses and scores."""

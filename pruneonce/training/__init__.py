"""One training loop, and how a task is learned with it."""

"""What DVC and MLflow recorded: lock files as a graph, runs, registered models."""

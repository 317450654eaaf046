"""The Prefect flow: every DVC stage as one task, in order."""

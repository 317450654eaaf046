"""Projects of `pruneonce init`: their files, and the block of a task in params.yaml."""

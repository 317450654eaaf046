"""The commands of `pruneonce` in a project's folder: one file for each, with its options and what it prints."""

"""The commands of `pruneonce` that work in any folder: one file for each, with its options and what it prints."""

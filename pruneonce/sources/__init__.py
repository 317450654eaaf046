"""Sources of models and texts: fetch, verify, read row by row."""

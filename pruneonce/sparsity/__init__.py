"""Zeros in weights: which count, where they may lie, which weights go, and when."""

"""The study: what pruning once buys, compared with other ways to a sparse task model."""

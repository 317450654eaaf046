"""What pruning once buys: the study, in one room."""

"""One file for each stage of dvc.yaml: `run` and a command."""

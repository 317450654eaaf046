"""What the `report` stage writes: the table, one HTML page with plots, and a model card for each task."""

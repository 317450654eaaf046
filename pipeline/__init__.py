"""The plumbing: parameters, stages as commands, tracking, plans."""

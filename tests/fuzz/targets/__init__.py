"""What is read, and what is damaged of it: one file a target. See tests/fuzz/__init__.py."""

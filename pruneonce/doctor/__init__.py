"""What `pruneonce doctor` looks at on any machine. Standard library only: it must work where little else does."""

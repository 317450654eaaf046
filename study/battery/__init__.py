"""How general is the sparse model? Tasks made from texts, beside those of the default profile."""

"""How general is the sparse model? Tasks that no recipe was tuned on, made from texts that the corpus does not have."""

"""Text as blocks of tokens, and the losses of a language model on them."""

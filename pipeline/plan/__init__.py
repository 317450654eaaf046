"""What a profile would cost: its inputs, the work of every stage, and the page that `pruneonce plan` prints."""

"""The pages, and the programs that write what commands print into them."""

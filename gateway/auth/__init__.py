"""Access control: tokens, the file that keeps their hashes, and the rights that they give."""

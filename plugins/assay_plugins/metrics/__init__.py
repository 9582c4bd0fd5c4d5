"""Numbers over a split."""

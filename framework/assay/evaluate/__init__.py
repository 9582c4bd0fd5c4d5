"""Evaluation of a split, exact on ragged and sharded batches, and sampling."""

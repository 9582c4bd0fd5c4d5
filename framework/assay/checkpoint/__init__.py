"""Checkpoints: what is in one, when it is complete, and restoring it onto another mesh."""

"""Learning rates by step."""

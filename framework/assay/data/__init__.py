"""Data: sources and their order, batches through Grain, text as token ids, and the cache on disk."""

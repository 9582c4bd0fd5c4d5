"""Trackers: where logged values go besides the run directory."""

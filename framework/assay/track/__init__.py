"""Logging: the run directory's own store first, then every tracker plugin through a queue of its own, none able to hurt the run."""

from assay.track.fanout import Fanout, installed_trackers, to_stderr
from assay.track.replay import replay, rewind

__all__ = ["Fanout", "installed_trackers", "replay", "rewind", "to_stderr"]

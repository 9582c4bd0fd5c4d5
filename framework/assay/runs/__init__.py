"""The run directory: made, found again, locked while it trains, and listed. Nothing here needs jax, except `environment` when called.

`metrics.jsonl` in it holds every number logged; `read_metrics` and `pandas.read_json(path, lines=True)` read it.
"""

from assay.runs.directory import FORMAT, RunDirectory, Session, create, default_root, open_run
from assay.runs.facts import environment
from assay.runs.index import Summary, summaries
from assay.runs.metrics import MetricsStore, read_metrics, truncate_after

__all__ = [
    "FORMAT",
    "MetricsStore",
    "RunDirectory",
    "Session",
    "Summary",
    "create",
    "default_root",
    "environment",
    "open_run",
    "read_metrics",
    "summaries",
    "truncate_after",
]

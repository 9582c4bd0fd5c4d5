"""The catalogue of plugins: what installed distributions offer, imported only when it is named."""

from assay.registry.catalogue import Entry, entries, find, load, temporary
from assay.registry.contract import REQUIRED, Parameter, parameters, produces

__all__ = ["REQUIRED", "Entry", "Parameter", "entries", "find", "load", "parameters", "produces", "temporary"]

"""Assay: an experiment is a gin file; every part of it is a plugin; every result can be checked."""

__version__ = "0.1.0"

"""Exporters of Assay: from a checkpoint to an artifact that runs without Assay."""

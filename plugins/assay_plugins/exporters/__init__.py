"""Exporter plugins: models in the layouts of other libraries."""

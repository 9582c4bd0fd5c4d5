"""Importer plugins: models that other libraries trained."""

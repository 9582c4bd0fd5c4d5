"""Bayesian models: NumPyro programs, and what variational inference and sampling share."""

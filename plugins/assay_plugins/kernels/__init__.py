"""Implementations of assay_kernels' ops that are plain jax, for any device."""

"""Accelerator kernels of Assay. Depends on jax alone and imports nothing else of Assay."""

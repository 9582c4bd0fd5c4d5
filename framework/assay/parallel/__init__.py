"""Logical axis names, the mesh, and the rules between them."""

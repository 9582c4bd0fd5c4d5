"""Logical axes to device meshes."""

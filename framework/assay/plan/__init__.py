"""What would happen, before any device memory is used: shapes, shardings, bytes, FLOPs, steps."""

"""Transform plugins: what is done to trained weights when a model is exported."""

"""What `assay plugin new` writes: one working plugin of each kind, here under the names MyPlugin and my_plugin."""

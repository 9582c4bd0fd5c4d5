"""Conformance kits: what a plugin of each kind must do, as named checks. See docs/guide/plugins.md."""

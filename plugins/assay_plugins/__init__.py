"""The plugins that ship with Assay. Each is found through the entry points of pyproject.toml, like anybody's."""

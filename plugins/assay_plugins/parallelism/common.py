"""What all parallelism plugins share: the check of their mesh sizes."""

from collections.abc import Mapping


def checked_mesh(sizes: Mapping[str, int]) -> None:
    """Raise ValueError unless every size is at least 1 or -1, and at most one is -1."""
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise ValueError(f"{name} = {size}: must be at least 1, or -1 for all remaining devices")
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise ValueError(
            f"{' and '.join(rest)} are -1: only one size can be all remaining devices; give the others a number"
        )

"""From the patterns that users write to the files that they mean."""

from collections.abc import Sequence
from pathlib import Path

from assay.errors import DataError, did_you_mean


def expand(patterns: str | Sequence[str]) -> list[Path]:
    """The files that the patterns match (`**` for any depth, `~` for home), sorted, each once.

    Raises DataError for a pattern that matches none.
    """
    found: set[Path] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern).expanduser()
        matches = [path] if path.exists() else Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        files = {match for match in matches if match.is_file()}
        if not files:
            near = did_you_mean(path.name, [other.name for other in path.parent.glob("*")])
            raise DataError(f"no file matches '{pattern}' (the working directory is {Path.cwd()}).{near}")
        found |= files
    return sorted(found)

"""Text from Hugging Face's `datasets` library: data sets of its hub, local files, or what `save_to_disk` wrote."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from assay.data import cache
from assay.data.text import TextDataset
from assay.errors import DataError, did_you_mean

SPLITS: Mapping[str, str] = MappingProxyType({"train": "train", "validation": "validation"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class HFDatasets(TextDataset):
    """Each row's text is one document. Options of all text datasets (tokenizer, context, packing, stride): see `TextDataset`.

    path: a data set's name; the name of a file format ("json", "parquet", "csv", "text") with data_files; or a folder that
        `save_to_disk` wrote. config: the name of its configuration, where it has several.
    data_files: the library's split name -> files, for formats.
    splits: our split name -> the library's; for all but saved folders it may be a slice, such as "train[:95%]".
    text_field: the column that holds the text.
    """

    path: str
    config: str | None = None
    data_files: Mapping[str, str] | None = None
    splits: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(SPLITS))
    text_field: str = "text"

    def __post_init__(self) -> None:
        """Raise ValueError when there is nothing to train on."""
        super().__post_init__()
        if "train" not in self.splits:
            raise ValueError(f"splits = {dict(self.splits)}: must name a split for 'train'")

    def corpus(self) -> "ColumnCorpus":
        """The columns found. Raises DataError when the library or the data is not there, and when the column is not text."""
        tables = {ours: self._table(theirs) for ours, theirs in self.splits.items()}
        for table in tables.values():
            if self.text_field not in table.column_names:
                raise DataError(
                    f"{self.path} has no column '{self.text_field}'; its columns are {', '.join(table.column_names)}. "
                    f"Set text_field.{did_you_mean(self.text_field, table.column_names)}"
                )
            if table.features[self.text_field].dtype not in ("string", "large_string"):
                raise DataError(f"column '{self.text_field}' of {self.path} is not text; set text_field to one that is")
        return ColumnCorpus(tables, self.text_field)

    def _table(self, split: str) -> Any:
        library = _library()
        try:
            if _is_saved(Path(self.path).expanduser()):
                return self._saved(library, split)
            files = None if self.data_files is None else dict(self.data_files)
            return library.load_dataset(self.path, self.config, data_files=files, split=split)
        except DataError:
            raise
        except Exception as error:  # the library raises many kinds, its own and those of network and file formats
            raise DataError(
                f"cannot load split '{split}' of {self.path}: {type(error).__name__}: {error}; check path, config and splits, and "
                "the network where it must be downloaded"
            ) from error

    def _saved(self, library: Any, split: str) -> Any:
        found = library.load_from_disk(str(Path(self.path).expanduser()))
        tables = found if isinstance(found, dict) else {"train": found}
        if split not in tables:
            raise DataError(
                f"{self.path} has no split '{split}'; it has {', '.join(tables)}.{did_you_mean(split, tables)}"
            )
        return tables[split]


@dataclasses.dataclass(frozen=True)
class ColumnCorpus:
    """One column of the library's tables, by split. Rows without text are passed over."""

    tables: Mapping[str, Any]
    column: str

    @property
    def splits(self) -> Sequence[str]:
        """The names of the splits."""
        return tuple(self.tables)

    def documents(self, split: str) -> Iterator[str]:
        """The texts of a split in the table's order."""
        for rows in self.tables[split].select_columns([self.column]).iter(batch_size=1000):
            yield from (text for text in rows[self.column] if text)

    def fingerprint(self) -> str:
        """Digest of the texts by split."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        found = {split: cache.digest(table._fingerprint) for split, table in self.tables.items()}
        return cache.digest("hf", self.column, *(part for item in found.items() for part in item))


def _is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _library() -> Any:
    try:
        import datasets  # an optional dependency, and seconds to import
    except ImportError as error:
        raise DataError("the `datasets` package is not installed: pip install 'assay[hf]'") from error
    return datasets

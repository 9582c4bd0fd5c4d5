"""Reads networks of NumPy archives: arrays w0, b0, w1, b1, … of a multilayer perceptron with relu between the layers."""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
from assay.errors import ConfigError, DataError
from assay.imported import Imported


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyPlugin:
    """An .npz file with a matrix `w<i>` (inputs, outputs) and a vector `b<i>` (outputs,) for each layer, as model.mlp's parameters."""

    def read(self, path: Path) -> Imported:
        """The lines that configure model.mlp, and its parameters. Raises DataError, ConfigError."""
        try:
            with np.load(path, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read: {error}; give an .npz file") from error
        count = len(arrays) // 2
        if set(arrays) != {f"{kind}{i}" for kind in "wb" for i in range(count)} or not count:
            raise ConfigError(
                f"{path} has {', '.join(sorted(arrays))}; it must have w0, b0, w1, b1, … and nothing else"
            )
        hidden = tuple(int(arrays[f"w{i}"].shape[1]) for i in range(count - 1))
        names = [*(f"layers/{i}" for i in range(count - 1)), "head"]
        parameters = {f"{name}/kernel": arrays[f"w{i}"].astype(np.float32) for i, name in enumerate(names)}
        parameters |= {f"{name}/bias": arrays[f"b{i}"].astype(np.float32) for i, name in enumerate(names)}
        return Imported(f"experiment.model = @model.mlp()\nmodel.mlp.hidden = {hidden}\n", parameters)

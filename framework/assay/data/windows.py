"""Windows over one stream of tokens: at every offset for training, side by side for evaluation."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int64

from assay.data.tokens import Tokens

IGNORED = -1
"""The target of a position that must not count."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """Window i reads `context` tokens from i * stride on, and has the tokens one further as targets. A Source.

    ragged: also take the windows that reach past the end, down to one target. With stride = context every token of the stream but
    the first is then the target of exactly one position; the rest of the last window is input 0, target IGNORED.
    """

    tokens: Tokens
    context: int
    stride: int
    ragged: bool

    def __len__(self) -> int:
        targets = len(self.tokens.stream) - 1
        if self.ragged:
            return max(0, -(-targets // self.stride))
        return max(0, (targets - self.context) // self.stride + 1)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {name: values[0] for name, values in self.gather(np.asarray([index])).items()}

    def gather(self, indices: Int64[np.ndarray, " rows"]) -> dict[str, Any]:
        """`inputs` and `targets`, int32 (rows, context), of the windows at `indices`."""
        stream = self.tokens.stream
        places = (indices * self.stride)[:, None] + np.arange(self.context + 1)[None, :]
        if not self.ragged:
            found = stream[places].astype(np.int32)
            return {"inputs": found[:, :-1], "targets": found[:, 1:]}
        there = places < len(stream)
        found = stream[np.minimum(places, len(stream) - 1)].astype(np.int32)
        real = there[:, 1:]  # an input counts only when the token after it is there to be predicted
        return {"inputs": np.where(real, found[:, :-1], 0), "targets": np.where(real, found[:, 1:], IGNORED)}

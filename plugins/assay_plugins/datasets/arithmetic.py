"""Sums with answers that a program can check: a task for objectives that learn from rewards and preferences."""

import dataclasses

import numpy as np

from assay.data import cache
from assay.data.arrays import Arrays
from assay.data.corpus import checked_split
from assay.data.spec import ArraySpec, DataSpec
from assay_plugins.tokenizers.char import CharEncoder

ALPHABET = "+0123456789="
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Every sum of two numbers up to `top`, written with a fixed number of digits, one character a token: "3+9=12".

    Examples, all int32: `prompt`, "3+9="; `answer`, "12"; `inputs` and `targets`, prompt and answer as a language model reads them,
    targets -1 within the prompt; `rejected_inputs` and `rejected_targets`, the same with a wrong answer.

    top: the largest number. held_out: share of the sums that only "validation" has; with 0 both splits have all of them.
    seed: of the division and of the wrong answers.
    """

    top: int = 9
    held_out: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        if not 1 <= self.top <= 999:
            raise ValueError(f"top = {self.top}: must be from 1 to 999")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out = {self.held_out}: must be at least 0 and less than 1")

    def spec(self) -> DataSpec:
        """The lengths, and the twelve characters."""
        prompt, answer = 2 * self._digits + 2, self._answer_digits
        row = ArraySpec((prompt + answer - 1,), "int32")
        names = ("inputs", "targets", "rejected_inputs", "rejected_targets")
        return DataSpec(
            {
                "prompt": ArraySpec((prompt,), "int32"),
                "answer": ArraySpec((answer,), "int32"),
                **dict.fromkeys(names, row),
            },
            vocab_size=len(ALPHABET),
            encoder=CharEncoder(ALPHABET),
        )

    def source(self, split: str) -> Arrays:
        """The sums of "train" or "validation"."""
        checked_split(split, SPLITS)
        a, b = (x.reshape(-1) for x in np.mgrid[: self.top + 1, : self.top + 1])
        generator = np.random.Generator(np.random.PCG64(self.seed))
        order = generator.permutation(len(a))
        wrong = (a + b + generator.integers(1, 2 * self.top + 1, len(a))) % (2 * self.top + 1)
        held = round(len(a) * self.held_out)
        rows = order if not held else order[:held] if split == "validation" else order[held:]
        return Arrays(self._arrays(a[rows], b[rows], wrong[rows]))

    def fingerprint(self) -> str:
        """Digest of the settings, which decide everything."""
        return cache.digest("arithmetic-1", self.top, self.held_out, self.seed)

    @property
    def _digits(self) -> int:
        return len(str(self.top))

    @property
    def _answer_digits(self) -> int:
        return len(str(2 * self.top))

    def _arrays(self, a: np.ndarray, b: np.ndarray, wrong: np.ndarray) -> dict[str, np.ndarray]:
        """All elements, of sums a + b and wrong answers."""
        encode = CharEncoder(ALPHABET).encode
        prompt = np.stack([encode(f"{x:0{self._digits}}+{y:0{self._digits}}=") for x, y in zip(a, b, strict=True)])
        arrays = {"prompt": prompt}
        for prefix, values in (("", a + b), ("rejected_", wrong)):
            answer = np.stack([encode(f"{x:0{self._answer_digits}}") for x in values])
            whole = np.concatenate([prompt, answer], axis=1)
            targets = np.where(np.arange(1, whole.shape[1]) >= prompt.shape[1], whole[:, 1:], -1)
            arrays |= {f"{prefix}inputs": whole[:, :-1], f"{prefix}targets": targets.astype(np.int32)}
            if not prefix:
                arrays["answer"] = answer
        return arrays

"""What an artifact is compared with its model on: real examples, and random ones over the corners of every dynamic dimension."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from assay.exported import OUTPUT, TOKENS, Exported, Runner, Signature

Kind = Literal["forward", "prefill", "decode", "steps"]
MOST_NUMBERS = 1 << 26  # of one case's output; the batch of larger ones is halved
PROMPT, STEPS = 8, 128
SHORT = 16  # tokens of the real row that an artifact keeps


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of the whole model, and what the artifact is asked with them; the live model always computes forward.

    kind: forward; prefill of all tokens; decode of the last one after a prefill of the others; steps, one token after another from
    `prompt` on. sizes: of the dims. Of decode and steps the outputs at the last positions count, those that decode gives.
    real: rows of the evaluation split, or tokens that go on from one.
    """

    label: str
    kind: Kind
    inputs: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]
    prompt: int = 0
    real: bool = False

    def of_live(self, output: Any) -> np.ndarray:
        """The part of the live output that the artifact must give."""
        found = np.asarray(output)
        if self.kind == "decode":
            return found[:, -1:]
        return found[:, self.prompt - 1 :] if self.kind == "steps" else found


def played(run: Runner, case: Case, signatures: Mapping[str, Signature]) -> np.ndarray:
    """What the artifact gives for a case."""
    if case.kind == "forward":
        return run("forward", case.inputs)[OUTPUT]
    tokens, cache = case.inputs[TOKENS], empty(signatures["decode"], case.sizes)
    if case.kind == "prefill":
        return run("prefill", {TOKENS: tokens, **cache})[OUTPUT]
    before = tokens.shape[1] - 1 if case.kind == "decode" else case.prompt
    parts = []
    if before:
        found = run("prefill", {TOKENS: tokens[:, :before], **cache})
        cache = {name: found[name] for name in cache}
        parts.append(found[OUTPUT][:, -1:])
    for place in range(before, tokens.shape[1]):
        found = run("decode", {TOKENS: tokens[:, place : place + 1], "position": np.asarray(place, np.int32), **cache})
        cache = {name: found[name] for name in cache}
        parts.append(found[OUTPUT])
    return np.concatenate(parts[-1:] if case.kind == "decode" else parts, axis=1)


def empty(signature: Signature, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The caches before the first token: zeros."""
    tensors = {name: signature.inputs[name] for name in signature.donated}
    dtypes = {name: "float32" if t.dtype == "bfloat16" else t.dtype for name, t in tensors.items()}
    return {name: np.zeros(t.at(sizes), dtypes[name]) for name, t in tensors.items()}


def greedy(
    run: Runner, prompt: np.ndarray, steps: int, signatures: Mapping[str, Signature], sizes: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(the prompt (batch, tokens) with `steps` tokens more, each the likeliest that the artifact gives; the outputs that they are of)."""
    cache, tokens, found, outputs = empty(signatures["decode"], sizes), prompt, dict[str, np.ndarray](), []
    for place in range(prompt.shape[1], prompt.shape[1] + steps):
        last = {TOKENS: tokens[:, -1:], "position": np.asarray(place - 1, np.int32)}
        found = run("decode", {**last, **cache}) if found else run("prefill", {TOKENS: prompt, **cache})
        cache = {name: found[name] for name in cache}
        outputs.append(found[OUTPUT][:, -1:])
        chosen = np.argmax(outputs[-1][:, 0], axis=-1).astype(np.int32)
        tokens = np.concatenate([tokens, chosen[:, None]], axis=1)
    return tokens, np.concatenate(outputs, axis=1)


def cases(source: Exported, seed: int = 0) -> Iterator[Case]:
    """Real rows for every program, then the corners of each; `steps` are made with `greedy`."""
    rng = np.random.default_rng(seed)
    forward = source.program("forward").signature
    yield from _real(forward, source)
    for sizes in _corners(forward, source):
        yield Case(_label("forward", sizes), "forward", _drawn(forward, sizes, source.examples, rng), sizes)
    if not can_decode(source):
        return
    for sizes in _corners(source.program("prefill").signature, source):
        yield Case(_label("prefill", sizes), "prefill", _tokens(forward, sizes, rng), sizes)
    for sizes in _corners(source.program("decode").signature, source):
        length = min(sizes.get("cache", 5), source.dims["seq"].high)
        yield Case(_label("decode", sizes), "decode", _tokens(forward, {**sizes, "seq": length}, rng), sizes)


def _real(forward: Signature, source: Exported) -> Iterator[Case]:
    """All rows there are, then one row, short enough to be kept in the artifact, for every program."""
    rows = min(len(next(iter(source.examples.values()))), source.dims["batch"].high if "batch" in forward.dims else 1)
    most = {n: rows if n == "batch" else source.dims[n].high for n in forward.dims}
    yield Case("real examples", "forward", _drawn(forward, most, source.examples, None), most, real=True)
    least = {n: source.dims[n].low if n == "batch" else min(SHORT, source.dims[n].high) for n in forward.dims}
    if least != most:
        yield Case("a real row", "forward", _drawn(forward, least, source.examples, None), least, real=True)
    if can_decode(source):
        tokens = _with_places(forward, _drawn(forward, least, source.examples, None)[TOKENS])
        sizes = {
            n: source.dims[n].high if n == "cache" else least[n] for n in ("batch", "seq", "cache") if n in source.dims
        }
        for kind in ("prefill", "decode"):
            yield Case(f"{kind} of a real row", kind, tokens, sizes, real=True)


def steps_case(source: Exported, run: Runner) -> tuple[Case, np.ndarray] | None:
    """Up to STEPS greedy tokens of two rows of real text, as far as the cache goes, and what the artifact gave for them.

    None for a model that does not decode.
    """
    if not can_decode(source):
        return None
    signatures = {p.name: p.signature for p in source.programs}
    most = source.dims["cache" if "cache" in source.dims else "seq"].high
    prompt = source.examples[TOKENS][: source.dims["batch"].high][:2, : min(PROMPT, max(1, most // 2))]
    steps = min(STEPS, most - prompt.shape[1], source.dims["seq"].high - prompt.shape[1])
    sizes = {"batch": prompt.shape[0], "cache": most}
    tokens, outputs = greedy(run, prompt, steps, signatures, sizes)
    inputs = _with_places(source.program("forward").signature, tokens[:, :-1])
    return Case(f"{steps} greedy tokens", "steps", inputs, sizes, prompt.shape[1], real=True), outputs


def can_decode(source: Exported) -> bool:
    """Whether there are prefill and decode, and forward has a dynamic sequence to compare them with."""
    return {"prefill", "decode"} <= {p.name for p in source.programs} and "seq" in source.program(
        "forward"
    ).signature.dims


def _corners(signature: Signature, source: Exported) -> Iterator[dict[str, int]]:
    """The corners, the batch halved where the output would be too large."""
    seen = []
    for sizes in signature.sizes(source.dims):
        numbers = math.prod(n if isinstance(n, int) else sizes.get(n, 1) for n in signature.outputs[OUTPUT].shape)
        while numbers > MOST_NUMBERS and sizes.get("batch", 1) > 1:
            numbers, sizes["batch"] = numbers // 2, sizes["batch"] // 2
        if sizes not in seen:
            seen.append(sizes)
            yield sizes


def _drawn(
    signature: Signature, sizes: Mapping[str, int], examples: Mapping[str, np.ndarray], rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """Inputs of these sizes from real rows: as they are without `rng`, else floats with noise and bounded integers drawn anew."""
    found = {}
    for name, tensor in signature.inputs.items():
        array = examples[name]
        for axis, size in enumerate(tensor.at(sizes)):
            array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
        if rng is not None and isinstance(tensor.below, int):
            array = rng.integers(0, tensor.below, array.shape).astype(array.dtype)
        elif rng is not None and array.dtype.kind == "f":
            array = (array + 0.3 * np.std(array) * rng.normal(size=array.shape)).astype(array.dtype)
        found[name] = array
    return found


def _tokens(forward: Signature, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    below = forward.inputs[TOKENS].below
    assert isinstance(below, int)
    return _with_places(forward, rng.integers(0, below, (sizes["batch"], sizes["seq"])).astype(np.int32))


def _with_places(forward: Signature, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Tokens of one document from its start, with whatever else forward reads of them."""
    known = {
        TOKENS: tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
    }
    return {name: known[name] for name in forward.inputs}


def _label(program: str, sizes: Mapping[str, int]) -> str:
    return " ".join([program, *(f"{name}={size}" for name, size in sizes.items())])

"""Speed of exported artifacts: a Llama of 32M parameters (float32) as ONNX and StableHLO, against torch and against live JAX.

    python benchmarks/export_speed.py                        # makes the artifact, two minutes
    python benchmarks/export_speed.py --artifact llama32m    # made there once, and used again

All have the same weights, which are random: torch reads the Hugging Face layout of the artifact. Each side is a process that stays; in
every round each is asked in turn for a prefill of 128 tokens and for decode steps at several contexts, at batch 1, after a pause (another
runtime's threads wait for work for a while) and one call that is not counted. Results are medians over rounds, ratios those of the
rounds' ratios. The floor is the time to read the weights of a step once; what attention itself costs is the time to
read the cache once, at the same rate.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from assay import config, devices, registry
from assay.data.arrays import Arrays
from assay.data.spec import ArraySpec, DataSpec
from assay.kinds import Exporter

VOCAB, CACHE, SMALL_CACHE = 8192, 1024, 128
LAYERS, KV_HEADS, HEAD_DIM, GROUP = 8, 4, 64, 2
PREFILL, CONTEXTS, NEAR, FAR = 128, (64, 512, 1024), 64, 960
PAUSE = 0.03
FORMATS, LIVE, TORCH = ("onnx", "stablehlo"), "live", ("eager", "sdpa", "sdpa_static")
FASTER, MILLISECONDS, CONTEXT_COST, SLACK = 1.2, 7.0, 1.1, 0.05
EXPERIMENT = f"""
experiment.dataset = @dataset.random_tokens()
experiment.objective = @objective.next_token()
experiment.model = @model.transformer()
model.transformer.layers = {LAYERS}
model.transformer.width = 512
model.transformer.heads = {KV_HEADS * GROUP}
model.transformer.kv_heads = {KV_HEADS}
model.transformer.mlp_width = 1408
experiment.parallelism = @parallelism.data_parallel()
parallelism.data_parallel.data = 1
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-3
experiment.trackers = []
experiment.steps = 1
experiment.batch_size = 1
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomTokens:
    """Rows of random ids: nothing here depends on what the model says."""

    def spec(self) -> DataSpec:
        """Rows as long as the largest cache."""
        row = ArraySpec((CACHE,), "int32")
        return DataSpec({"inputs": row, "targets": row}, vocab_size=VOCAB, units_per_example=CACHE, unit="tokens")

    def source(self, split: str) -> Arrays:
        """The same two rows for every split."""
        tokens = np.random.default_rng(0).integers(0, VOCAB, (2, CACHE + 1), np.int32)
        return Arrays({"inputs": tokens[:, :-1], "targets": tokens[:, 1:]})

    def fingerprint(self) -> str:
        """Of the seed."""
        return "0"


def live_model() -> Any:
    """The network with its initial parameters, the same each time, as assay_export.live.Live."""
    import jax

    from assay.plan.plan import make_plan
    from assay.train.state import initial_variables
    from assay_export.live import Live

    with registry.temporary("dataset", "random_tokens", RandomTokens):
        loaded = config.load_text(EXPERIMENT, "llama32m.gin")
        plan = make_plan(loaded.experiment, loaded.where, jax.devices()[:1])
    return Live(plan, initial_variables(plan.experiment, plan.network))


def make_artifact(directory: Path) -> None:
    """The model in all three formats, without a gate: the test suite has that."""
    from assay_export import artifact
    from assay_export.onnx.exporter import ONNX
    from assay_export.programs import exported
    from assay_export.stablehlo.exporter import StableHLO
    from assay_plugins.exporters.hf import HF

    live = live_model()
    source = exported(live.plan, live.variables, live.examples(2), {"run": "none", "step": 0}, max_batch=2)
    exporters: dict[str, Exporter] = {
        "stablehlo": StableHLO(platforms=("cpu",)),
        "onnx": ONNX(),
        "hf": HF(tokenizer=False),
    }
    with artifact.new(directory) as place:
        artifact.fill(place, source, exporters, {"tokenizer": None})


class Ours:
    """A format of the artifact, or the live model, asked as torch_llama.py is."""

    def __init__(self, side: str, directory: Path) -> None:
        from assay_export import bench, manifest, run
        from assay_export.bench_sides import decoding
        from assay_export.named import exporter_of

        content = manifest.read(directory)
        self._signatures = {name: manifest.signature_of(content, name) for name in ("prefill", "decode")}
        self._bench, self._states = bench, dict[Any, dict[str, Any]]()
        if side == LIVE:
            step = decoding(live_model())
            self._call: Any = lambda program, inputs: step(inputs)
        else:
            self._call = run.load(directory, side, exporter_of(content, side).loader())

    def ask(self, do: str, tokens: int, cache: int) -> None:
        """One call, to the end of it; the cache that it gives goes into the next one."""
        key = do, tokens, cache
        if key not in self._states:
            sizes = {"batch": 1, "cache": cache} | ({"seq": tokens} if do == "prefill" else {})
            setting = self._bench.Setting(do, sizes, tokens if do == "decode" else None)
            self._states[key] = dict(self._bench.inputs_of(setting, self._signatures[do]))
        state = self._states[key]
        found = self._call(do, state)
        np.asarray(found["output"])
        state |= {name: found[name] for name in self._signatures[do].donated}


def serve(side: str, directory: Path) -> int:
    """Answer lines of JSON until standard input ends, as torch_llama.py does."""
    if side == LIVE:
        devices.configure()
    ours = Ours(side, directory)
    print(json.dumps(f"{len(os.sched_getaffinity(0))} processors"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        do, tokens, cache = asked["do"], asked["tokens"], asked.get("cache", CACHE)
        ours.ask(do, tokens, cache)
        found = []
        for _ in range(asked["calls"]):
            start = time.perf_counter()
            ours.ask(do, tokens, cache)
            found.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(found), flush=True)
    return 0


class Side:
    """A process that is asked."""

    def __init__(self, name: str, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        print(f"{name}: {self._answer()}", flush=True)

    def ask(self, do: str, tokens: int, cache: int = CACHE, *, calls: int) -> float:
        """Milliseconds of a call, the median of some."""
        assert self._process.stdin is not None
        time.sleep(PAUSE)
        self._process.stdin.write(json.dumps({"do": do, "tokens": tokens, "cache": cache, "calls": calls}) + "\n")
        self._process.stdin.flush()
        return statistics.median(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended with status {self._process.wait()}; its message is above")
        return json.loads(line)


def floor(directory: Path) -> tuple[float, float]:
    """(milliseconds to read what a step reads of the weights, GB/s), by as many threads as there are processors."""
    from assay_export.weights import Weights

    size = sum(w.nbytes for path, w in Weights(directory / "weights").items() if path != "tokens/embedding")
    threads = len(os.sched_getaffinity(0))
    parts = np.array_split(np.ones(size // 4, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        best = min(_seconds(lambda: list(pool.map(np.max, parts))) for _ in range(9))
    return 1e3 * best, size / best / 1e9


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> int:
    """Measure in turns; 0 when all targets hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--artifact", type=Path, help="where the artifact is, or is made (default: a temporary directory)"
    )
    parser.add_argument(
        "--torch-python",
        type=Path,
        default=Path(__file__).parent.parent / ".venv-parity" / "bin" / "python",
        help="an interpreter with torch and transformers (default: that of `make .venv-parity/.ready`)",
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=20, help="decode steps of a turn; a prefill turn has three calls")
    parser.add_argument("--serve", choices=[*FORMATS, LIVE], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.artifact)
    with tempfile.TemporaryDirectory() as temporary:
        directory = args.artifact or Path(temporary, "artifact")
        if not directory.exists():
            make_artifact(directory)
        return compare(directory, args.torch_python, args.rounds, args.calls)


def compare(directory: Path, torch_python: Path, rounds: int, calls: int) -> int:
    """Start the sides, ask them in turns, and print what was found."""
    script = Path(__file__).absolute()
    commands = {s: [sys.executable, str(script), "--artifact", str(directory), "--serve", s] for s in (*FORMATS, LIVE)}
    if torch_python.exists():
        other = script.with_name(
            "torch_llama.py"
        )  # -P: transformers would import our kernels.py, beside it, as a package of its own
        commands |= {
            s: [str(torch_python), "-P", str(other), s, str(directory / "hf"), "--cache", str(CACHE)] for s in TORCH
        }
    else:
        print(f"torch is left out: there is no {torch_python}; `make .venv-parity/.ready` makes it", flush=True)
    sides = {name: Side(name, command) for name, command in commands.items()}
    found: dict[tuple[str, str], list[float]] = {}
    read, speed = [], []
    for number in range(rounds):
        for name, side in sides.items():
            asked = {f"decode {c}": side.ask("decode", c, calls=calls) for c in (*CONTEXTS, FAR)}
            asked["prefill"] = side.ask("prefill", PREFILL, calls=3)
            if name in FORMATS or name == LIVE:
                asked["small"] = side.ask("decode", NEAR, SMALL_CACHE, calls=calls)
            for what, milliseconds in asked.items():
                found.setdefault((name, what), []).append(milliseconds)
        milliseconds, rate = floor(directory)
        read.append(milliseconds)
        speed.append(rate)
        shown = ", ".join(f"{name} {found[name, 'decode 512'][-1]:.2f}" for name in sides)
        print(f"  round {number}: decode at 512 in ms: {shown}; load {os.getloadavg()[0]:.1f}", flush=True)
    for side in sides.values():
        side.close()
    return judged(found, list(sides), statistics.median(read), statistics.median(speed))


def judged(found: Mapping[tuple[str, str], list[float]], sides: list[str], read: float, speed: float) -> int:
    """Print medians and results; 0 when all targets hold."""
    middle = {key: statistics.median(values) for key, values in found.items()}
    for name in sides:
        steps = ", ".join(f"{middle[name, f'decode {c}']:.2f} at {c}" for c in CONTEXTS)
        tokens = ", ".join(f"{1e3 / middle[name, f'decode {c}']:.0f}" for c in CONTEXTS)
        print(f"{name}: prefill of {PREFILL} {middle[name, 'prefill']:.1f} ms; decode {steps} ms ({tokens} tokens/s)")
    print(f"floor: {read:.2f} ms to read the weights of a step once, at {speed:.1f} GB/s")
    mean = {name: statistics.fmean(middle[name, f"decode {c}"] for c in CONTEXTS) for name in sides}
    best = min(FORMATS, key=lambda name: mean[name])
    largest = max(middle[best, f"decode {c}"] for c in CONTEXTS)
    context = _ratio(found[best, f"decode {FAR}"], found[best, f"decode {NEAR}"])
    more = statistics.median(a - b for a, b in zip(found[best, f"decode {NEAR}"], found[best, "small"], strict=True))
    size = 2 * LAYERS * KV_HEADS * (CACHE - SMALL_CACHE) * HEAD_DIM * np.dtype(np.float32).itemsize
    known = size / speed / 1e6
    allowed = SLACK * middle[best, "small"]
    held = [largest < MILLISECONDS, context <= CONTEXT_COST, more - known <= allowed]
    print(f"fastest of the formats: {best}; to read a cache of {CACHE} rather than {SMALL_CACHE} once: {known:.2f} ms")
    for name in (LIVE, *(s for s in TORCH if s in sides)):
        ratios = [_ratio(found[name, f"decode {c}"], found[best, f"decode {c}"]) for c in CONTEXTS]
        shown = ", ".join(f"{r:.2f} x at {c}" for r, c in zip(ratios, CONTEXTS, strict=True))
        print(
            f"{best} against {name}: decode {shown}, prefill {_ratio(found[name, 'prefill'], found[best, 'prefill']):.2f} x"
        )
    if set(TORCH) <= set(sides):
        rival = min(TORCH, key=lambda name: mean[name])
        faster = min(_ratio(found[rival, f"decode {c}"], found[best, f"decode {c}"]) for c in CONTEXTS)
        print(f"result: export_decode_vs_torch {faster:.3f} x, least over contexts, of {rival} (target >= {FASTER})")
        held.append(faster >= FASTER)
    else:
        print("result: export_decode_vs_torch not measured, without torch")
        held.append(False)
    print(f"result: export_decode_ms {largest:.2f} ms, most over contexts (target < {MILLISECONDS})")
    print(
        f"result: export_decode_context {context:.3f} x, {FAR} against {NEAR} tokens in one cache (target <= {CONTEXT_COST})"
    )
    print(
        f"result: export_decode_cache {more - known:.2f} ms beyond reading it, for a cache of {CACHE} rather than {SMALL_CACHE} "
        f"(target <= {allowed:.2f}, {SLACK:.0%} of a step)"
    )
    return 0 if all(held) else 1


def _ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


if __name__ == "__main__":
    sys.exit(main())

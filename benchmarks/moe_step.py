"""The training step of a transformer with experts, by three ways to their products: grouped_matmul, lax.ragged_dot, every expert for
every token.

    python benchmarks/moe_step.py                              # a size for the device that is there
    python benchmarks/moe_step.py --size large --json moe.json

One process; each way is compiled, and runs the same steps from the same parameters in turns, after one that is not counted. A ratio is
the median of the rounds' ratios. Memory is the temporary memory of the compiled step. ragged_dot takes the place of the op's own
implementations, so that nothing else differs. On a Hopper GPU the target is a third of ragged_dot's time; elsewhere there is none.
Needs jax, flax and optax only.
"""

# ruff: noqa: E402 - what takes jaxtyping's place comes before the imports that need it
import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bare
import jax
import jax.numpy as jnp
import optax

bare.without_jaxtyping()

from assay.data.spec import ArraySpec, DataSpec
from assay.network import make_network
from assay_kernels import current_target, force, recording
from assay_kernels.grouped_matmul import OP, Options
from assay_plugins.models.transformer import Transformer

TARGET = 3.0
APART = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the model and its batch."""

    layers: int
    width: int
    mlp_width: int
    experts: int
    chosen: int
    rows: int
    context: int
    dtype: str
    vocab: int = 512


SIZES = {
    "small": Size(2, 256, 704, 8, 2, 4, 128, "float32"),
    "medium": Size(4, 512, 1408, 16, 2, 8, 256, "float32"),
    "large": Size(4, 2048, 1408, 32, 4, 8, 2048, "bfloat16", vocab=32000),
}


@OP.register("ragged_dot", supports=lambda target, *arguments: None, priority=-1)
def ragged_dot(x: jax.Array, w: jax.Array, group_sizes: jax.Array, options: Options) -> jax.Array:
    """The op as jax has it."""
    kernel = w.swapaxes(1, 2) if options.transpose_w else w
    return jax.lax.ragged_dot(x, kernel, group_sizes, preferred_element_type=options.result(x))


class Way:
    """One way: its compiled step, what it trains, and seconds and losses of its steps."""

    def __init__(self, size: Size, dispatch: Any, implementation: str | None) -> None:
        spec = ArraySpec((size.context,), "int32")
        data = DataSpec({"inputs": spec, "targets": spec}, vocab_size=size.vocab)
        model = Transformer(
            layers=size.layers,
            width=size.width,
            heads=max(1, size.width // 128),
            mlp_width=size.mlp_width,
            experts=size.experts,
            experts_per_token=size.chosen,
            expert_dispatch=dispatch,
        )
        network = make_network(model, data)
        optimizer = optax.adamw(1e-3)
        params, _ = jax.jit(network.init)(jax.random.key(0))
        self.state = params, optimizer.init(params)
        tokens = jax.random.randint(jax.random.key(1), (size.rows, size.context + 1), 0, size.vocab)
        self.batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
        step = jax.jit(step_of(network, optimizer, size.dtype))
        with (
            force(grouped_matmul=implementation) if implementation else contextlib.nullcontext(),
            recording() as choices,
        ):
            self.program = step.lower(self.state, self.batch).compile()
        self.ran = sorted({f"{c.op}.{c.implementation}" for c in choices}) or ["einsum"]
        self.seconds: list[float] = []
        self.losses: list[float] = []

    @property
    def megabytes(self) -> float:
        """Temporary memory of the program."""
        found: Any = self.program.memory_analysis()
        return float(found.temp_size_in_bytes) / 2**20

    def step(self, count: bool) -> None:
        """Train one step."""
        began = time.perf_counter()
        self.state, loss = self.program(self.state, self.batch)
        self.losses.append(float(loss))
        if count:
            self.seconds.append(time.perf_counter() - began)


def step_of(network: Any, optimizer: Any, dtype: str) -> Callable[..., Any]:
    """(state, batch) -> (state, loss): parameters and the optimizer in fp32, the network in `dtype`."""

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = network.merge(params, {}, dtype)(batch, train=True).astype(jnp.float32)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]))

    def step(state: Any, batch: Any) -> Any:
        params, slots = state
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, slots = optimizer.update(gradients, slots, params)
        return (optax.apply_updates(params, updates), slots), value

    return step


def main() -> int:
    """Train in turns and print the ratios; 0 when the first losses agree and the target holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, help="default: large on a GPU, else small")
    parser.add_argument("--way", action="append", help="of grouped, ragged_dot, dense; all without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write all figures")
    args = parser.parse_args()
    name = args.size or ("large" if current_target().platform == "cuda" else "small")
    wanted = {"grouped": ("grouped", None), "ragged_dot": ("grouped", "ragged_dot"), "dense": ("dense", None)}
    ways = {k: Way(SIZES[name], *wanted[k]) for k in args.way or wanted}
    for i in range(args.rounds + 1):
        for k in list(ways)[:: -1 if i % 2 else 1]:
            ways[k].step(i > 0)
    for k, way in ways.items():
        spread = f"{min(way.seconds):.4f} to {max(way.seconds):.4f}"
        print(f"  {k:10s} {statistics.median(way.seconds):.4f} s ({spread}), {way.megabytes:.1f} MiB, {way.ran}")
    met = [reported(name, k, ways["grouped"], way) for k, way in ways.items() if k != "grouped"]
    if args.json:
        row = {"size": name, **dataclasses.asdict(SIZES[name]), "target": str(current_target()), "jax": jax.__version__}
        row["ways"] = {
            k: {"seconds": w.seconds, "losses": w.losses, "mib": w.megabytes, "ran": w.ran} for k, w in ways.items()
        }
        args.json.write_text(json.dumps(row, indent=1) + "\n")
    return 0 if all(met) else 1


def reported(size: str, name: str, ours: Way, other: Way) -> bool:
    """Print how another way compares; whether the targets hold."""
    ratio = statistics.median(b / a for a, b in zip(ours.seconds, other.seconds, strict=True))
    apart, most = abs(ours.losses[0] / other.losses[0] - 1), APART[SIZES[size].dtype]
    bound = TARGET if name == "ragged_dot" and current_target().is_hopper else None
    goal = "no target" if bound is None else f"target >= {bound}"
    print(f"result: moe_step_{size}_vs_{name} {ratio:.2f} x as fast ({goal})")
    print(
        f"result: moe_step_{size}_memory_vs_{name} {other.megabytes / ours.megabytes:.2f} x less temp memory (no target)"
    )
    print(f"result: moe_step_{size}_loss_vs_{name} {apart:.1e} relative, first step (target <= {most})")
    return apart <= most and (bound is None or ratio >= bound)


if __name__ == "__main__":
    sys.exit(main())

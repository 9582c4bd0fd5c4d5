"""benchmarks/kernels.py: what a row holds, what a claim says, and that one failure does not end a run. An op stands in for real ones."""

import dataclasses
import functools
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay_kernels import H100, H200, Target, timing
from assay_kernels.benching import Bar, apart

FILE = Path(__file__).parents[2] / "benchmarks" / "kernels.py"


@dataclasses.dataclass(frozen=True)
class Shape:
    rows: int
    on: tuple[str, ...] = ("cpu", "gpu")

    @property
    def flops(self) -> int:
        return 2 * self.rows * 64 * 64

    @property
    def bytes(self) -> int:
        return 4 * self.rows * 128

    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return jax.ShapeDtypeStruct((self.rows, 64), jnp.float32), jax.ShapeDtypeStruct((64, 64), jnp.float32)

    def arguments(self) -> tuple[jax.Array, ...]:
        return jnp.ones((self.rows, 64)), jnp.eye(64)


def fails(x: jax.Array, w: jax.Array) -> jax.Array:
    raise RuntimeError("no such algorithm\nand more")


def contenders(shape: Shape) -> dict[str, Any]:
    ours = {"product": lambda x, w: x @ w, "twice": lambda x, w: x @ w @ w}
    return ours | ({"broken": fails} if shape.rows == 8 else {})


BARS = (
    Bar("small", "product", 1e9, "TFLOP/s"),
    Bar("small", "product", 1e9, "x", ("twice",)),
    Bar("small", "product", 0.0, "x less memory", ("twice",)),
    Bar("broken", "broken", 1.0, "TB/s"),
)


@pytest.fixture
def kernels(monkeypatch) -> Any:
    """The script as a module, with an op `fake` alone."""
    specification = importlib.util.spec_from_file_location("kernels_benchmark", FILE)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "kernels_benchmark", module)
    specification.loader.exec_module(module)
    bench = types.ModuleType("assay_kernels.fake.bench")
    shapes = {"small": Shape(16), "broken": Shape(8), "for a gpu": Shape(4, ("gpu",))}
    bench.SHAPES, bench.BARS, bench.contenders = shapes, BARS, contenders
    monkeypatch.setitem(sys.modules, "assay_kernels.fake.bench", bench)
    monkeypatch.setattr(module, "benched", lambda: ["fake"])
    monkeypatch.setattr(timing, "SAMPLE", 0.002)
    monkeypatch.setattr(timing, "CACHE", 20_000)
    return module


def run(kernels: Any, monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["kernels.py", *arguments])
    return kernels.main()


def test_rows_and_claims_on_this_device(kernels, monkeypatch, tmp_path, capsys) -> None:
    path = tmp_path / "kernels.json"
    assert run(kernels, monkeypatch, "--shape", "small", "--rounds", "3", "--json", str(path)) == 0
    found = json.loads(path.read_text())
    assert found["complete"]
    assert found["versions"]["jax"] == jax.__version__
    row = found["rows"][0]
    assert (row["op"], row["shape"], row["contender"]) == ("fake", "small", "product")
    assert row["arguments"] == ["float32[16,64]", "float32[64,64]"]
    assert (row["method"], len(row["seconds"]), row["flops"], row["bytes"]) == ("call", 3, 131072, 8192)
    assert row["temp_bytes"] >= 0
    assert found["rows"][1]["apart"] < 1e-6
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("result: ")]
    assert lines == found["results"]
    assert lines[0].startswith("result: fake_small_product 0.")
    assert lines[0].endswith(" TFLOP/s, product (bar >= 1000000000.0 on an H200; not asked of this device)")
    assert " x as fast as twice, product (bar" in lines[1]
    assert lines[1].startswith("result: fake_small_product_ratio ")
    assert lines[2].startswith("result: fake_small_memory ")
    assert lines[2].endswith(" x less temp memory than twice, product (target >= 0.0)")


def test_a_contender_that_fails_is_reported_and_the_others_are_measured(kernels, monkeypatch, tmp_path, capsys) -> None:
    path = tmp_path / "kernels.json"
    assert run(kernels, monkeypatch, "--shape", "broken", "--rounds", "1", "--json", str(path)) == 1
    rows = {row["contender"]: row for row in json.loads(path.read_text())["rows"]}
    assert rows["broken"]["error"] == "RuntimeError: no such algorithm\nand more"
    assert len(rows["product"]["seconds"]) == len(rows["twice"]["seconds"]) == 1
    assert "broken               FAILED RuntimeError: no such algorithm\n" in capsys.readouterr().out


def test_an_unfinished_file_is_gone_on_with(kernels, monkeypatch, tmp_path, capsys) -> None:
    path = tmp_path / "kernels.json"
    run(kernels, monkeypatch, "--memory-only", "--json", str(path))
    whole = json.loads(path.read_text())
    assert whole["done"] == ["fake small", "fake broken", "fake for a gpu"]
    assert not any("seconds" in row for row in whole["rows"])
    path.write_text(json.dumps(whole | {"complete": False, "done": whole["done"][:1]}))
    capsys.readouterr()
    run(kernels, monkeypatch, "--memory-only", "--json", str(path))
    out = capsys.readouterr().out
    assert "which has 1 shapes" in out
    assert "fake small:" not in out
    again = json.loads(path.read_text())
    assert [(r["shape"], r["contender"]) for r in again["rows"]] == [
        (r["shape"], r["contender"]) for r in whole["rows"]
    ]
    run(kernels, monkeypatch, "--memory-only", "--json", str(path))  # a whole one is measured anew
    assert "fake small:" in capsys.readouterr().out


def test_what_is_for_a_gpu_is_only_compiled_here(kernels, monkeypatch, capsys) -> None:
    assert run(kernels, monkeypatch, "--shape", "for a gpu") == 0
    out = capsys.readouterr().out
    assert "MiB" in out
    assert " ms (" not in out


def test_on_a_gpu_calls_are_chained_and_shares_of_the_ceilings_are_printed(
    kernels, monkeypatch, tmp_path, capsys
) -> None:
    monkeypatch.setattr(kernels, "current_target", lambda: H200)
    monkeypatch.setattr(timing, "copy_bandwidth", lambda: 4e12)
    monkeypatch.setattr(timing, "product_rate", lambda: 8e14)
    monkeypatch.setattr(timing, "tap_seconds", lambda: 1e-6)
    path = tmp_path / "kernels.json"
    assert (
        run(kernels, monkeypatch, "--shape", "small", "--rounds", "2", "--json", str(path)) == 1
    )  # the bars are asked
    found = json.loads(path.read_text())
    assert found["ceilings"]["bandwidth"] == 4e12
    row = found["rows"][0]
    assert (row["method"], row["argument_sets"], len(row["seconds"])) == ("chain", 3, 2)
    assert row["calls"] >= 2 * 3
    assert row["seconds"] == [pytest.approx(max(one - 1e-6, one / 2)) for one in row["with_tap"]]
    out = capsys.readouterr().out
    assert "% of ceiling" in out
    assert "product (target >= 1000000000.0)" in out


@pytest.mark.parametrize(("device", "asked"), [(H200, True), (H100, False), (Target("cpu", "cpu"), False)])
def test_bars_are_asked_of_an_h200(kernels, device: Target, asked: bool) -> None:
    rows = {"ours": {"seconds": [2e-9, 1e-9, 3e-9]}, "theirs": {"seconds": [4e-9, 4e-9, 4e-9]}, "failed": {}}
    claim = functools.partial(kernels.claim, "fake", shape=Shape(16), rows=rows, device=device, measured=True)
    rate = claim(bar=Bar("small", "ours", 60.0, "TFLOP/s"))
    assert (rate["value"], rate["holds"], rate["asked"]) == (pytest.approx(131072 / 2e-9 / 1e12), True, asked)
    ratio = claim(bar=Bar("small", "ours", 2.5, "x", ("theirs", "failed", "not here")))
    assert (ratio["value"], ratio["holds"]) == (pytest.approx(2.0), False)
    assert not claim(bar=Bar("small", "failed", 1.0, "TB/s"))["holds"]
    assert not claim(bar=Bar("small", "ours", 1.0, "x", ("failed",)))["holds"]
    assert "no figure" in kernels.line(claim(bar=Bar("small", "failed", 1.0, "TB/s")))


def test_a_chain_calls_as_often_as_it_says_and_leaves_its_arguments_as_they_are() -> None:
    calls = []
    x, w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 64)), jnp.float32), jnp.eye(64)

    def counted(x: jax.Array, w: jax.Array) -> jax.Array:
        jax.debug.callback(lambda total: calls.append(float(total)), jnp.sum(x @ w))
        return x @ w

    sets = [(x, w), (x + 1, w), (x + 2, w)]
    moving, fixed = timing.divided(sets)
    after = jax.block_until_ready(timing.chain(counted, 4)(moving, fixed))
    jax.effects_barrier()
    assert len(calls) == 12
    assert np.allclose(sorted(set(calls)), sorted(float(jnp.sum(a)) for a, _ in sets))
    for (a, _), b in zip(sets, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_buffers_are_more_than_the_cache_holds(monkeypatch) -> None:
    monkeypatch.setattr(timing, "CACHE", 10_000)
    sets = timing.buffer_sets((jnp.ones(1000), jnp.ones(0)))
    assert len(sets) == 3
    assert len({x.unsafe_buffer_pointer() for x, _ in sets}) == 3
    assert (
        len(timing.buffer_sets((jnp.ones(1000),), touched=2000)) == 5
    )  # a call that does not read all of its arguments
    assert len(timing.buffer_sets((jnp.ones(1),))) == timing.MOST_SETS
    monkeypatch.setattr(timing, "MOST_BYTES", 9000)
    assert len(timing.buffer_sets((jnp.ones(1000),))) == 2


def test_what_raises_while_it_is_timed_is_left_out() -> None:
    failed = []

    def fails() -> float:
        raise RuntimeError("lost")

    found = timing.in_turns(
        {"good": lambda: 1.0, "bad": fails}, 3, lambda name, error: failed.append((name, str(error)))
    )
    assert found == {"good": [1.0] * 3}
    assert failed == [("bad", "lost")]


def test_how_far_results_are_apart() -> None:
    a = jnp.asarray([3.0, 4.0, jnp.inf])
    assert apart([a, jnp.ones(0)], [a, jnp.ones(0)]) == 0.0
    assert apart(a, a.at[0].set(3.5)) == pytest.approx(0.5 / np.hypot(3.5, 4.0), rel=1e-5)
    assert apart(a, a.at[2].set(1.0)) == float("inf")

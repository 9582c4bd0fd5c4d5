"""What the ops offer to `python -m assay_kernels.tune`: configurations compile for an H200, ptxas is heard, and tables can hold them."""

import dataclasses
import importlib
import json

import pytest

from assay_kernels import H200, for_target, tune
from assay_kernels.aot import compile_for_h200
from assay_kernels.benching import benched

pytest.importorskip("jax_cuda13_plugin", reason="needs XLA's CUDA compiler: run `make sass`")

BENCHES = {op: importlib.import_module(f"assay_kernels.{op}.bench") for op in benched()}
TUNABLES = [(op, how) for op, bench in BENCHES.items() for how in getattr(bench, "TUNABLE", {})]


@pytest.mark.parametrize(("op", "how"), TUNABLES)
def test_a_tunable_is_as_the_tuner_takes_it(op: str, how: str) -> None:
    bench = BENCHES[op]
    tunable = bench.TUNABLE[how]
    with for_target(H200):
        spaces = {name: tunable.space(shape) for name, shape in bench.SHAPES.items()}
        keys = [tunable.key(bench.SHAPES[name]) for name, space in spaces.items() if space]
    name, space = next((name, space) for name, space in spaces.items() if space)
    assert all(set(tunable.exact) <= set(key) for key in keys)
    assert json.loads(json.dumps(keys)) == [dict(key) for key in keys]
    assert len(set(map(str, space))) == len(space)
    config = space[0]
    assert dataclasses.replace(config, **json.loads(json.dumps(dataclasses.asdict(config)))) == config
    shape = bench.SHAPES[name]
    with tune.overheard() as said:
        compile_for_h200(tunable.run(shape, config), *shape.abstract())
    assert tune.SPILLS.findall(said()), "ptxas said nothing of the kernel"

"""A run says which kernels it chose, keeps them in its record, and does not train with others."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import pytest

from assay import config, registry
from assay.errors import ConfigError, RunError
from assay.plan.plan import make_plan
from assay.train.kernels import Kernels
from assay.train.launch import start
from assay_kernels import Op, compat
from assay_kernels.linear_cross_entropy.vjp import chunked

EXPERIMENT = """
experiment.model = @model.transformer()
model.transformer.layers = 1
model.transformer.width = 16
model.transformer.heads = 2
experiment.dataset = @dataset.arithmetic()
experiment.objective = @objective.next_token()
objective.next_token.fused_head = {fused}
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = @schedule.constant()
schedule.constant.peak = 1e-3
experiment.parallelism = @parallelism.data_parallel()
experiment.trackers = []
experiment.steps = 3
experiment.steps_per_dispatch = 2
experiment.batch_size = 8
experiment.evaluate_every = 3
experiment.checkpoint_every = 3
"""


@pytest.mark.parametrize("fused", ["'auto'", "None"])
def test_a_run_prints_and_records_its_kernels(fused: str, tmp_path, capsys) -> None:
    finished = start(config.load_text(EXPERIMENT.format(fused=fused), "small.gin"), tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kernel ")]
    (session,) = finished.run.record()["sessions"]
    assert session["exit"] == "completed"
    assert {kernel["op"] for kernel in session["kernels"]} >= {"attention", "rms_norm"}
    lines = [line for line in lines if "linear_cross_entropy" in line]
    kernels = [kernel for kernel in session["kernels"] if kernel["op"] == "linear_cross_entropy"]
    if fused == "None":
        assert (lines, kernels) == ([], [])
        return
    (line,) = lines  # one, though there are programs of two steps and of one
    assert "linear_cross_entropy: chunked (auto) for cpu, float32[" in line
    (kernel,) = kernels
    assert (kernel["op"], kernel["implementation"], kernel["how"]) == ("linear_cross_entropy", "chunked", "auto")
    assert kernel["refused"] == {}


def test_a_kernel_that_was_chosen_and_does_not_run_is_an_error() -> None:
    op, kernels = Op("doubled", lambda x: x + x), Kernels(print)
    with pytest.raises(RunError, match="doubled: reference was chosen, but is not in the program"):
        kernels.compiled(jax.jit(lambda x: (op(jnp.sin(x)), x)[1]), jnp.ones(3))
    assert kernels.choices == []


def test_what_an_inner_function_chose_earlier_is_recorded_as_well() -> None:
    """jit traces it once in a process, such as when the plan counted operations."""
    op, lines = Op("doubled", lambda x: x + x), []
    inner, kernels = jax.jit(op), Kernels(lines.append)
    inner(jnp.ones(5))
    kernels.compiled(jax.jit(lambda x: inner(x)), jnp.ones(5))
    assert [c.op for c in kernels.choices] == ["doubled"]
    assert len(lines) == 1


def test_a_kernel_that_nobody_chose_is_an_error() -> None:
    def smuggled(x: jax.Array) -> jax.Array:
        with compat.tagged(assay_kernel="smuggled.fast"):
            return x * 3

    with pytest.raises(RunError, match="smuggled: fast is in the program, but was not chosen"):
        Kernels(print).compiled(jax.jit(smuggled), jnp.ones(5))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine:
    """A kernel plugin. priority: auto takes the highest."""

    op: ClassVar[str] = "linear_cross_entropy"
    name: str = "mine"
    priority: int = 90

    def supports(self, target: Any, x: Any, *others: Any) -> str | None:
        return None if x.ndim == 2 else "takes two dimensions"

    def __call__(self, *arguments: Any) -> Any:
        return chunked(*arguments)


@pytest.mark.parametrize("priority", [90, 1])
def test_an_experiment_names_further_kernels(priority: int, tmp_path, capsys) -> None:
    text = (
        EXPERIMENT.format(fused="'auto'")
        + f"experiment.kernels = [@kernel.mine()]\nkernel.mine.priority = {priority}\n"
    )
    with registry.temporary("kernel", "mine", Mine):
        loaded = config.load_text(text, "small.gin")
        finished = start(loaded, tmp_path)
    (session,) = finished.run.record()["sessions"]
    chosen = [k["implementation"] for k in session["kernels"] if k["op"] == "linear_cross_entropy"]
    assert chosen == ["mine" if priority == 90 else "chunked"]
    assert finished.run.record()["plugins"]["kernel.mine"]
    capsys.readouterr()


def test_a_name_that_is_taken_is_found_before_anything_runs() -> None:
    text = EXPERIMENT.format(fused="'auto'") + "experiment.kernels = [@kernel.mine()]\nkernel.mine.name = 'chunked'\n"
    with registry.temporary("kernel", "mine", Mine):
        loaded = config.load_text(text, "small.gin")
        with pytest.raises(
            ConfigError, match=r"experiment.kernels \(small.gin:\d+\): linear_cross_entropy has an impl"
        ) as error:
            make_plan(loaded.experiment, loaded.where)
    assert "'chunked' already; choose another name" in str(error.value)


def test_the_count_of_operations_does_not_depend_on_the_kernels() -> None:
    counts = {
        make_plan(config.load_text(EXPERIMENT.format(fused=f), "small.gin").experiment).flops_per_step
        for f in ("'auto'", "None")
    }
    assert len(counts) == 1

"""What each transform does to weights, and that programs go on computing with them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay import config
from assay.data.spec import DataSpec
from assay.errors import ExportError
from assay.exported import Exported, Program, Signature
from assay.plan.plan import make_plan
from assay_export.programs import exported
from assay_export.transforms.cast import Cast
from assay_export.transforms.int4 import Int4
from assay_export.transforms.int8 import Int8
from assay_export.transforms.lora_merge import LoRAMerge
from assay_export.transforms.matrices import Matrix, matrices
from assay_export.transforms.prune import Prune
from assay_kernels.quant_matmul import dequantize, quantize

EXPERIMENT = """
experiment.model = @model.transformer()
model.transformer.layers = 2
model.transformer.width = 32
model.transformer.heads = 4
model.transformer.kv_heads = 2
model.transformer.mlp_width = 48
experiment.dataset = @dataset.python_stdlib()
dataset.python_stdlib.tokenizer = @tokenizer.bytes()
dataset.python_stdlib.context = 16
experiment.objective = @objective.next_token()
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-3
experiment.parallelism = @parallelism.data_parallel()
parallelism.data_parallel.data = 1
experiment.steps = 1
experiment.batch_size = 1
experiment.trackers = []
"""
LORA = """
experiment.model = @model.lora()
model.lora.model = @model.transformer()
model.lora.rank = 3
model.lora.targets = ['query', 'attention/out', 'mlp/up']
"""
QUERY, OUT, UP = (f"blocks/0/{name}/kernel" for name in ("attention/query", "attention/out", "mlp/up"))


def source_of(text: str) -> Exported:
    """Programs of a checkpoint in which every variable is random."""
    plan = make_plan(config.load_text(text).experiment)
    rng = np.random.default_rng(0)
    draw = lambda tree: jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), tree)
    variables = (draw(plan.network.params), draw(plan.network.frozen), draw(plan.network.stats))
    row = {name: np.zeros((1, *spec.shape), spec.dtype) for name, spec in plan.spec.elements.items()}
    return exported(plan, variables, row, {"run": "test"})


@pytest.fixture(scope="module")
def source() -> Exported:
    return source_of(EXPERIMENT)


@pytest.fixture(scope="module")
def adapted() -> Exported:
    return source_of(EXPERIMENT.replace("experiment.model = @model.transformer()", LORA))


def called(found: Exported, name: str = "forward") -> Any:
    """The program's outputs for fixed random inputs."""
    program, rng = found.program(name), np.random.default_rng(1)
    sizes = {"batch": 2, "seq": 8, "cache": 12}
    inputs = {}
    for key, tensor in program.signature.inputs.items():
        shape = tensor.at(sizes)
        whole = np.issubdtype(np.dtype(tensor.dtype), np.integer)
        inputs[key] = rng.integers(0, 8, shape).astype(tensor.dtype) if whole else np.zeros(shape, tensor.dtype)
    return jax.jit(program.function)(dict(found.weights), inputs)["output"]


def off(found: Exported, source: Exported) -> float:
    """Relative norm of the difference of forward's outputs."""
    one, two = called(found), called(source)
    return float(jnp.linalg.norm(one - two) / jnp.linalg.norm(two))


def size(found: Exported) -> int:
    return sum(w.nbytes for w in found.weights.values())


TRANSFORMS = [Cast(), Cast(dtype="float16"), Int8(), Int4(group=16), Prune(), Prune(pattern="2:4")]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_programs_keep_names_and_signatures_and_the_source_its_weights(source: Exported, transform: Any) -> None:
    before = {path: w.copy() for path, w in source.weights.items()}
    found = transform.apply(source)
    assert [(p.name, p.signature) for p in found.programs] == [(p.name, p.signature) for p in source.programs]
    assert all(np.array_equal(before[path], w) for path, w in source.weights.items())
    for program in found.programs:
        one, two = called(found, program.name), called(source, program.name)
        assert one.dtype == two.dtype
        assert one.shape == two.shape
        assert np.isfinite(one).all()
        assert not np.array_equal(one, two)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_cast_rounds_what_is_stored_and_computes_as_before(source: Exported, dtype: Any, bound: float) -> None:
    found = Cast(dtype=dtype).apply(source)
    assert {str(w.dtype) for w in found.weights.values()} == {dtype}
    assert size(found) * 2 == size(source)
    rounded = {path: np.asarray(jnp.asarray(w, dtype).astype(np.float32)) for path, w in source.weights.items()}
    assert np.array_equal(called(found), called(dataclasses.replace(source, weights=rounded)))
    assert 0 < off(found, source) < bound


def test_a_program_sees_weights_of_the_dtype_that_it_was_written_for() -> None:
    seen = Program("forward", lambda weights, inputs: {"output": weights["kernel"] / 3}, Signature({}, {}))
    kernel = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4)
    bare = Exported(None, DataSpec({}), [seen], {}, {"kernel": kernel}, {}, {})
    for transform in (Cast(), Cast(dtype="float16"), Int8(), Int4(group=6)):
        (program,) = transform.apply(bare).programs
        output = program.function(transform.apply(bare).weights, {})["output"]
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, kernel / 3, atol=0.03)


def test_a_weight_too_large_for_float16_is_said(source: Exported) -> None:
    weights = {**source.weights, QUERY: source.weights[QUERY] * 1e6}
    found = Cast(dtype="float16").apply(dataclasses.replace(source, weights=weights))
    assert found.notes[-1] == f"cast: {QUERY} has weights that float16 cannot hold"


def test_int8_has_a_scale_for_each_output(source: Exported) -> None:
    found = Int8().apply(source)
    values, scales = found.weights[f"{OUT}/values"], found.weights[f"{OUT}/scales"]
    assert (values.dtype, values.shape, scales.dtype, scales.shape) == (np.int8, (1, 32, 32), np.float32, (1, 32))
    flat = source.weights[OUT].reshape(32, 32)  # heads and their widths are summed over
    np.testing.assert_allclose(scales[0], np.abs(flat).max(axis=0) / 127, rtol=1e-6)
    assert np.abs(values[0] * scales[0] - flat).max() <= scales.max() / 2 * 1.001
    assert found.weights[f"{QUERY}/scales"].shape == (1, 32)
    assert found.weights["tokens/embedding"] is source.weights["tokens/embedding"]
    assert off(found, source) < 0.02


def test_the_program_computes_with_what_the_quantiser_says(source: Exported) -> None:
    for transform, bits, group in ((Int8(), 8, None), (Int4(group=16), 4, 16)):
        weights = dict(source.weights)
        for path, matrix in matrices(source, ()).items():
            kernel = weights[path].reshape(matrix.rows, -1)
            weights[path] = np.asarray(dequantize(quantize(jnp.asarray(kernel), bits=bits, group=group)))
            weights[path] = weights[path].reshape(source.weights[path].shape)
        wanted = called(dataclasses.replace(source, weights=weights))
        np.testing.assert_allclose(called(transform.apply(source)), wanted, rtol=1e-5, atol=1e-5)


def test_int4_in_groups_is_nearer_than_a_scale_for_each_output(source: Exported) -> None:
    fine, coarse = Int4(group=16).apply(source), Int4(group=32).apply(source)
    assert off(fine, source) < off(coarse, source) < 0.4
    assert found_bits(fine) == {np.dtype(np.int32)}
    assert coarse.weights[f"{QUERY}/scales"].shape == (1, 1, 32)


def found_bits(found: Exported) -> set[Any]:
    return {w.dtype for path, w in found.weights.items() if path.endswith("/values")}


def test_kernels_that_a_group_does_not_divide_stay_and_are_named(source: Exported) -> None:
    found = Int4(group=32).apply(source)
    left = [f"blocks/{i}/mlp/down/kernel" for i in range(2)]
    assert list(found.notes[len(source.notes) :]) == [
        f"int4: {path} stays as it is, group = 32 does not divide its 48 inputs" for path in left
    ]
    assert all(found.weights[path] is source.weights[path] for path in left)
    with pytest.raises(ExportError, match=r"group = 128 divides none of their inputs, \[32, 48\]"):
        Int4().apply(source)


def test_parts_can_be_skipped(source: Exported) -> None:
    for transform in (Int8(skip=("head", "mlp/up")), Prune(skip=("head", "mlp/up"))):
        found = transform.apply(source)
        for path in ("head/kernel", UP):
            assert np.array_equal(found.weights[path], source.weights[path])
        assert QUERY not in found.weights or not np.array_equal(found.weights[QUERY], source.weights[QUERY])


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_the_smallest_weights_become_zero(source: Exported, sparsity: float) -> None:
    found = Prune(sparsity=sparsity).apply(source)
    for path in matrices(source, ()):
        new, old = found.weights[path], source.weights[path]
        assert np.mean(new == 0) == sparsity
        assert np.abs(old[new == 0]).max() <= np.abs(new[new != 0]).min()
        assert np.array_equal(new[new != 0], old[new != 0])


def test_two_of_four_inputs_of_each_output_stay(source: Exported) -> None:
    found = Prune(pattern="2:4").apply(source)
    new, old = (x.weights[OUT].reshape(8, 4, 32) for x in (found, source))
    assert (np.sum(new != 0, axis=1) == 2).all()
    for group in range(8):
        for column in range(32):
            kept = np.flatnonzero(new[group, :, column])
            assert set(kept) == set(np.argsort(-np.abs(old[group, :, column]))[:2])


def test_merged_adapters_compute_the_same(adapted: Exported, source: Exported) -> None:
    found = LoRAMerge().apply(adapted)
    assert found.weights.keys() == source.weights.keys()
    assert [(p.name, p.signature) for p in found.programs] == [(p.name, p.signature) for p in adapted.programs]
    for program in adapted.programs:
        one, two = called(found, program.name), called(adapted, program.name)
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(called(adapted) - called(dataclasses.replace(source, weights=_base(adapted)))).max()) > 0.1


def _base(adapted: Exported) -> dict[str, Any]:
    return {path.removeprefix("base/"): w for path, w in adapted.weights.items() if path.startswith("base/")}


def test_a_model_without_adapters_is_refused(source: Exported) -> None:
    with pytest.raises(ExportError, match="lora_merge: Transformer has no adapters"):
        LoRAMerge().apply(source)
    with pytest.raises(ExportError, match="merge with `assay export RUN --transform`"):
        LoRAMerge().apply(dataclasses.replace(source, model=None))


def test_transforms_follow_one_another(adapted: Exported) -> None:
    merged = LoRAMerge().apply(adapted)
    found = Cast().apply(Int8().apply(Prune(pattern="2:4").apply(merged)))
    assert {str(w.dtype) for w in found.weights.values()} == {"int8", "bfloat16"}
    assert size(found) < 0.4 * size(merged)
    assert off(found, Prune(pattern="2:4").apply(merged)) < 0.05


def test_without_the_model_the_first_dimension_counts_as_the_inputs(source: Exported) -> None:
    again = dataclasses.replace(source, model=None)
    assert matrices(again, ()).keys() == matrices(source, ()).keys()
    assert matrices(again, ())[OUT] == Matrix((4, 8, 32), 0, 1)
    assert matrices(source, ())[OUT] == Matrix((4, 8, 32), 0, 2)
    assert off(Int8().apply(again), source) < 0.02


def test_experts_are_matrices_each() -> None:
    weights = {"mlp/gate": np.zeros((3, 8, 12), np.float32), "mlp/router": np.zeros((8, 3), np.float32)}
    bare = Exported(None, DataSpec({}), [], {}, weights, {}, {})
    assert matrices(bare, ()) == {"mlp/gate": Matrix((3, 8, 12), 1, 1)}
    found = Int8().apply(bare).weights
    assert (found["mlp/gate/values"].shape, found["mlp/gate/scales"].shape) == ((3, 8, 12), (3, 12))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Int4(group=0), "group = 0: must be at least 1"),
        (lambda: Prune(sparsity=1.0), r"sparsity = 1\.0: must be between 0 and 1"),
        (lambda: Prune(pattern="2:4", sparsity=0.3), r"sparsity = 0\.3: is 0\.5 with pattern = '2:4'"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

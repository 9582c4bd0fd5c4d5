"""quant_matmul: formats against their definition and ml_dtypes, products against float64, the kernel in the interpreter."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from assay_kernels import H200, ImplementationError, audit, disagreements, for_target, recording
from assay_kernels.aot import custom_calls, lower_for_cuda, lower_gradient_for_cuda
from assay_kernels.quant_matmul import OP, Format, Options, QuantizedWeights, dequantize, mosaic, quant_matmul, quantize
from assay_kernels.quant_matmul.cases import CASES, Draw
from assay_kernels.quant_matmul.formats import packed, unpacked
from assay_kernels.testing import Case, check, errors, exact

FORMATS = [
    (8, None, "int"),
    (4, None, "int"),
    (8, None, "fp8"),
    (4, 128, "int"),
    (4, 32, "int"),
    (8, 64, "int"),
    (8, 192, "fp8"),
]
INTERPRETED = ("int4, rows that fill nothing up", "fp8, groups of 256")  # the others run on a GPU
LONG = Case(Draw(8, (1280, 128)))


@pytest.fixture(autouse=True)
def one_multiprocessor(monkeypatch) -> None:
    """One thread block does all items, in a pipeline so short that every stage is used again; little is interpreted."""
    rule = mosaic.rule
    monkeypatch.setattr(mosaic, "current_target", lambda: dataclasses.replace(H200, cores=1))
    monkeypatch.setattr(mosaic, "rule", lambda *a: dataclasses.replace(rule(*a), stages=2))


def weights_of(bits: int, group: int | None, kind: Any, rows: int = 384) -> tuple[np.ndarray, QuantizedWeights]:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(rows, 24)) * 10.0 ** rng.uniform(-6, 6, (1, 24))
    w[: group or 1, 3] = 0.0
    w = w.astype(np.float32)
    return w, quantize(jnp.asarray(w), bits=bits, group=group, kind=kind)


@pytest.mark.parametrize("how", FORMATS, ids=str)
def test_weights_are_off_by_half_a_step_at_most(how: Any) -> None:
    w, found = weights_of(*how)
    scales = np.asarray(found.scales, np.float64)
    scales = np.repeat(np.atleast_2d(scales), w.shape[0] // np.atleast_2d(scales).shape[0], axis=0)
    off = np.abs(np.asarray(dequantize(found), np.float64) - w)
    step = np.maximum(np.abs(w) / 16, scales * 2.0**-10) if found.format.kind == "fp8" else scales / 2
    assert np.all(off <= step * (1 + 1e-5))
    assert np.all(np.asarray(dequantize(found))[w == 0] == 0)


@pytest.mark.parametrize("how", FORMATS, ids=str)
def test_values_are_rounded_as_ml_dtypes_does(how: Any) -> None:
    w, found = weights_of(*how)
    form = found.format
    scales = np.asarray(found.scales, np.float32)
    scales = np.repeat(np.atleast_2d(scales), w.shape[0] // np.atleast_2d(scales).shape[0], axis=0)
    ratio = np.clip(w / scales, -form.largest, form.largest)
    dtype = ml_dtypes.float8_e4m3fn if form.kind == "fp8" else ml_dtypes.int4 if form.bits == 4 else np.int8
    theirs = (ratio if form.kind == "fp8" else np.rint(ratio)).astype(dtype).astype(np.float32)
    ours = found.values.astype(jnp.float32) if form.group is None else unpacked(found.values, form)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("bits", "kind"), [(4, "int"), (8, "int"), (8, "fp8")])
def test_every_code_is_stored_and_found_again(bits: int, kind: Any) -> None:
    form = Format(bits, 128, kind, (512, 16))
    codes = np.random.default_rng(0).permutation(np.arange(512 * 16) % 2**bits).reshape(512, 16).astype(np.int32)
    if kind == "int":
        codes -= 2 ** (bits - 1)
    true = codes if kind == "int" else codes.astype(np.uint8).view(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(unpacked(packed(jnp.asarray(codes), form), form), np.asarray(true, np.float32))


def test_four_bits_take_four_bits() -> None:
    _, found = weights_of(4, 128, "int", rows=512)
    assert found.values.nbytes == 512 * 24 // 2
    assert found.shape == (512, 24)
    assert len(jax.tree.leaves(found)) == 2


@pytest.mark.parametrize(("bits", "kind"), [(4, "int"), (8, "int"), (8, "fp8")])
def test_the_machine_code_unpacks_every_code(bits: int, kind: Any) -> None:
    """The PTX of the kernel, run here: thread q of four finds the pairs of k that a tensor core takes from it."""
    form = Format(bits, 128, kind, (256, 16))
    codes = np.random.default_rng(0).permutation(np.arange(256 * 16) % 2**bits).reshape(256, 16).astype(np.int32)
    if kind == "int":
        codes -= 2 ** (bits - 1)
    else:
        codes = np.where(codes & 127 == 127, 0, codes)  # NaN, which quantize never makes
    words = np.asarray(packed(jnp.asarray(codes), form))
    values = np.asarray(unpacked(jnp.asarray(words), form)).T  # N, K
    pairs = 4 if bits == 4 else 2
    for q in range(4):
        for t in range(4):
            for p in range(pairs):
                found = ptx(mosaic.unpacking(form, p), words[0, :, 4 * q + t].view(np.uint32))
                k = 8 * (pairs * t + p) + 2 * q
                np.testing.assert_array_equal(found, values[:, k : k + 2])


def ptx(code: str, word: np.ndarray) -> np.ndarray:
    """What a few instructions make of words: pairs of bf16, as fp32."""
    regs: dict[str, Any] = {"$1": word}
    read = lambda name: regs[name] if name in regs else np.full_like(word, int(name, 0))
    halves = lambda x: np.ascontiguousarray(x).view(ml_dtypes.bfloat16).reshape(-1, 2)
    for line in re.findall(r"([a-z][\w.]+) ([^;{}]+);", code):
        name, operands = line[0], [x.strip() for x in line[1].split(",")]
        if name == ".reg" or name.startswith("reg"):
            continue
        a, *rest = (read(x) for x in operands[1:])
        if name == "mov.b32":
            found = a
        elif name == "shr.u32":
            found = a >> rest[0]
        elif name == "and.b32":
            found = a & rest[0]
        elif name == "lop3.b32":
            assert operands[-1] == "0xEA"
            found = (a & rest[0]) | rest[1]
        elif name == "prmt.b32":
            octets = np.stack([a >> s & 255 for s in (0, 8, 16, 24)] + [rest[0] >> s & 255 for s in (0, 8, 16, 24)])
            selector = int(operands[3], 16)
            found = sum(octets[selector >> 4 * i & 7] << np.uint32(8 * i) for i in range(4))
        else:
            both = halves(a), halves(rest[0])
            wide = [x.astype(np.float32) for x in both]
            result = wide[0] - wide[1] if name == "sub.bf16x2" else wide[0] * wide[1]
            assert name in ("sub.bf16x2", "mul.bf16x2"), name
            found = result.astype(ml_dtypes.bfloat16).view(np.uint32).reshape(-1)
        regs[operands[0]] = found.astype(np.uint32)
    return halves(regs["$0"]).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_values_and_gradients_are_those_of_float64(name: str, impl: str) -> None:
    if (impl, name) == ("xla", "int4, 64 rows, fp32 result"):
        with pytest.raises(ImplementationError, match="rounds the weights of int4 in groups of 128 to bfloat16"):
            check(OP, impl, CASES[name])
        return
    check(OP, impl, CASES[name])


@pytest.mark.parametrize("how", FORMATS, ids=str)
def test_the_specification_is_numpys_product_in_float64(how: Any) -> None:
    arguments = Draw(5, (384, 24), *how)(0)
    weights = QuantizedWeights(*arguments[1:3], arguments[3].format)
    x = np.asarray(arguments[0], np.float64)
    true = x @ np.asarray(dequantize(weights, jnp.float32), np.float64)
    (found,), _ = exact(OP, Case(Draw(5, (384, 24), *how)), arguments)
    assert max(errors((found,), (true,))) < 1e-6  # numpy's weights are rounded to fp32, the specification's are not


@pytest.mark.parametrize("name", INTERPRETED)
def test_the_kernel_is_as_exact_as_the_specification(name: str) -> None:
    check(OP, "mosaic", CASES[name], interpret=True)


def test_the_kernel_has_no_race() -> None:
    if tuple(map(int, jax.__version__.split(".")[:2])) < (0, 11):
        print("jax 0.10 sees a part of the races only")
    check(OP, "mosaic", LONG, interpret=True, races=True)


def call(x: jax.Array, values: jax.Array, scales: jax.Array, *, form: Format, impl: str = "mosaic") -> jax.Array:
    return quant_matmul(x, QuantizedWeights(values, scales, form), impl=impl)


def test_value_and_gradient_are_lowered_for_cuda_alone_and_inside_transformations() -> None:
    x, values, scales, options = CASES["int4"].draw(0)
    one = functools.partial(call, form=options.format)
    several = [jnp.stack([v, v]) for v in (x, values, scales)]
    total = lambda x, values: jnp.sum(one(x, values, scales).astype(jnp.float32) ** 2)
    texts = {
        "alone": lower_for_cuda(one, x, values, scales),
        "vmap": lower_for_cuda(jax.vmap(one), *several),
        "scan": lower_for_cuda(lambda *a: jax.lax.scan(lambda _, v: (None, one(*v)), None, a)[1], *several),
        "gradient": lower_gradient_for_cuda(total, x, values),
        "checkpoint": lower_gradient_for_cuda(jax.checkpoint(total), x, values),
    }
    for name, text in texts.items():
        assert custom_calls(text) == ["mosaic_gpu_v2"], name


def test_leading_axes_are_items_and_weights_have_no_gradient() -> None:
    _, weights = weights_of(8, None, "fp8")
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 384)), jnp.float32)
    found, back = jax.vjp(lambda x, weights: quant_matmul(x, weights), x, weights)
    assert found.shape == (2, 3, 24)
    dx, none = back(jnp.ones_like(found))
    assert np.any(dx)
    assert not any(np.any(np.asarray(v, np.float32)) for v in jax.tree.leaves(none) if v.dtype != jax.dtypes.float0)


def test_inside_jit_vmap_scan_and_two_devices() -> None:
    x, values, scales, options = CASES["int4"].draw(0)
    one = functools.partial(call, form=options.format, impl="reference")
    alone = np.asarray(one(x, values, scales), np.float32)
    rows = x.reshape(2, 8, -1)
    ways = {
        "vmap": jax.vmap(lambda x: one(x, values, scales))(rows),
        "scan": jax.lax.scan(lambda _, x: (None, one(x, values, scales)), None, rows)[1],
    }
    for name, found in ways.items():
        np.testing.assert_allclose(np.asarray(found, np.float32).reshape(alone.shape), alone, rtol=1e-2, err_msg=name)
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("rows",))
    specs = {"in_specs": (P("rows"), P(), P()), "out_specs": P("rows"), "check_vma": False}
    divided = jax.jit(jax.shard_map(one, mesh=mesh, **specs))(x, values, scales)
    np.testing.assert_allclose(np.asarray(divided, np.float32), alone, rtol=1e-2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"group": None}, "int4 for each channel: takes groups of"),
        ({"group": 32}, "int4 in groups of 32: takes groups of"),
        ({"dtype": "float32"}, "multiplies bf16 on the tensor cores, x is float32"),
        ({"out_dtype": "float16"}, "writes bf16 or fp32, not float16"),
        ({"rows": 65}, "x has 65 rows: takes 1 to 64"),
        ({"shape": (384, 256)}, r"weights \(384, 256\): K must be a multiple of 256, N of 128"),
    ],
)
def test_the_kernel_says_why_not(change: dict[str, Any], reason: str) -> None:
    arguments = Draw(**({"rows": 4} | change))(0)
    with for_target(H200), pytest.raises(ImplementationError, match=reason):
        OP(*arguments, impl="mosaic")
    with for_target(H200), recording() as choices:
        jax.eval_shape(lambda *a: OP(*a, arguments[3]), *arguments[:3])
    assert choices[0].implementation == "xla"
    assert choices[0].refused[0][0] == "mosaic"


def test_a_cpu_takes_xla_and_the_record_says_why() -> None:
    x, values, scales, options = CASES["int4"].draw(0)
    with recording() as choices:
        program = jax.jit(lambda *a: OP(*a, options)).lower(x, values, scales).compile()
    assert [c.implementation for c in choices] == ["xla"]
    assert choices[0].refused[0][1].startswith("needs a Hopper GPU, this is cpu")
    assert disagreements(choices, audit(program)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w": jnp.ones(3)}, "must be floating point"),
        ({"w": jnp.ones((4, 3), jnp.int8)}, "must be floating point"),
        ({"bits": 3}, "there are int of 8 or 4 bits"),
        ({"bits": 4, "kind": "fp8"}, "there are int of 8 or 4 bits"),
        ({"kind": "nf4"}, "there are int of 8 or 4 bits"),
        ({"group": 3}, "group = 3: must divide w's 4 rows"),
        ({"w": jnp.ones((0, 3))}, "has no elements"),
    ],
)
def test_weights_that_cannot_be_quantised_are_refused_in_words(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        quantize(**({"w": jnp.ones((4, 3))} | arguments))


def test_bad_inputs_are_refused_in_words() -> None:
    weights = quantize(jnp.ones((4, 3)))
    with pytest.raises(TypeError, match="x is int32: must be bf16"):
        quant_matmul(jnp.ones((2, 4), jnp.int32), weights)
    with pytest.raises(ValueError, match=r"x \(2, 5\) and weights \(4, 3\): x must be \(\*items, 4\)"):
        quant_matmul(jnp.ones((2, 5)), weights)
    with pytest.raises(ValueError, match=r"values \(4, 3\) and scales \(1,\) of weights"):
        quant_matmul(jnp.ones((2, 4)), dataclasses.replace(weights, scales=jnp.ones(1)))


def test_these_tests_see_that_scales_are_dropped(monkeypatch) -> None:
    step = mosaic._step

    class Ones:
        def __init__(self, ref: Any) -> None:
            self.ref = ref

        def __getitem__(self, index: Any) -> jax.Array:
            return jnp.ones_like(self.ref[index])

    monkeypatch.setattr(mosaic, "_step", lambda plan, acc, w, x, s, mine: step(plan, acc, w, x, Ones(s), mine))
    with pytest.raises(AssertionError):
        check(OP, "mosaic", Case(Draw(8, (512, 128))), interpret=True)


def test_options_name_the_result() -> None:
    x, values, scales, options = CASES["int4"].draw(0)
    assert options == Options(options.format)
    weights = QuantizedWeights(values, scales, options.format)
    assert quant_matmul(x, weights, out_dtype=jnp.float32).dtype == jnp.float32
    assert quant_matmul(x, weights).dtype == jnp.bfloat16


def test_a_configuration_of_another_shape_is_taken_where_it_fits_alone() -> None:
    form = Format(4, 128, "int", (4096, 4096))
    assert mosaic.fits(16, form, mosaic.Config(8, 1))
    assert not mosaic.fits(22, form, mosaic.Config(8, 1))  # shared memory
    assert not mosaic.fits(16, form, mosaic.Config(3, 1))  # an odd number of stages
    x, weights = jnp.ones((16, 512), jnp.bfloat16), quantize(jnp.ones((512, 128)), bits=4, group=128)
    with for_target(H200), pytest.raises(ValueError, match="an odd number of stages"):
        mosaic.run(x, weights.values, weights.scales, Options(weights.format), mosaic.Config(3, 1))


def test_values_of_another_dtype_than_the_formats_are_refused() -> None:
    weights = quantize(jnp.ones((256, 128)), bits=8)
    wrong = dataclasses.replace(weights, values=weights.values.astype(jnp.int32))
    with pytest.raises(TypeError, match="values are int32"):
        quant_matmul(jnp.ones((1, 256)), wrong)

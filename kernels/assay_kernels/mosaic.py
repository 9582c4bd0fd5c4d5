"""Pallas' Mosaic GPU as every kernel here uses it: one dialect over jax's versions, on a Hopper GPU or in the interpreter on the CPU.

Beside compat.py the only module that knows versions of jax. Kernels import it when they are traced, not before: it takes a quarter of a
second, and who has no GPU needs none of it. A thread is a warpgroup of 128 CUDA threads.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic.interpret import utils as interpreter_utils
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call as interpreter
from jax._src.pallas.mosaic_gpu.interpret import shared_memory as interpreter_memory
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax._src.state.types import TransformedRef, TransposeTransform
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

_interpreted = jax.make_user_context(None)
_PARAMETERS = ("approx_math", "reduction_scratch_bytes", "unsafe_no_auto_barriers")


def kernel(body: Callable[..., None], *, name: str, out_type: Any, **options: Any) -> Callable[..., Any]:
    """plgpu.kernel with Warpgroup semantics; inside `interpreted` it runs on the CPU.

    name: what profilers and the compiled program call it. options: grid, grid_names, cluster, cluster_names, num_threads, thread_name,
    scratch_types, and of plgpu.CompilerParams approx_math, reduction_scratch_bytes, unsafe_no_auto_barriers.
    """
    chosen = {key: options.pop(key) for key in _PARAMETERS if key in options}
    parameters = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup, **chosen)
    if interpreting():
        options["interpret"] = InterpretGPUParams(detect_races=_interpreted.value == "races")
    named = functools.wraps(body)(lambda *refs, **scratch: body(*refs, **scratch))
    named.__name__ = named.__qualname__ = name
    made: Callable[..., Any] = plgpu.kernel(named, out_type=out_type, compiler_params=parameters, **options)
    return made


def layout_cast(x: jax.Array, layout: Any) -> jax.Array:
    """plgpu.layout_cast; the interpreter of jax 0.10 has no rule for it, and needs none."""
    if interpreting():
        return x
    cast: jax.Array = plgpu.layout_cast(x, layout)
    return cast


def iota(shape: tuple[int, ...], dimension: int, layout: Any) -> jax.Array:
    """int32 indices along a dimension."""
    return layout_cast(jax.lax.broadcasted_iota(jax.numpy.int32, shape, dimension), layout)


def transposed(ref: Any) -> Any:
    """A reference with its two axes exchanged, as an operand of wgmma."""
    return ref.transpose((1, 0))


def product(a: Any, b: Any, *, onto: jax.Array | None = None) -> jax.Array:
    """a b on the tensor cores in fp32, added to `onto` in its registers where it is given; waits for the result.

    a: a reference to SMEM or an array in registers, b: a reference, perhaps `transposed`. The interpreters know neither operands in
    registers nor, on jax 0.10, transposed ones: there it is a product of what the references hold.
    """
    shape = (a.shape[0], b.shape[1])
    if interpreting():
        values = [x if isinstance(x, jax.Array) else _held(x) for x in (a, b)]
        found = jax.numpy.dot(*values, preferred_element_type=jax.numpy.float32)
        return found if onto is None else onto + found
    if onto is not None:
        added: jax.Array = pl.run_state(lambda acc: plgpu.wgmma(acc, a, b))(plgpu.WGMMAAccumulatorRef.init(onto))
        return added

    def alone(acc: Any) -> jax.Array:
        plgpu.wgmma(acc, a, b)
        found: jax.Array = acc[...]
        return found

    fresh: jax.Array = pl.run_scoped(alone, plgpu.WGMMAAccumulatorRef(shape, jax.numpy.float32))
    return fresh


def _held(ref: Any) -> jax.Array:
    """What a reference, perhaps transposed, holds; for the interpreter."""
    last = ref.transforms[-1] if isinstance(ref, TransformedRef) else None
    if not isinstance(last, TransposeTransform):
        plain: jax.Array = ref[...]
        return plain
    turned: jax.Array = TransformedRef(ref.ref, ref.transforms[:-1])[...].T
    return turned


def swizzled(width: int, dtype: Any) -> tuple[Any, ...]:
    """The transforms of an SMEM array (rows, width) that TMA copies and wgmma reads: tiles of 8 rows, the widest swizzle that fits."""
    itemsize = jax.numpy.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(width * itemsize * 8)
    return plgpu.TilingTransform((8, swizzle // itemsize)), plgpu.SwizzleTransform(swizzle)


def interpreting() -> bool:
    """Whether Mosaic kernels that are traced now run in the interpreter."""
    return _interpreted.value is not None


@contextlib.contextmanager
def interpreted(*, races: bool = False) -> Iterator[None]:
    """Inside, Mosaic kernels are traced for Pallas' GPU interpreter: they run on the CPU, slowly, in memory that is NaN at first.

    races: also watch for memory that threads and copies use without waiting for one another; RuntimeError at the end where one did (what
    races is seen by jax 0.11 in full, by 0.10 in part). Call what is traced inside, and wait for the result, before the end.
    """
    interpreter.reset_gpu_interpret_mode_state()
    try:
        with _interpreted("races" if races else "yes"), _transposed_operands(), _compiled_once():
            yield
        found = races and interpreter.get_races().races_found
    finally:
        interpreter.reset_gpu_interpret_mode_state()
    if found:
        raise RuntimeError(
            "the interpreter found a race: memory is used that a copy or another thread may still write or read"
        )


@contextlib.contextmanager
def _transposed_operands() -> Iterator[None]:
    """The interpreter of jax 0.10 knows no transposed operand of wgmma: inside, it reads the operand and turns it."""
    if jax.__version_info__ >= (0, 11):
        yield
        return

    class Turned(tuple[Any, ...]):
        """The range of an operand that is transposed after it is read."""

        __slots__ = ()

    range_of, content = interpreter_utils.to_range, interpreter_memory.GPUSharedMemory.get_buffer_content

    def to_range(transforms: Any) -> tuple[Any, ...]:
        kept = [t for t in transforms if not isinstance(t, TransposeTransform)]
        found: tuple[Any, ...] = range_of(kept)
        return Turned(found) if (len(transforms) - len(kept)) % 2 else found

    def get_buffer_content(self: Any, key: Any, rnge: Any, *rest: Any, **options: Any) -> Any:
        value, *others = content(self, key, rnge, *rest, **options)
        return (value.T if isinstance(rnge, Turned) else value, *others)

    interpreter_utils.to_range, interpreter_memory.GPUSharedMemory.get_buffer_content = to_range, get_buffer_content
    try:
        yield
    finally:
        interpreter_utils.to_range, interpreter_memory.GPUSharedMemory.get_buffer_content = range_of, content


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
    """Left to itself the interpreter compiles a kernel anew for each thread of each block: inside, once, which is most of its time."""
    original, lock = thread_map._run_jaxpr, threading.Lock()
    programs: dict[Any, tuple[Any, Any]] = {}  # the jaxprs are kept with them: their ids are not given to others

    def run(jaxpr: Any, constants: Any, *arguments: Any) -> None:
        key = id(jaxpr), *(jax.typeof(x) for x in arguments)
        with lock:
            if key not in programs:
                traced = jax.jit(lambda constants, *arguments: jax.core.eval_jaxpr(jaxpr, constants, *arguments))
                programs[key] = jaxpr, traced.lower(constants, *arguments).compile()
        programs[key][1](constants, *arguments)

    thread_map._run_jaxpr = run
    try:
        yield
    finally:
        thread_map._run_jaxpr = original

"""What a model or an objective may ask of the layout that is active."""

import jax

from assay.parallel.constrain import layout, parts
from assay.parallel.layout import make_layout
from assay_plugins.parallelism.fsdp_tensor import FSDPTensor


def test_the_parts_of_an_axis_are_those_of_the_active_layout() -> None:
    assert parts("batch") == 1
    with layout(make_layout(FSDPTensor(data=2, fsdp=2, tensor=2), jax.devices()[:8]).sharding):
        assert (parts("batch"), parts("act_vocab"), parts("act_embed")) == (4, 2, 1)
    assert parts("batch") == 1

"""What changes a traced program is part of jit's cache key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax.nn import trace
from pyratok_jax.nn.lowering import conv_lowering, current_lowering
from pyratok_jax.nn.partitioning import over_devices
from pyratok_jax.nn.trace import Split, TraceOptions


@pytest.mark.parametrize(
    "changes",
    [
        {"lowering": "tpu"},
        {"pad_lanes": True},
        {"split": Split(("data",))},
        {"height_axis": "rows"},
        {"strips": 2},
    ],
)
def test_a_jitted_function_is_traced_again_under_other_options(changes):
    seen = []

    @jax.jit
    def function(x):
        seen.append(trace.current())
        return x + 1

    x = jnp.zeros(3)
    function(x)
    with trace.override(**changes):
        function(x)
        function(x)
    function(x)
    assert seen == [TraceOptions(), TraceOptions(**changes)]


def test_a_lowering_is_not_taken_from_a_program_of_another():
    @jax.jit
    def name(x):
        return x + {"conv3d": 1.0, "frames": 2.0, "tpu": 3.0}[current_lowering()]

    found = []
    for lowering in ("conv3d", "tpu", "frames", "tpu"):
        with conv_lowering(lowering):
            found.append(float(name(jnp.zeros(()))))
    np.testing.assert_array_equal(found, [1, 3, 2, 3])


def test_contexts_nest_and_end():
    with over_devices(Split(("data",))), conv_lowering("conv3d"):
        assert trace.current() == TraceOptions(lowering="conv3d", split=Split(("data",)))
        with trace.tracing(TraceOptions(strips=4)):
            assert trace.current() == TraceOptions(strips=4)
        assert current_lowering() == "conv3d"
    assert trace.current() == TraceOptions()
    with pytest.raises(ValueError, match="expected one of"):
        conv_lowering("other")

import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.pods.topology import CHIPS, GIBIBYTE, parse_slice


def test_slices_are_read():
    pod = parse_slice("v5p:4x4x4")
    assert (pod.count, pod.name, pod.accelerator_type) == (64, "v5p:4x4x4", "v5p-128")
    assert parse_slice("v5e:16x16").accelerator_type == "v5litepod-256"
    assert parse_slice("v6e:2x4").count == 8


@pytest.mark.parametrize("written", ["v5p", "v4:2x2x1", "v5p:4x4", "v5e:4x4x4", "v5e:0x4", "x"])
def test_other_forms_are_refused(written):
    with pytest.raises(UserError, match="--topology"):
        parse_slice(written)


def test_figures_are_plausible():
    assert set(CHIPS) == {"v5e", "v5p", "v6e"}
    for chip in CHIPS.values():
        assert 15 * GIBIBYTE < chip.memory < 96 * GIBIBYTE
        # A matrix unit does thousands of operations per cycle; memory moves far fewer bytes.
        assert 1e5 < chip.peak / chip.clock < 1e6
        assert 100 < chip.peak / chip.bandwidth < 1000

"""The rules by which arrays are laid out, and full-size configs built without their weights."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import generator
from configs.tpu_v5 import get_config
from pyratok_jax.data.buckets import Bucket, parse_buckets
from pyratok_jax.errors import UserError
from pyratok_jax.nn.partitioning import Split
from pyratok_jax.training.abstract import abstract_batch, abstract_training, count, largest_bucket
from pyratok_jax.training.abstract_generator import abstract_generator
from pyratok_jax.training.distributed.sharding import (
    batch_spec,
    cache_spec,
    height_axis,
    make_mesh,
    parameter_spec,
    parts_of,
    replicated,
    row_groups,
    split_of,
)

SIZES = {"data": -1, "fsdp": 1, "spatial": 1, "tensor": 1, "slices": 1}


def mesh_of(**changes):
    """A mesh over as many abstract devices as the sizes multiply to."""
    sizes = SIZES | {"data": 1} | changes
    device = jax.devices()[0]
    return make_mesh(sizes, [device] * int(np.prod(list(sizes.values()))))


def test_one_size_may_be_left_open():
    mesh = make_mesh(SIZES | {"fsdp": 2}, [jax.devices()[0]] * 8)
    assert dict(mesh.shape) == {"slice": 1, "data": 4, "fsdp": 2, "spatial": 1, "tensor": 1}


@pytest.mark.parametrize("changes", [{"fsdp": 3}, {"fsdp": -1}, {"data": 2}, {"data": 0}])
def test_sizes_that_do_not_fit_the_devices_are_refused(changes):
    with pytest.raises(UserError, match="does not fit 8 devices"):
        make_mesh(SIZES | changes, [jax.devices()[0]] * 8)


def test_large_parameters_are_split_and_small_ones_are_not():
    mesh = mesh_of(fsdp=4, tensor=2)
    assert parameter_spec((3, 3, 3, 96, 384), mesh) == P(None, None, None, "tensor", "fsdp")
    assert parameter_spec((2048, 512), mesh) == P("fsdp", "tensor")
    assert parameter_spec((384,), mesh) == P(None)
    assert parameter_spec((151, 333), mesh) == P(None, None)
    assert parameter_spec((), mesh) == P()


def test_clips_come_before_heights():
    mesh = mesh_of(data=2, fsdp=2, spatial=4)
    everything = ("slice", "data", "fsdp", "spatial")
    assert batch_spec((32, 17, 64, 64, 3), mesh) == P(everything)
    assert batch_spec((32, 128), mesh) == P(everything)
    # Eight clips do not suffice for sixteen devices.
    assert batch_spec((8, 17, 64, 64, 3), mesh) == P(everything[:3], None, "spatial")
    assert batch_spec((8, 128), mesh) == P(everything[:3])
    assert split_of(32, mesh) == Split(("data", "fsdp", "spatial"), None)
    assert split_of(8, mesh) == Split(("data", "fsdp"), "spatial")
    assert split_of(8, mesh_of()) == Split((), None)


@pytest.mark.parametrize(
    ("rows", "most", "parts"), [(128, 8, 8), (32, 8, 2), (16, 8, 1), (8, 8, 2), (4, 8, 1)]
)
def test_a_batch_is_cut_so_that_no_device_is_without_a_clip(rows, most, parts):
    mesh = mesh_of(data=2, fsdp=2, spatial=4)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert parts_of(rows, most) == parts


def test_a_batch_outside_of_any_mesh_is_cut_as_asked():
    assert parts_of(6, 3) == 3


def test_the_full_size_recipe_builds_without_its_weights():
    config = get_config("stage2")
    training = abstract_training(config)
    vae = {n: x for n, x in training.frozen.items() if n.startswith("tokenizer.vae.")}
    language = {n: x for n, x in training.frozen.items() if "language_model" in n}
    assert count(vae) == 126_892_531
    assert count(language) == 3_085_938_688
    assert 50e6 < count(training.state.params) < 70e6
    assert all("adapter" in n or "vae" not in n for n in training.state.params)
    batch = abstract_batch(config, Bucket(17, 512, 512))
    assert batch["video"].shape == (512, 17, 512, 512, 3)
    assert largest_bucket(config).name == "49x2048x2048"


@pytest.mark.parametrize("kind", ["", "-v5e"])
@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_buckets_of_the_recipe_lie_on_its_mesh(stage, kind):
    config = get_config(stage + kind)
    chips = 256 if kind else 64
    mesh = make_mesh(config.mesh, [jax.devices()[0]] * chips)
    split = 0
    for bucket in parse_buckets(config.data.buckets):
        clips = bucket.clips or config.batch_size
        if height_axis(clips, mesh) is None:
            assert clips % chips == 0 and bucket.clips == 0
        else:
            split += 1
            # Whole rows of the coarsest tokens on each chip, clips for every group.
            assert bucket.height % (32 * config.mesh.spatial) == 0
            assert clips % row_groups(mesh) == 0
    assert split


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_no_large_array_of_the_recipe_is_on_every_device(stage):
    config = get_config(stage)
    training = abstract_training(config)
    mesh = mesh_of(**{axis: config.mesh[axis] for axis in ("fsdp", "spatial")})
    flat = jax.tree_util.tree_flatten_with_path(training.state)[0]
    state = {jax.tree_util.keystr(path): x for path, x in flat}
    assert replicated({**training.frozen, **state}, mesh, 2**20) == []


@pytest.mark.parametrize("order", ["blocks", "raster"])
def test_no_large_array_of_a_prior_is_on_every_device(order):
    config = generator.get_config(f"{order}-1b")
    training = abstract_generator(config, get_config("stage1"))
    # v5p:4x4x4.
    mesh = make_mesh(config.mesh, [jax.devices()[0]] * 64)
    flat = jax.tree_util.tree_flatten_with_path(training.state)[0]
    state = {jax.tree_util.keystr(path): x for path, x in flat}
    # Parameters, two moments and averages.
    assert sum(x.size for x in state.values()) > 4 * 1.02e9
    assert replicated({**training.frozen, **state}, mesh, 2**20) == []


def test_key_value_heads_of_a_cache_are_split_over_tensor():
    mesh = mesh_of(data=2, tensor=4)
    everything = ("slice", "data", "fsdp", "spatial")
    assert cache_spec((23, 2, 640, 4, 128), mesh) == P(None, everything, None, "tensor")
    assert cache_spec((23, 2, 640, 3, 128), mesh) == P(None, everything, None, None)


def test_a_large_array_that_no_axis_divides_is_named():
    mesh = mesh_of(fsdp=4)
    shapes = {"odd": (1025, 1023), "even": (1024, 1024), "small": (3, 3)}
    arrays = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    assert replicated(arrays, mesh, 2**20 - 1) == ["odd"]


def test_unknown_published_sizes_are_refused():
    config = get_config("stage1")
    config.model.vae = "wan9"
    with pytest.raises(UserError, match="config.model.vae is 'wan9'"):
        abstract_training(config)

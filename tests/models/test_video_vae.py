"""A second family of video VAEs behind the interface, and the contract of every family."""

import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.models import vae_families
from pyratok_jax.models.cogvideox import COGVIDEOX_2B
from pyratok_jax.models.hunyuan_video import HUNYUAN_VIDEO
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.models.svd import SVD
from pyratok_jax.models.vae_config import VideoVAEConfig
from pyratok_jax.models.vae_families import Family, config_from_dict, config_to_dict
from pyratok_jax.models.video_vae import Encoded, VideoVAE, build_vae
from pyratok_jax.models.wan_vae.config import WAN21, WAN22, WanVAEConfig, tiny
from pyratok_jax.nn.causal_conv import Conv2d
from pyratok_jax.nn.settings import PRESETS


@dataclasses.dataclass(frozen=True)
class PoolConfig(VideoVAEConfig):
    """Single frames in time, three stages that halve the sides; no streaming."""

    family: ClassVar[str] = "pool"
    width: int = 8
    z_dim: int = 4
    latents_mean: tuple[float, ...] = (0.5,) * 4
    latents_std: tuple[float, ...] = (2.0,) * 4

    temporal_factor: ClassVar[int] = 1
    spatial_factor: ClassVar[int] = 8
    stage_strides: ClassVar = ((1, 2), (1, 4), (1, 8))

    @property
    def stage_channels(self):
        return (self.width,) * 3


class PoolVAE(VideoVAE):
    """Mean pooling between pointwise convolutions."""

    def __init__(self, config, *, remat="none", **settings):
        widths = (3, config.width, config.width, config.width)
        self.config = config
        self.encoder = nnx.List(
            [Conv2d(a, b, (1, 1), **settings) for a, b in zip(widths, widths[1:], strict=False)]
        )
        self.moments = Conv2d(config.width, 2 * config.z_dim, (1, 1), **settings)
        self.pixels = Conv2d(config.z_dim, 3, (1, 1), **settings)

    def posterior(self, video, cache=None):
        stages, x = [], video
        for layer in self.encoder:
            b, t, h, w, c = x.shape
            x = layer(x.reshape(b, t, h // 2, 2, w // 2, 2, c).mean((3, 5)))
            stages.append(x)
        return Encoded.of_moments(self.moments(x), tuple(stages))

    def decode(self, z, cache=None):
        return jnp.repeat(jnp.repeat(self.pixels(z), 8, axis=2), 8, axis=3)


@pytest.fixture
def pool(monkeypatch):
    family = Family(PoolConfig, PoolVAE, "pool_vae")
    monkeypatch.setitem(vae_families.FAMILIES, "pool", lambda: family)
    return PoolConfig()


@pytest.mark.parametrize("config", [WAN21, WAN22, tiny()])
def test_files_without_a_family_are_wans(config):
    named = json.loads(json.dumps(config_to_dict(config)))
    assert named.pop("family") == "wan"
    assert config_from_dict(named) == config_from_dict({**named, "family": "wan"}) == config
    with pytest.raises(ValueError, match="'other' is not one of wan"):
        config_from_dict({**named, "family": "other"})


LATER = ("spatial_downsample", "linear_path")


def test_a_checkpoints_hash_covers_what_it_covered_before_there_were_families():
    config = PyraTokConfig(vae=tiny(), surrogate="identity")
    said = json.loads(config.fingerprint())
    # Options that came later are left out where they are not used.
    before = json.loads(json.dumps(dataclasses.asdict(tiny())))
    assert said["vae"] == {k: v for k, v in before.items() if k not in LATER}
    assert PyraTokConfig.from_dict(said) == config
    assert config.to_dict()["vae"]["family"] == "wan"


@pytest.mark.parametrize(
    ("config", "order"),
    [
        (COGVIDEOX_2B, "widths layers groups z_dim time_levels encode_frames"),
        (HUNYUAN_VIDEO, "widths layers groups z_dim time_levels"),
        (SVD, "widths layers z_dim"),
    ],
)
def test_a_checkpoints_hash_covers_the_sizes_in_the_order_of_older_files(config, order):
    found = config_to_dict(config)
    assert list(found) == ["family", *order.split(), "latents_mean", "latents_std"]
    assert config_from_dict(found) == config


def test_default_grids_follow_the_stages(pool):
    assert WAN21.default_grids == ((1, 32), (2, 16), (4, 16), (4, 8))
    assert WAN22.default_grids == ((1, 32), (2, 16), (4, 16), (4, 16))
    assert pool.default_grids == ((1, 16), (1, 16), (1, 8))
    for name, grids in PRESETS.items():
        assert WAN21.preset_grids(name) == grids
    # With 16 pixels in a latent position no level is finer.
    assert WAN22.preset_grids("pyramid") == WAN22.default_grids
    assert WAN22.preset_grids("compact") == PRESETS["compact"]
    with pytest.raises(ValueError, match="'pyramid' has 4 levels, the VAE's encoder has 3 stages"):
        pool.preset_grids("pyramid")
    assert PyraTokConfig(vae=pool).level_stages == (1, 2, 3)


def test_the_rule_of_frames_is_the_familys(pool):
    tiny().check_clip(5, 16, 16)
    with pytest.raises(ValueError, match="frames must be 4k.1, sides multiples of 8"):
        tiny().check_clip(4, 16, 16)
    assert WanVAEConfig(temporal_downsample=(False, False, True)).frames_rule == "2k+1"
    pool.check_clip(4, 16, 16)
    with pytest.raises(ValueError, match="frames must be at least 1, sides multiples of 8"):
        pool.check_clip(4, 16, 12)


def test_a_policy_that_a_family_lacks_is_refused_when_it_is_built(pool):
    with pytest.raises(ValueError, match="remat policy 'convs': expected one of none"):
        build_vae(pool, rngs=nnx.Rngs(0), remat="convs")


def test_the_tokenizer_takes_a_second_family(pool):
    """Of another number of stages and another rule of frames; nothing but the registry names it."""
    config = PyraTokConfig(vae=pool, bits=4, width=8, heads=2, text_width=8, synthesis_width=8,
                           lora_rank=2)  # fmt: skip
    assert PyraTokConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    model = PyraTok(config, rngs=nnx.Rngs(0))
    assert isinstance(model.vae, PoolVAE) and not model.streams
    assert all(layer.adapter is not None for layer in model.vae.encoder)
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 4, 32, 48, 3)), jnp.float32)
    ids = model.tokenize(video)
    assert [level.shape for level in ids] == [(1, 4, 2, 3), (1, 4, 2, 3), (1, 4, 4, 6)]
    assert model.detokenize(ids).shape == video.shape
    with pytest.raises(ValueError, match="sides multiples of 8"):
        model.encode(video[:, :, :20])


@pytest.mark.parametrize("config", [tiny(), tiny(is_residual=False)])
def test_shapes_are_those_that_the_sizes_announce(config):
    time, space = config.temporal_factor, config.spatial_factor
    video = jax.ShapeDtypeStruct((1, 1 + 2 * time, 2 * space, 3 * space, 3), jnp.float32)

    def run(video):
        vae = build_vae(config, rngs=nnx.Rngs(0))
        encoded = vae.encode(video)
        return encoded, vae.decode(encoded.mean)

    encoded, decoded = jax.eval_shape(run, video)
    assert encoded.mean.shape == encoded.logvar.shape == (1, 3, 2, 3, config.z_dim)
    expected = [
        (1, 1 + 2 * time // dt, 2 * space // ds, 3 * space // ds, width)
        for (dt, ds), width in zip(config.stage_strides, config.stage_channels, strict=True)
    ]
    assert [stage.shape for stage in encoded.stages] == expected
    assert decoded.shape == video.shape

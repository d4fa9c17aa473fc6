"""Sizes of VAEs and DINO networks in files: checked before anything is built."""

import json

import pytest

from pyratok_jax.checkpoints.foreign.sources import TensorSource
from pyratok_jax.errors import UserError
from pyratok_jax.io.documents import check_sizes
from pyratok_jax.models.sizes import VAES, VISION_MODELS
from tests.damage import mistaken, survives
from tests.test_damaged_files import generator
from weights_conversion.vae.converting import CONVERTERS, Layout, source_config


@pytest.mark.parametrize("name", [*VAES, *VISION_MODELS])
def test_known_sizes_stay_as_they_are(name):
    sizes = (VAES | VISION_MODELS)[name]
    assert check_sizes(sizes, "x") == sizes and type(check_sizes(sizes, "x")) is type(sizes)


@pytest.mark.parametrize("family", CONVERTERS)
def test_absurd_sizes_are_refused_by_name(tmp_path, family):
    converter, path = CONVERTERS[family], tmp_path / "config.json"
    source = TensorSource(tmp_path / "x.safetensors", "safetensors", [], {}, lambda name: None)
    whole = {
        "_class_name": converter.class_names[0],
        **converter.to_diffusers(converter.published),
    }

    def read(values):
        path.write_text(json.dumps(values))
        return source_config(source, Layout(converter, converter.namings[0], ""), path)

    assert read(whole) == converter.published
    for value in ("wide", 2**40, 1e300, [[]], {"a": 1}, [2**40] * 4, ["a"] * 4):
        with pytest.raises(UserError, match=r"config\.json"):
            read(whole | {"layers_per_block": value})
    rng = generator(family)
    for _ in range(60):
        survives(lambda: read(mistaken(whole, rng)))

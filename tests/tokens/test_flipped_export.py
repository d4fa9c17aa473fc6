"""`export_tokens --flip`: the same whatever the way, said in the dataset, and never decoded."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.errors import UserError
from pyratok_jax.tokens import TokenDataset, flatten, read_all
from pyratok_jax.tokens.decoding import Selection, decode_all
from pyratok_jax.tokens.exporting import Machine, export, write_card
from pyratok_jax.tokens.options import ExportOptions
from pyratok_jax.tokens.plan import flip_key
from tests.tokens.conftest import plan_of


@pytest.fixture(scope="module")
def records(videos):
    return load_source(str(videos))


def levels(folder):
    return {r.id: [x.tobytes() for x in (*r.tokens, *r.read)] for r in TokenDataset(str(folder))}


def hashes(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("tokens-train*")
    }


@pytest.fixture(scope="module")
def flipped(records, tokenizer, tmp_path_factory):
    plan = plan_of(tokenizer, records, tmp_path_factory.mktemp("t") / "o", flip=0.2)
    export(plan, records, tokenizer, Machine())
    return plan, write_card(plan)


@pytest.mark.parametrize(
    "changes", [{"shards": 1, "batch": 1}, {"batch": 3, "format": "tfrecord", "compress": True}]
)
def test_flips_do_not_depend_on_batches_shards_or_format(
    flipped, records, tokenizer, tmp_path, make_plan, changes
):
    plan = make_plan(records, tmp_path / "o", flip=0.2, **changes)
    export(plan, records, tokenizer, Machine())
    assert levels(tmp_path / "o") == levels(flipped[0].output)
    assert write_card(plan)["tokens"] == flipped[1]["tokens"]


def test_a_resumed_export_is_the_unbroken_one(flipped, records, tokenizer, tmp_path, copy_of):
    output = copy_of(flipped[0].output, tmp_path / "o")
    plan = plan_of(tokenizer, records, output, flip=0.2)
    plan.write_or_compare()
    (output / "reports" / "00001.json").unlink()
    (output / plan.job.shard_name(1)).unlink()
    export(plan, records, tokenizer, Machine())
    assert hashes(output) == hashes(Path(flipped[0].output))


def test_records_are_those_of_the_tokenizer_under_the_key_of_their_place(flipped, tokenizer):
    places = ((0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0))
    keys = [flip_key(*place) for place in places]
    assert len({key.tobytes() for key in keys}) == 4
    for item, source in zip(
        TokenDataset(flipped[0].output), TokenDataset(flipped[0].output).sequences(), strict=True
    ):
        assert len(item.read) == len(item.tokens) == 4
        np.testing.assert_array_equal(source["sequence"], flatten(item.tokens, item.vocabulary))
        np.testing.assert_array_equal(source["read"], flatten(item.read, item.vocabulary))
        assert any((a != b).any() for a, b in zip(item.tokens, item.read, strict=True))


def test_without_flips_nothing_is_added(records, tokenizer, tmp_path, make_plan):
    plain = make_plan(records, tmp_path / "a")
    seeded = make_plan(records, tmp_path / "b", flip_seed=3)
    for plan in (plain, seeded):
        export(plan, records, tokenizer, Machine())
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert not any("flip" in key for key in plain.to_dict()["options"])
    assert all(item.read == () for item in TokenDataset(plain.output))
    assert "read" not in TokenDataset(plain.output).sequences()[0]


def test_the_dataset_says_that_it_was_flipped_and_is_not_decoded(flipped, tokenizer, tmp_path):
    plan, card = flipped
    assert card["options"]["flip"] == 0.2 and "read_tokens_1/value" in card["feature_spec"]
    assert (
        "| bits flipped for training a prior, at most | 0.2 |"
        in (Path(plan.output) / "DATASET_CARD.md").read_text()
    )
    features = json.loads((Path(plan.output) / "features.json").read_text())
    assert {"read_tokens_4", "read_checksum"} <= set(features["featuresDict"]["features"])
    with pytest.raises(UserError, match="export them again without --flip") as caught:
        decode_all(read_all(plan.output), tokenizer, tmp_path / "d", Selection(), force=True)
    assert "\n" not in str(caught.value)


def test_other_flips_in_the_same_folder_and_impossible_rates_are_refused(
    flipped, records, tokenizer, tmp_path, make_plan
):
    flipped[0].write_or_compare()
    for changes in ({"flip": 0.3}, {"flip": 0.2, "flip_seed": 1}, {}):
        with pytest.raises(UserError, match="differs in"):
            plan_of(tokenizer, records, Path(flipped[0].output), **changes).write_or_compare()
    for rate in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"--flip .* is not within 0 \.\. 1"):
            ExportOptions(flip=rate).resolved(4).check(4, 16)

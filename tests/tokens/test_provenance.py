"""The hash of the encoder's code: all that can change tokens, and nothing else."""

import shutil
from pathlib import Path

import pytest

import pyratok_jax
from pyratok_jax.tokens.plan import _ENCODER_MODULES, code_hash, encoder_code_hash, import_closure

PACKAGE = Path(pyratok_jax.__file__).parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    target = tmp_path_factory.mktemp("source") / "pyratok_jax"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    return target


def hash_after_change(copy, file):
    path = copy / file
    before = path.read_bytes()
    path.write_bytes(before + b"\n# changed\n")
    try:
        return code_hash(copy, _ENCODER_MODULES)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    "file",
    [
        "models/pyratok/quantizers/vector.py", "models/pyratok/quantizers/lookup_free.py",
        "data/captions.py", "data/padding.py", "tokens/blocks.py", "nn/halo.py",
        "models/wan_vae/model.py", "models/language/model.py", "models/language/attention.py",
    ],
)  # fmt: skip
def test_a_change_of_the_encoder_changes_the_hash(copy, file):
    assert code_hash(copy, _ENCODER_MODULES) == encoder_code_hash()
    assert hash_after_change(copy, file) != encoder_code_hash()


@pytest.mark.parametrize(
    "file",
    ["__init__.py", "reports/pictures.py", "tokens/plan.py", "tokens/schema.py", "io/html.py",
     "training/step.py", "losses/pixel.py", "evaluation/engine.py", "data/pipeline.py"],
)  # fmt: skip
def test_a_change_elsewhere_does_not(copy, file):
    assert hash_after_change(copy, file) == encoder_code_hash()


def test_imports_are_followed_wherever_they_are(tmp_path):
    package = tmp_path / "p"
    for folder in ("sub", "other"):
        (package / folder).mkdir(parents=True)
    for name, text in {
        "__init__": "import p.unrelated", "a": "import os\ndef f():\n    from p.sub import b, C",
        "sub/__init__": "from p.c import C", "sub/b": "import p.sub.d", "c": "C = 1",
        "sub/d": "from p.other import e", "other/__init__": "import p.unrelated", "other/e": "",
        "unrelated": "",
    }.items():  # fmt: skip
        (package / f"{name}.py").write_text(text)
    files = [str(p.relative_to(package)) for p in import_closure(package, ["a"])]
    assert files == ["a.py", "c.py", "other/e.py", "sub/__init__.py", "sub/b.py", "sub/d.py"]

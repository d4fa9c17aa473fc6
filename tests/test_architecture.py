"""The rules of the package's structure, checked on its source: layers, sizes, imports, APIs."""

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.tiers import MARKS

ROOT = Path(__file__).parents[1]
# Lowest first. Every module of the package that is not listed is a command, above all of them.
LAYERS = (
    "errors", "io", "assets", "nn", "models", "checkpoints", "data", "metrics", "losses",
    "tokenizer", "reports", "tokens", "generator", "evaluation", "training", "demo", "pods",
)  # fmt: skip
PACKAGE, CONVERTERS = (sorted((ROOT / name).rglob("*.py")) for name in
                       ("pyratok_jax", "weights_conversion"))  # fmt: skip
BESIDE = [p for name in ("tests", "benchmarks", "configs") for p in (ROOT / name).rglob("*.py")]
# Whatever trains or scores a tokenizer knows a video VAE by its interface alone.
WITHOUT_VAE_FAMILY = ("models.language", "losses", "tokenizer", "tokens", "training", "evaluation")
FAMILY = re.compile(r"pyratok_jax\.models\.(wan_vae|cogvideox|hunyuan_video|mochi|svd)\b")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that is imported, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"line {node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def layer(name: str) -> int:
    """Place of a module of the package in the order.

    The package's root, and what imports its names when they are first used, are at the bottom.
    """
    parts = name.split(".")
    if len(parts) == 1 or parts[1].startswith("__") or parts[1] == "lazy":
        return -1
    return LAYERS.index(parts[1]) if parts[1] in LAYERS else len(LAYERS)


def upward_imports(name: str, source: str) -> list[str]:
    """Imports of module `name` that point to a higher layer, or out of the package to its users."""
    found = []
    for line, target in imports(source):
        above = target.startswith("pyratok_jax.") and layer(target) > layer(name)
        if above or target.split(".")[0] == "weights_conversion":
            found.append(f"{name}:{line} imports {target}")
    return found


def test_nothing_imports_upward():
    # The package's root loads its public names from any layer when they are first used.
    checked = [path for path in PACKAGE if module_name(path) != "pyratok_jax"]
    assert [e for p in checked for e in upward_imports(module_name(p), p.read_text())] == []


@pytest.mark.parametrize(
    "statement",
    [
        "import pyratok_jax.train",
        "from pyratok_jax import training",
        "from pyratok_jax.training.step import train_step",
        "def f():\n    from pyratok_jax.tokenizer import Tokenizer",
        "from weights_conversion import command",
    ],
)
def test_an_upward_import_is_caught(statement):
    assert len(upward_imports("pyratok_jax.models.lpips", statement)) == 1
    assert upward_imports("pyratok_jax.models.lpips", "from pyratok_jax.nn import halo") == []


def test_every_layer_exists():
    missing = {name for name in LAYERS if not any((ROOT / "pyratok_jax").glob(f"{name}*"))}
    assert not missing


@pytest.mark.parametrize("part", WITHOUT_VAE_FAMILY)
def test_a_video_vae_is_known_by_its_interface(part):
    modules = [
        path for path in PACKAGE if f"{module_name(path)}.".startswith(f"pyratok_jax.{part}.")
    ]
    named = [(module_name(p), t) for p in modules for _, t in imports(p.read_text())]
    assert modules and not [one for one in named if FAMILY.match(one[1])]


def test_files_have_at_most_500_lines():
    files = [*PACKAGE, *CONVERTERS, *BESIDE]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert {name: n for name, n in lengths.items() if n > 500} == {}


def test_folders_have_at_most_15_modules():
    modules = [p for p in [*PACKAGE, *CONVERTERS, *BESIDE] if p.name != "__init__.py"]
    folders = Counter(p.parent for p in modules)
    assert {str(f.relative_to(ROOT)): n for f, n in folders.items() if n > 15} == {}


def test_private_modules_of_jax_are_used_in_one_place():
    using = {module_name(p) for p in [*PACKAGE, *CONVERTERS]
             for _, name in imports(p.read_text()) if name.startswith("jax._src")}  # fmt: skip
    assert len(using) <= 1, using


def test_retired_apis_of_jax_are_not_used():
    retired = re.compile(r"\b(pmap|pjit|xmap|experimental\.shard_map|with mesh)\b")
    using = [module_name(p) for p in PACKAGE if retired.search(p.read_text())]
    assert using == []


def test_what_people_read_is_printed_in_one_way():
    """By `io.cli.say` or a console of `io.progress`: both escape control characters."""
    printing = {
        module_name(path)
        for path in [*PACKAGE, *CONVERTERS]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }
    assert printing == {"pyratok_jax.errors", "pyratok_jax.io.cli"}


def test_every_third_party_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    declared = {re.split(r"[^\w.-]", line)[0].lower() for line in listed}
    imported = {name.split(".")[0] for p in [*PACKAGE, *CONVERTERS]
                for _, name in imports(p.read_text())}  # fmt: skip
    imported -= {*sys.stdlib_module_names, "pyratok_jax", "weights_conversion"}
    providers = packages_distributions()

    def is_declared(name: str) -> bool:
        known = [one.lower() for one in providers.get(name, [name])]
        return not declared.isdisjoint({*known, *(one.replace("_", "-") for one in known)})

    assert [name for name in sorted(imported) if not is_declared(name)] == []


def test_every_test_that_the_tiers_name_exists():
    for place in {place for places in MARKS.values() for place in places}:
        file, _, name = place.partition("::")
        assert f"def {name}" in (ROOT / "tests" / file).read_text(), place

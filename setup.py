"""Packages of the distribution; everything else is in pyproject.toml.

`configs/` stays at the root of the repository and is installed as `pyratok_jax.configs`, which
pyproject.toml alone cannot say beside automatic discovery.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["pyratok_jax*", "weights_conversion*"]),
        "pyratok_jax.configs",
    ],
    package_dir={"pyratok_jax.configs": "configs"},
)

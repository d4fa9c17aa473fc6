"""Test set-up: the CPU alone, full matmul precision, and shape annotations that are checked."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jaxtyping  # noqa: E402

# Every jaxtyping annotation in these packages is checked at run time in all tests.
jaxtyping.install_import_hook(["pyratok_jax.models", "pyratok_jax.losses"], "beartype.beartype")

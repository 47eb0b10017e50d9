"""Test set-up: strict JAX, and jaxtyping annotations checked at run time."""

import os

from _compiler import quick_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = quick_flags()
# No test depends on what an earlier one compiled; test_cache.py turns it on.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# For test_devices.py; all else uses the first.
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")

# Annotations cost nothing in production; here every call of the library checks its shapes.
_hook = install_import_hook("memax_rl", "_typecheck.typechecked")


@pytest.fixture
def key() -> jax.Array:
    """A fixed key for a test."""
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Free the compiled programs of a file: each holds about twelve memory mappings, of which a process has 65,530."""
    yield
    jax.clear_caches()

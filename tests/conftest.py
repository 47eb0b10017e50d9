"""Test set-up: strict JAX, and jaxtyping annotations checked at run time."""

import gc
import os

from _compiler import PROGRAMS, quick_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = quick_flags()
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(PROGRAMS.name, "started")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# For test_devices.py; all else uses the first.
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_compilation_cache_dir", os.path.join(PROGRAMS.name, "own"))

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")

# Tracing makes millions of small objects that live for long; the collector's defaults look at them again and again.
gc.set_threshold(50_000, 20, 50)

# Annotations cost nothing in production; here every call of the library checks its shapes.
_hook = install_import_hook("memax_rl", "_typecheck.typechecked")


def pytest_unconfigure():
    """Forget what was compiled."""
    PROGRAMS.cleanup()


@pytest.fixture
def key() -> jax.Array:
    """A fixed key for a test."""
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Free the compiled programs of a file: each holds about twelve memory mappings, of which a process has 65,530."""
    yield
    jax.clear_caches()

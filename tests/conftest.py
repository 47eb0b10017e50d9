"""Test set-up: strict JAX, and jaxtyping annotations checked at run time."""

import gc
import os
from pathlib import Path

from _compiler import OWN, PROGRAMS, STARTED, fetch_programs, keep_programs, machine, quick_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = quick_flags()
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(STARTED)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# For test_devices.py; all else uses the first.
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_compilation_cache_dir", str(OWN))

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")

# Tracing makes millions of small objects that live for long; the collector's defaults look at them again and again.
gc.set_threshold(50_000, 20, 50)

# Annotations cost nothing in production; here every call of the library checks its shapes.
_hook = install_import_hook("memax_rl", "_typecheck.typechecked")


def _kept(config: pytest.Config) -> Path | None:
    """Return where programs are kept between runs, in pytest's own cache; None where that is off."""
    return Path(config.cache.mkdir(f"programs-{machine()}")) if getattr(config, "cache", None) else None


def pytest_configure(config: pytest.Config):
    """Find what earlier runs have compiled; `pytest --cache-clear` forgets it."""
    if kept := _kept(config):
        fetch_programs(kept)


def pytest_unconfigure(config: pytest.Config):
    """Keep what was compiled."""
    if kept := _kept(config):
        keep_programs(kept)
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

"""What a training took of the memory."""

import jax
import jax.numpy as jnp
import numpy as np

from memax_rl.training.usage import program_bytes, watch


def test_a_program_takes_its_arguments_results_and_temporary_arrays():
    x = jnp.ones((256, 256))
    plain = program_bytes(jax.jit(lambda x: x + 1), x)
    assert plain is not None
    assert 2 * x.nbytes <= plain < 2.1 * x.nbytes
    donating = program_bytes(jax.jit(lambda x: x + 1, donate_argnums=0), x)
    assert donating is not None
    assert x.nbytes <= donating < 1.1 * x.nbytes


def test_the_peak_of_the_process_is_since_the_watch_began():
    np.ones(40_000_000)
    peaks = watch()
    before = peaks()["peak_process_bytes"]
    np.ones(20_000_000)
    after = peaks()["peak_process_bytes"]
    assert before is not None
    assert after is not None
    assert 140e6 < after - before < 200e6

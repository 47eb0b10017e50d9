"""What a training takes of the memory is said before it compiles, and refused where there is not enough."""

import equinox as eqx
import jax.numpy as jnp
import pytest
from _probes import Probe

from memax_rl import agents
from memax_rl.cli import main
from memax_rl.envs import spaces
from memax_rl.networks import NetworkConfig
from memax_rl.runs import make_config
from memax_rl.training import check, train
from memax_rl.training.sizes import device_bytes


def test_a_state_that_does_not_fit_is_refused_before_anything_is_made(tmp_path):
    fields = {"env": "gymnax/Breakout-MinAtar", "ppo": {"num_envs": 2**16, "rollout_length": 2**14}}
    with pytest.raises(ValueError, match=r"the state of 1 seed takes .* \(pending .*; lower ppo.num_envs"):
        train(make_config(fields), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"\(replay .*; lower dqn.buffer_size or num_seeds"):
        check(make_config({"env": "gymnax/Breakout-MinAtar", "agent": "dqn", "dqn": {"buffer_size": 2**28}}))
    assert device_bytes() > 2**28


def test_check_says_what_would_be_trained_and_makes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--check", "--env", "popgym/RepeatFirstEasy", "--memory", "gru", "--num-seeds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ppo on popgym/RepeatFirstEasy, memory gru, 260,000 steps a seed"
    assert any(line.startswith("the state of 2 seeds takes ") for line in lines)
    assert not list(tmp_path.iterdir())


def test_the_state_of_two_seeds_takes_twice_as_much(capsys):
    def total(seeds: str) -> float:
        assert main(["train", "--check", "--env", "popgym/RepeatFirstEasy", "--num-seeds", seeds]) == 0
        return float(capsys.readouterr().out.split("takes ")[1].split()[0])

    assert total("2") == pytest.approx(2 * total("1"), rel=0.01)


class Picture(Probe):
    """Shows bytes."""

    def observation_space(self, params):
        return spaces.Box(0, 255, (8, 8, 3), jnp.uint8)

    def _show(self, state):
        return jnp.full((8, 8, 3), state.time, jnp.uint8)


@pytest.mark.parametrize("name", ["ppo", "pqn", "dqn", "sac"])
def test_bytes_stay_bytes_on_tapes_and_in_the_replay(name, key):
    """A picture as float32 would take four times the memory."""
    small = {"num_envs": 2, "num_minibatches": 1} if name in ("ppo", "pqn") else {"num_envs": 2, "learning_starts": 9}
    settings = agents.spec(name).settings(**small)
    agent = agents.make(name, settings, NetworkConfig(memory="mlp", width=8), Picture(), None, 10_000, 1)
    before = eqx.filter_eval_shape(agent.init, key)
    after = eqx.filter_eval_shape(lambda key: agent.update(agent.init(key))[0], key)
    for state in (before, after):
        tape = state.pending.tape if name in ("ppo", "pqn") else state.replay.tape
        assert tape.observation.dtype == state.streams.inputs.observation.dtype == jnp.uint8

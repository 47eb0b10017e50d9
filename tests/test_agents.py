"""The agent protocol and the table of agents: one's own agent trains, is evaluated and resumes by name."""

import json
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Int

import memax_rl
from memax_rl import agents
from memax_rl.agents.registry import _AGENTS, RESERVED
from memax_rl.cli import main
from memax_rl.networks import make_actor_critic
from memax_rl.networks.torso import BlockConfig, NetworkConfig
from memax_rl.rollout.collect import Pending, collect
from memax_rl.rollout.step_count import StepCount
from memax_rl.rollout.streams import RolloutState, as_metrics, start_stream, step_stream
from memax_rl.runs import TrainConfig, make_config, override
from memax_rl.runs.build import make_agent


class NoLearnerConfig(agents.AgentSettings):
    """Settings of an agent that never learns."""

    slots: int = 16
    """Slots a row."""


class NoLearnerState(eqx.Module):
    """What the protocol asks for, and the streams."""

    network: Any
    streams: RolloutState
    pending: Pending
    key: jax.Array
    env_steps: StepCount
    updates: Int[Array, ""]


class NoLearner:
    """The least that is an agent: it plays, and keeps its first network."""

    name = "no_learner"
    size_hint = "lower num_seeds"
    overlong_hint = "set no_learner.slots higher"
    devices = 1
    evaluates_greedily = False
    learned_fields: tuple[str, ...] = ("network",)
    transient_fields: tuple[str, ...] = ()
    transient_hint = ""
    sharded_fields: tuple[str, ...] = ()

    def __init__(self, settings, network, env, env_params, total_steps, devices):
        self.config, self.env, self.env_params = settings, env, env_params
        self.observation_space, self.action_space = env.observation_space(env_params), env.action_space(env_params)
        self.make_network = lambda obs, act, key: make_actor_critic(network, obs, act, key=key)

    def init(self, key):
        network = self.make_network(self.observation_space, self.action_space, key)
        carry = network.initial_state()
        streams = jax.vmap(lambda k: start_stream(self.env, self.env_params, carry, k))(jax.random.split(key, 2))
        one = jax.tree.map(lambda leaf: leaf[0], streams)
        keys = jax.random.split(key)
        slot = jax.eval_shape(lambda: step_stream(self.env, self.env_params, self.act(network), one, keys)[1])
        pending = Pending.none(slot, 2, self.config.slots)
        return NoLearnerState(network, streams, pending, key, StepCount.of(0), jnp.zeros((), jnp.int32))

    def reset_environments(self, state):
        return state

    def act(self, network, greedy=False):
        def act(carry, inputs, key):
            carry, distribution = network.act(carry, inputs)
            return carry, *distribution.sample(key)

        return act

    def update(self, state):
        key, now = jax.random.split(state.key)
        keys = jax.random.split(now, (self.config.slots, 2, 2))
        act = self.act(state.network)
        done = collect(
            self.env, self.env_params, act, state.streams, state.pending, keys, mode="truncated_bptt", devices=1
        )
        metrics = done.metrics
        env_steps = state.env_steps.add(metrics.pop("env_steps"))
        new = NoLearnerState(state.network, done.streams, done.pending, key, env_steps, state.updates + 1)
        return new, as_metrics(metrics | {"loss": 0.0, "env_steps": env_steps})


@pytest.fixture
def own_agent():
    agents.register("no_learner", NoLearnerConfig, NoLearner, summary="Plays, and never learns")
    yield
    _AGENTS.pop("no_learner")


def test_an_own_agent_trains_by_name_with_settings_of_its_own(own_agent, tmp_path, capsys):
    out = str(tmp_path / "run")
    fields = ["--agent", "no_learner", "--no_learner.slots", "8", "--total-steps", "100", "--eval-episodes", "4"]
    assert main(["train", "--env", "popgym/RepeatFirstEasy", "--network.width", "8", "--out", out, *fields]) == 0
    assert memax_rl.evaluate(out, episodes=4)["episodes_per_seed"] == 4
    assert main(["list", "agents", "-v"]) == 0
    assert "no_learner  Plays, and never learns" in capsys.readouterr().out
    assert main(["train", "--agent", "no_learner", "--no_learner.slot", "8"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_agents_have_all_that_the_protocol_asks_for(own_agent, tmp_path):
    data = tmp_path / "data.npz"
    memax_rl.collect(env="popgym/RepeatFirstEasy", episodes=2, out=data)
    settings = {"bc": {"bc": {"data": str(data)}}}
    for name in agents.names():
        agent = make_agent(make_config({"env": "popgym/RepeatFirstEasy", "agent": name} | settings.get(name, {})))
        assert isinstance(agent, agents.Agent), name
        assert isinstance(jax.eval_shape(agent.init, jax.random.key(0)), agents.AgentState), name


def test_names_that_no_agent_can_have():
    with pytest.raises(ValueError, match="expected lower-case letters"):
        agents.register("My Agent", NoLearnerConfig, NoLearner)
    with pytest.raises(ValueError, match="'network' is a field of the configuration"):
        agents.register("network", NoLearnerConfig, NoLearner)
    with pytest.raises(TypeError, match=r"AgentSettings"):
        agents.register("other", dict, NoLearner)  # pyright: ignore[reportArgumentType]
    assert set(TrainConfig.model_fields) == RESERVED


def test_a_configuration_holds_the_settings_of_its_agent_alone():
    config = make_config({"agent": "dqn", "dqn": {"gamma": 0.5}})
    written = config.model_dump(mode="json")
    assert written["dqn"]["gamma"] == 0.5
    assert "ppo" not in written
    assert "settings" not in written
    assert make_config(written) == config
    assert override(config, ["--agent", "PPO", "--ppo.gamma", "0.9"]).model_dump()["ppo"]["gamma"] == 0.9
    assert "dqn" not in override(config, ["--agent", "ppo"]).model_dump()


def test_a_stack_of_different_memories(tmp_path):
    """From the command line to a network, with each its own options, written and read again."""
    config = override(make_config({}), ["--network.blocks", "[LRU, {memory: attention, window: 8, repeat: 2}]"])
    network = config.network
    assert network.memory == "lru+attentionx2"
    assert [block.memory for block in network.stack] == ["lru", "attention", "attention"]
    assert network.stack[1].options == {"window": 8}
    assert make_config(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    made = make_agent(config).init(jax.random.key(0)).network.torso
    assert [type(block.memory).__name__ for block in made.blocks] == ["LRU", "Attention", "Attention"]
    assert override(config, ["--memory", "gru"]).network.stack == (BlockConfig(memory="gru"),)
    assert NetworkConfig(blocks=("gru",)).stack[0].memory == "gru"  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"blocks": ["lsmt"]}, "unknown memory 'lsmt'"),
        ({"blocks": [{"memory": "lru", "heads": 2}]}, "memory 'lru' has no option 'heads'"),
        ({"blocks": ["lru"], "memory": "gru"}, "either memory or blocks"),
        ({"blocks": ["lru"], "depth": 2}, "depth are for one memory"),
        ({"blocks": [{"memory": "lru", "repeat": 0}]}, "repeat: input should be greater than or equal to 1, got 0"),
    ],
)
def test_mistakes_in_a_stack_are_explained(network, message):
    with pytest.raises(ValueError, match=message):
        make_config({"network": network})

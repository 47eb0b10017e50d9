"""The agents by name."""

from typing import Any, NamedTuple

from memax_rl.agents import bc, dqn, ppo, pqn, sac
from memax_rl.agents.acting import (
    MakeActing,
    acting_as_taught,
    acting_by_policy,
    acting_by_soft_policy,
    acting_by_values,
)
from memax_rl.agents.base import AgentSettings, MakeAgent


class AgentSpec(NamedTuple):
    """An agent that can be trained by name.

    Attributes:
        settings: The model of its settings, the section of its name in a configuration.
        make: Makes it.
        preset: What `memax-rl train --agent NAME` trains when it is told nothing else, or None.
        summary: One line for `memax-rl list agents`.
        acting: What of it is needed to act, for `memax_rl.load`, or None: then the whole agent is made, with its
            environment.
    """

    settings: type[AgentSettings]
    make: MakeAgent
    preset: str | None
    summary: str
    acting: MakeActing | None = None


_AGENTS: dict[str, AgentSpec] = {
    "ppo": AgentSpec(
        ppo.PPOConfig,
        ppo.make,
        "ppo/repeat_previous_easy",
        "Proximal policy optimization, on-policy",
        acting_by_policy,
    ),
    "dqn": AgentSpec(
        dqn.DQNConfig,
        dqn.make,
        "dqn/repeat_previous_easy",
        "Deep Q-learning from replayed episodes",
        acting_by_values,
    ),
    "pqn": AgentSpec(
        pqn.PQNConfig,
        pqn.make,
        "pqn/repeat_previous_easy",
        "Q(lambda) without replay or target network",
        acting_by_values,
    ),
    "sac": AgentSpec(
        sac.SACConfig,
        sac.make,
        "sac/position_only_pendulum_easy",
        "Soft actor-critic, off-policy",
        acting_by_soft_policy,
    ),
    "bc": AgentSpec(
        bc.BCConfig,
        bc.make,
        None,
        "Behavior cloning, from a file of episodes",
        acting_as_taught,
    ),
}


def register(
    name: str,
    settings: type[AgentSettings],
    make: MakeAgent,
    *,
    preset: str | None = None,
    summary: str = "",
    acting: MakeActing | None = None,
) -> None:
    """Make an agent of one's own known by a name, for configurations and the command line, in this process.

    Args:
        name: Lower-case letters, digits and underscores; its settings stand under this name in a configuration.
        settings, make, preset, summary, acting: See `AgentSpec`.

    Raises:
        ValueError: If the name is not of that form or a field of `TrainConfig`.
        TypeError: If `settings` is no subclass of `memax_rl.agents.AgentSettings`.
    """
    if not (name.isidentifier() and name == name.lower()):
        raise ValueError(f"name: expected lower-case letters, digits and underscores, got {name!r}")
    if name in RESERVED:
        raise ValueError(f"name: {name!r} is a field of the configuration; choose another")
    if not (isinstance(settings, type) and issubclass(settings, AgentSettings)):
        raise TypeError(f"settings: expected a subclass of memax_rl.agents.AgentSettings, got {settings!r}")
    _AGENTS[name] = AgentSpec(settings, make, preset, summary, acting)


# The other fields of `TrainConfig`, beside which an agent's settings stand.
RESERVED = frozenset(
    [
        *("imports", "env", "env_options", "env_wrappers", "agent", "seed", "num_seeds", "devices", "precision"),
        *("total_steps", "on_divergence", "network", "settings", "checkpoint_interval", "keep_every_n_steps"),
        *("eval_interval", "start_from", "start_from_checkpoint", "eval_episodes", "early_stopping"),
        *("tensorboard", "wandb"),
    ]
)


def names() -> tuple[str, ...]:
    """Return the names of the agents."""
    return tuple(_AGENTS)


def spec(name: str) -> AgentSpec:
    """Return the entry of an agent. Raises `ValueError` if there is none of that name."""
    if name not in _AGENTS:
        raise ValueError(f"unknown agent {name!r}; known: {', '.join(_AGENTS)}")
    return _AGENTS[name]


def make(name: str, *args: Any) -> Any:
    """Return an agent.

    Args:
        name: One of `names()`.
        *args: As `memax_rl.agents.base.MakeAgent` has them: settings, settings of the network, environment, its
            parameters, total steps, devices.

    Raises:
        ValueError: If there is no agent of that name, or as its maker does.
    """
    return spec(name).make(*args)

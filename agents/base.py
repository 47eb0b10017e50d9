"""The agent protocol: all that training, evaluation and loading use of an agent."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Array, Int, PRNGKeyArray
from pydantic import BaseModel, ConfigDict

from memax_rl.rollout.step_count import StepCount
from memax_rl.rollout.streams import Act


class AgentSettings(BaseModel):
    """Base of the settings of an agent: unknown keys, nan and inf are refused, and the docstrings are the help."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


@runtime_checkable
class AgentState(Protocol):
    """What the loop reads of an agent's state, an `eqx.Module` whose arrays are all that changes while training."""

    @property
    def network(self) -> Any:
        """The network that acts."""
        ...

    @property
    def env_steps(self) -> StepCount:
        """Environment steps made so far."""
        ...

    @property
    def updates(self) -> Int[Array, ""]:
        """Updates made so far."""
        ...


S = TypeVar("S", bound=AgentState)


@runtime_checkable
class Agent(Protocol[S]):
    """An agent: its environment, its settings, and pure functions of its state.

    Everything is unbatched by seed: the loop calls `init` and `update` under `jax.vmap` and `jax.jit`.
    """

    name: str
    """Its name in `memax_rl.agents`, and of its settings in a configuration."""
    env: Any
    """The environment, from `memax_rl.envs.make`, in its wrappers."""
    env_params: Any
    """The parameters of the environment."""
    observation_space: Any
    """The environment's observation space. Taken once: spaces compare by identity, and networks hold them."""
    action_space: Any
    """The environment's action space."""
    make_network: Callable[[Any, Any, PRNGKeyArray], Any]
    """(observation space, action space, key) -> network."""
    config: Any
    """The settings, with sizes that follow from the environment filled in."""
    devices: int
    """Devices that share the rows of an update; with several, `update` runs inside `memax_rl.sharding.shard_map`."""
    evaluates_greedily: bool
    """Whether evaluation takes its best actions unless told otherwise."""
    learned_fields: tuple[str, ...]
    """Fields of the state that must stay finite. A seed that diverges keeps what they held before."""
    transient_fields: tuple[str, ...]
    """Fields of the state that stay out of checkpoints; a resumed run begins with those of a new state."""
    transient_hint: str
    """What the user of a resumed run is told about these; empty where they are as they were."""
    sharded_fields: tuple[str, ...]
    """Fields of the state whose arrays are split over devices along their first axis; all else is replicated."""
    size_hint: str
    """What a user can do if the state does not fit into the device's memory."""
    overlong_hint: str
    """What a user can do about an episode that is longer than a row of the tape."""

    def init(self, key: PRNGKeyArray) -> S:
        """Return the state before training."""
        ...

    def update(self, state: S) -> tuple[S, dict[str, Any]]:
        """Collect and learn once. Return the new state and metrics.

        Metrics are float32 scalars, but `env_steps`, a `StepCount`. There must be `loss`, `env_steps`, `env/unusable`,
        `tape/overlong` and those of `memax_rl.rollout.streams.episode_metrics`. An agent that does not learn in every
        update has `gradient_steps` too; where that is 0, `loss` may be nan.
        """
        ...

    def act(self, network: Any, greedy: bool = False) -> Act:
        """Return how the network plays: (carry, inputs, key) -> (carry, action, log-probability)."""
        ...

    def reset_environments(self, state: S) -> S:
        """Return the state with every environment at the start of a new episode, and nothing of the open ones.

        For environments that cannot be restored from a checkpoint: those on the host.
        """
        ...


@runtime_checkable
class Taught(Protocol):
    """What an agent has beside that learns from the episodes of a file."""

    played_in: str | None
    """The environment that they were played in, as the file says; None before `init`."""


# How an agent is made: (settings, network settings, environment, its parameters, total steps, devices) -> agent.
MakeAgent = Callable[[Any, Any, Any, Any, int, int], Agent[Any]]

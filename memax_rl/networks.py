"""From observations to a distribution over actions and a value: encoder -> stack of memory blocks -> heads.

All modules are unbatched; callers `jax.vmap`. `step` is for acting, `scan` for learning, as in the memory contract.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, cast

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from memax_rl import memory as memories
from memax_rl.encoder import Dense, Encoder, Inputs, Space, flat_size, nvec, one_hot
from memax_rl.envs import spaces
from memax_rl.memory import Memory


class NetworkConfig(BaseModel):
    """Settings of a network."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    memory: str = "lru"
    """Name of the memory model, see `memax-rl list memories`."""
    memory_options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Options of the memory model, for example --memory-options.state-size 64."""
    scan: Literal["fast", "reference"] = "fast"
    """How memories run over a tape: "fast", with first derivatives in reverse mode alone, or "reference", a plain loop
    over steps that is differentiable any number of times and in forward mode."""
    width: int = Field(default=128, ge=1, le=65_536)
    """Features between layers, and size of the memory's output."""
    depth: int = Field(default=1, ge=1, le=1024)
    """Number of memory blocks."""
    feed_forward: float = Field(default=0.0, ge=0, le=64)
    """Hidden size of the layer after each memory, as a multiple of width. 0: none."""
    previous_action: bool = True
    """Show the agent its previous action, zero at an episode's start."""
    previous_reward: bool = True
    """Show the agent its previous reward, zero at an episode's start."""
    start: bool = True
    """Show the agent a flag that is 1 at an episode's start."""
    separate_value: bool = False
    """Give the value function encoder and memory of its own."""

    @field_validator("memory")
    @classmethod
    def _any_case(cls, name: str) -> str:
        return name if name in memories.names() else name.lower()

    @model_validator(mode="after")
    def _check_memory(self) -> "NetworkConfig":
        memories.check_options(self.memory, self.memory_options)
        return self


class Block(eqx.Module):
    """Pre-norm residual blocks: x + memory(norm(x)), then x + feed_forward(norm(x))."""

    norm: eqx.nn.LayerNorm
    memory: Memory
    feed_norm: eqx.nn.LayerNorm | None
    feed_in: Dense | None
    feed_out: Dense | None

    def __init__(self, config: NetworkConfig, *, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        width, method = config.width, "reference" if config.scan == "reference" else None
        self.norm = eqx.nn.LayerNorm(width)
        self.memory = memories.make(
            config.memory, in_size=width, out_size=width, key=keys[0], method=method, **config.memory_options
        )
        hidden = round(width * config.feed_forward)
        self.feed_norm = eqx.nn.LayerNorm(width) if hidden else None
        self.feed_in = Dense(width, hidden, 2**0.5, key=keys[1]) if hidden else None
        self.feed_out = Dense(hidden, width, key=keys[2]) if hidden else None

    def feed(self, x: Float[Array, " width"]) -> Float[Array, " width"]:
        """Return x + feed_forward(norm(x)), or x where there is no feed-forward layer."""
        if self.feed_norm is None or self.feed_in is None or self.feed_out is None:
            return x
        return x + self.feed_out(jax.nn.gelu(self.feed_in(self.feed_norm(x))))


class Torso(eqx.Module):
    """Encoder and memory blocks: inputs to `width` features, with a state."""

    encoder: Encoder
    blocks: tuple[Block, ...]
    norm: eqx.nn.LayerNorm

    def initial_state(self) -> tuple[Any, ...]:
        """Return the initial states of all blocks."""
        return tuple(block.memory.initial_state() for block in self.blocks)

    def step(self, state: tuple[Any, ...], inputs: Inputs) -> tuple[tuple[Any, ...], Float[Array, " width"]]:
        """Return the next state and the features of one step."""
        x = self.encoder(inputs)
        states = []
        for block, s in zip(self.blocks, state, strict=True):
            s, y = block.memory.step(s, block.norm(x), inputs.start)
            x = block.feed(x + y)
            states.append(s)
        return tuple(states), self.norm(x)

    def scan(self, state: tuple[Any, ...], inputs: Inputs) -> tuple[tuple[Any, ...], Float[Array, "rows slots width"]]:
        """Return the last states and the features of all steps of a batch of rows.

        Batched, unlike the rest: the layers between the memories see all slots as one flat batch, because a weight
        gradient that sums over two axes costs a transposed copy on a CPU.
        """
        rows, slots = inputs.start.shape
        flat = jax.tree.map(lambda leaf: leaf.reshape(rows * slots, *leaf.shape[2:]), inputs)
        xs = jax.vmap(self.encoder)(flat)
        states = []
        for block, s in zip(self.blocks, state, strict=True):
            normed = jax.vmap(block.norm)(xs).reshape(rows, slots, -1)
            s, ys = jax.vmap(block.memory.scan)(s, normed, inputs.start)
            xs = jax.vmap(block.feed)(xs + ys.reshape(rows * slots, -1))
            states.append(s)
        return tuple(states), jax.vmap(self.norm)(xs).reshape(rows, slots, -1)


class ActionDistribution(eqx.Module):
    """A distribution over the actions of a space. `raw` is the policy head's output for one step.

    Discrete: a categorical with logits `raw`. MultiDiscrete: independent categoricals. Box: a normal with independent
    components, its mean `raw` and its standard deviation exp(log_std), in units of the box where its bounds are finite:
    `to_environment` clips and maps what the environment is given, the learner sees it as it was drawn.
    """

    space: Any = eqx.field(static=True)
    raw: Float[Array, " outputs"]
    log_std: Float[Array, " outputs"] | None

    def _distribution(self) -> distrax.DistributionLike:
        if self.log_std is not None:
            return distrax.MultivariateNormalDiag(self.raw, jnp.exp(self.log_std))
        if isinstance(self.space, spaces.MultiDiscrete):
            sizes = nvec(self.space)
            bounds = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
            return distrax.Joint([distrax.Categorical(self.raw[a:b]) for a, b in itertools.pairwise(bounds)])
        return distrax.Categorical(self.raw)

    # distrax relies on implicit rank promotion, which callers may have forbidden: hence `numpy_rank_promotion`.

    def sample(self, key: PRNGKeyArray) -> tuple[Array, Float[Array, ""]]:
        """Return a random action and its log-probability."""
        with jax.numpy_rank_promotion("allow"):
            action, log_prob = self._distribution().sample_and_log_prob(seed=key)
        return self._pack(action), cast(Array, log_prob)

    def mode(self) -> Array:
        """Return the most likely action."""
        with jax.numpy_rank_promotion("allow"):
            return self._pack(self._distribution().mode())

    def log_prob(self, action: Array) -> Float[Array, ""]:
        """Return the log-probability (density for a Box) of an action."""
        parts = list(action) if isinstance(self.space, spaces.MultiDiscrete) else action
        # A Box of shape () has one component.
        parts = action.reshape(-1) if self.log_std is not None else parts
        with jax.numpy_rank_promotion("allow"):
            return cast(Array, self._distribution().log_prob(parts))

    def entropy(self) -> Float[Array, ""]:
        """Return the entropy in nats."""
        with jax.numpy_rank_promotion("allow"):
            return cast(Array, self._distribution().entropy())

    def _pack(self, action: Any) -> Array:
        if self.log_std is not None:
            return action.reshape(self.space.shape)
        if isinstance(self.space, spaces.MultiDiscrete):
            return jnp.stack(action).astype(jnp.int32)
        return action.astype(jnp.int32)


def check_action_space(space: Any) -> None:
    """Raise `ValueError` unless a policy head can be made for the action space."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return
    known = "expected Discrete, MultiDiscrete or a Box of real numbers of at most one axis"
    if isinstance(space, spaces.Box):
        if not jnp.issubdtype(space.dtype, jnp.floating):
            raise ValueError(
                f"cannot act in the action space {space!r} of dtype {jnp.dtype(space.dtype)}; {known}. State "
                "whole-number actions as Discrete or MultiDiscrete"
            )
        if len(space.shape) <= 1:
            return
    raise ValueError(f"cannot act in the action space {space!r}; {known}")


def action_outputs(space: Any) -> int:
    """Return how many numbers a policy head puts out for the action space."""
    return flat_size(space)


def _bounds(space: Any) -> tuple[Array, Array, Array]:
    """Return lower and upper bounds of a Box, and for which components both are finite."""
    low, high = (jnp.broadcast_to(jnp.asarray(x, jnp.float32), space.shape) for x in (space.low, space.high))
    return low, high, jnp.isfinite(low) & jnp.isfinite(high)


def to_environment(space: Any, action: Array) -> Array:
    """Return the policy's action as the environment takes it.

    A component of a Box with two finite bounds is in [-1, 1] for the policy, so that neither its first standard
    deviation nor its learning rate depends on the unit of the action: it is clipped there and mapped affinely to
    [low, high]. Every other component is clipped to the bound that it has. Discrete actions are as they are.
    """
    if not isinstance(space, spaces.Box):
        return action
    low, high, bounded = _bounds(space)
    share = (jnp.clip(action, -1, 1) + 1) / 2
    # Not low + share * (high - low), which overflows for bounds near the largest numbers.
    mapped = jnp.where(bounded, low, 0) * (1 - share) + jnp.where(bounded, high, 0) * share
    # Rounding must not leave the box.
    return jnp.clip(jnp.where(bounded, mapped, action), low, high).astype(space.dtype)


def from_environment(space: Any, action: Array) -> Array:
    """Return an action of the environment as the policy would have put it: the inverse of `to_environment`."""
    if not isinstance(space, spaces.Box):
        return action
    low, high, bounded = _bounds(space)
    width = jnp.where(bounded & (high > low), high - low, 1)
    return jnp.where(bounded, 2 * (action - jnp.where(bounded, low, 0)) / width - 1, action)


class ActorCritic(eqx.Module):
    """A policy and a value function on one shared torso, or on one each."""

    action_space: Any = eqx.field(static=True)
    torso: Torso
    value_torso: Torso | None
    policy_head: Dense
    value_head: Dense
    log_std: Float[Array, " outputs"] | None

    def initial_state(self) -> tuple[Any, ...]:
        """Return the initial memory of the torso, or of both."""
        if self.value_torso is None:
            return (self.torso.initial_state(),)
        return (self.torso.initial_state(), self.value_torso.initial_state())

    def step(self, state: tuple[Any, ...], inputs: Inputs) -> tuple[tuple[Any, ...], ActionDistribution, Array]:
        """Return the next memory, the distribution over actions, and the value, for one step."""
        new, features = self.torso.step(state[0], inputs)
        if self.value_torso is None:
            return (new,), self._policy(features), self._value(features)
        new_value, value_features = self.value_torso.step(state[1], inputs)
        return (new, new_value), self._policy(features), self._value(value_features)

    def act(self, state: tuple[Any, ...], inputs: Inputs) -> tuple[tuple[Any, ...], ActionDistribution]:
        """Return the next memory and the distribution over actions, for one step.

        The memory of a value torso of its own is left as it is: acting does not need it.
        """
        new, features = self.torso.step(state[0], inputs)
        return (new, *state[1:]), self._policy(features)

    def scan(self, state: tuple[Any, ...], inputs: Inputs) -> tuple[tuple[Any, ...], ActionDistribution, Array]:
        """Return the last memories, and the distributions and values [rows, slots], of a batch of rows."""
        new, features = self.torso.scan(state[0], inputs)
        if self.value_torso is None:
            return (new,), _on_slots(self._policy, features), _on_slots(self._value, features)
        new_value, value_features = self.value_torso.scan(state[1], inputs)
        return (new, new_value), _on_slots(self._policy, features), _on_slots(self._value, value_features)

    def observe(self, observation: PyTree[Array], valid: Bool[Array, "rows slots"]) -> "ActorCritic":
        """Return the network after its running statistics, if it has any, have seen the valid slots of a tape."""
        torsos = [torso for torso in (self.torso, self.value_torso) if torso is not None]
        seen = [torso.encoder.observe(observation, valid) for torso in torsos]
        if self.value_torso is None:
            return eqx.tree_at(lambda n: n.torso.encoder, self, seen[0])
        return eqx.tree_at(lambda n: (n.torso.encoder, n.value_torso.encoder), self, tuple(seen))

    def half(self, value: Bool[Array, ""]) -> "ActorCritic":
        """Return the network with one of its two torsos: that of the values, or that of the policy."""

        def choose(policy, of_value):
            return jnp.where(value, of_value, policy) if eqx.is_array(policy) else policy

        return replace(self, torso=jax.tree.map(choose, self.torso, self.value_torso), value_torso=None)

    def join(self, value: "ActorCritic") -> "ActorCritic":
        """Return the network of which this is the policy's `half`, and `value` that of the values."""
        return replace(self, value_torso=value.torso, value_head=value.value_head)

    def _policy(self, features: Float[Array, " width"]) -> ActionDistribution:
        return ActionDistribution(self.action_space, self.policy_head(features), self.log_std)

    def _value(self, features: Float[Array, " width"]) -> Float[Array, ""]:
        return self.value_head(features)[0]


class QValues(eqx.Module):
    """Action values of one step, from `raw`, a number for each value of each component of an action.

    Discrete: `raw` holds the values themselves. MultiDiscrete: the value of an action is the sum of the numbers of its
    components, so that the best action is the best value of each component (the branches of Tavakoli et al. 2018,
    https://arxiv.org/abs/1711.08946, with one value for the whole action, as in Sunehag et al. 2018,
    https://arxiv.org/abs/1706.05296).
    """

    space: Any = eqx.field(static=True)
    raw: Float[Array, " outputs"]

    def _components(self) -> list[Float[Array, " values"]]:
        sizes = nvec(self.space) if isinstance(self.space, spaces.MultiDiscrete) else (self.space.n,)
        return [self.raw[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]

    def of(self, action: Array) -> Float[Array, ""]:
        """Return the value of an action."""
        return jnp.sum(one_hot(self.space, action) * self.raw)

    def max(self) -> Float[Array, ""]:
        """Return the value of the best action."""
        return jnp.sum(jnp.stack([jnp.max(values) for values in self._components()]))

    def mode(self) -> Array:
        """Return the best action."""
        best = jnp.stack([jnp.argmax(values) for values in self._components()]).astype(jnp.int32)
        return best if isinstance(self.space, spaces.MultiDiscrete) else best[0]


class QNetwork(eqx.Module):
    """Action values, on a torso. With a `value_head` it is a duelling one.

    Wang et al. 2016, https://arxiv.org/abs/1511.06581, equation 9: Q(s, a) = V(s) + A(s, a) - mean of A(s, .).
    """

    action_space: Any = eqx.field(static=True)
    torso: Torso
    head: Dense
    value_head: Dense | None

    def initial_state(self) -> tuple[Any, ...]:
        """Return the initial memory."""
        return self.torso.initial_state()

    def step(self, state: tuple[Any, ...], inputs: Inputs) -> tuple[tuple[Any, ...], QValues]:
        """Return the next memory and the action values of one step."""
        state, features = self.torso.step(state, inputs)
        return state, self._values(features)

    def scan(self, state: tuple[Any, ...], inputs: Inputs) -> tuple[tuple[Any, ...], QValues]:
        """Return the last memories, and the action values [rows, slots] of a batch of rows."""
        state, features = self.torso.scan(state, inputs)
        return state, _on_slots(self._values, features)

    def observe(self, observation: PyTree[Array], valid: Bool[Array, "rows slots"]) -> "QNetwork":
        """Return the network after its running statistics, if it has any, have seen the valid slots of a tape."""
        return eqx.tree_at(lambda n: n.torso.encoder, self, self.torso.encoder.observe(observation, valid))

    def _values(self, features: Float[Array, " width"]) -> QValues:
        q = QValues(self.action_space, self.head(features))
        if self.value_head is None:
            return q
        components = q._components()
        # The value is shared out, so that it counts once in the sum over components.
        value = self.value_head(features) / len(components)
        return QValues(self.action_space, jnp.concatenate([value + a - jnp.mean(a) for a in components]))


def _on_slots(f: Callable[..., Any], features: Float[Array, "rows slots width"]) -> Any:
    rows, slots, width = features.shape
    flat = jax.vmap(f)(features.reshape(rows * slots, width))
    return jax.tree.map(lambda leaf: leaf.reshape(rows, slots, *leaf.shape[1:]), flat)


def make_torso(config: NetworkConfig, observation_space: Space, action_space: Space, *, key: PRNGKeyArray) -> Torso:
    """Return a torso of `depth` memory blocks."""
    encoder_key, *block_keys = jax.random.split(key, config.depth + 1)
    return Torso(
        encoder=Encoder(
            observation_space,
            action_space,
            config.width,
            previous_action=config.previous_action,
            previous_reward=config.previous_reward,
            start=config.start,
            key=encoder_key,
        ),
        blocks=tuple(Block(config, key=k) for k in block_keys),
        norm=eqx.nn.LayerNorm(config.width),
    )


def make_actor_critic(
    config: NetworkConfig, observation_space: Space, action_space: Space, *, key: PRNGKeyArray
) -> ActorCritic:
    """Return an actor-critic for the spaces. Raises `ValueError` for a space or memory it cannot handle."""
    check_action_space(action_space)
    policy_key, value_key, policy_head_key, value_head_key = jax.random.split(key, 4)
    outputs = action_outputs(action_space)
    return ActorCritic(
        action_space=action_space,
        torso=make_torso(config, observation_space, action_space, key=policy_key),
        value_torso=(
            make_torso(config, observation_space, action_space, key=value_key) if config.separate_value else None
        ),
        # A small gain makes the first policy nearly uniform.
        policy_head=Dense(config.width, outputs, 0.01, key=policy_head_key),
        value_head=Dense(config.width, 1, key=value_head_key),
        log_std=jnp.zeros(outputs) if isinstance(action_space, spaces.Box) else None,
    )


def check_discrete(space: Any) -> None:
    """Raise `ValueError` unless the actions can be counted, as action values need."""
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        raise ValueError(
            f"dqn cannot act in the action space {space!r}; expected Discrete or MultiDiscrete. For continuous actions "
            "set agent to 'ppo'"
        )


def make_q_network(
    config: NetworkConfig, observation_space: Space, action_space: Space, *, duelling: bool, key: PRNGKeyArray
) -> QNetwork:
    """Return a network of action values. Raises `ValueError` for a space, memory or setting it cannot handle."""
    check_discrete(action_space)
    if config.separate_value:
        raise ValueError("network.separate_value is for actor-critics; with agent 'dqn' set it to false")
    torso_key, head_key, value_key = jax.random.split(key, 3)
    outputs = action_outputs(action_space)
    return QNetwork(
        action_space=action_space,
        torso=make_torso(config, observation_space, action_space, key=torso_key),
        # Small gains make the first values, which the first targets are made of, nearly zero.
        head=Dense(config.width, outputs, 0.01, key=head_key),
        value_head=Dense(config.width, 1, 0.01, key=value_key) if duelling else None,
    )

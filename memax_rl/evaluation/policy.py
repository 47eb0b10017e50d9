"""A trained policy by itself, for a program of one's own: without its environment, and without anything of training.

`PolicyStep` is the pure function of one step; `LoadedPolicy` holds its state, and takes and gives numpy arrays.
"""

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from memax_rl.agents.acting import plays_greedily
from memax_rl.envs.plain_spaces import (
    PlainDiscrete,
    PlainMultiBinary,
    PlainMultiDiscrete,
    from_plain,
    plain_leaves,
    structure,
)
from memax_rl.envs.spaces import Discrete, MultiDiscrete, usable_mask, value_counts
from memax_rl.envs.wrappers import Spaces, layers, wrap
from memax_rl.networks import ActorCritic, to_environment
from memax_rl.networks.encoder import AgentInput
from memax_rl.precision import Precision, products_in
from memax_rl.rollout.streams import Act, seed_key
from memax_rl.runs.build import Trained, load_to_act
from memax_rl.runs.run import Checkpoint, Run

_IMPL = "philox4x32"


class PolicyState(NamedTuple):
    """What a policy keeps from step to step: the network's carry, and its `previous_action` as the network made it."""

    carry: tuple[Array, ...]
    previous_action: Array


class PolicyStep:
    """One step of a trained policy, as a pure function, for one environment.

    Attributes:
        spaces: What it takes and gives: those of the environment, or of the network where it is `wrapped`.
        observations: The arrays of an observation: the keys that lead to each, its space, its dtype on the device.
        leaves: The network's arrays, the first argument.
        initial: The state before the first step.
        action_space: The network's.
        mask_space: That of which a mask of legal actions holds the values: the environment's, counted from 0.
        needs_reward: Whether the network sees its previous reward.
        needs_mask: Whether the environment that it was trained in says which actions are legal.

    Args:
        trained: What of a run is needed to act.
        index: Which of its networks.
    """

    def __init__(self, trained: Trained, index: int, greedy: bool, wrapped: bool):
        # Through numpy: JAX would compile a program for each shape.
        network = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[index]) if eqx.is_array(x) else x, trained.networks)
        if isinstance(network, ActorCritic) and network.value_torso is not None:
            # Acting does not need it.
            network = eqx.tree_at(lambda n: n.value_torso, network, None)
        arrays, self._static = eqx.partition(network, eqx.is_array)
        leaves, self._network_tree = jax.tree.flatten(arrays)
        self.leaves = tuple(leaves)
        self._acting, self._greedy = trained.acting, greedy
        self._precision: Precision = trained.config.precision
        self.needs_reward = trained.config.network.previous_reward
        spaces = trained.spaces
        self.needs_mask = spaces.action_masks
        self.action_space = from_plain(spaces.network.action)
        self.spaces = spaces.network if wrapped else spaces.environment
        self._learner = spaces.network if wrapped else spaces.learner
        self.mask_space = from_plain(self._learner.action)
        inner = [leaf for _, leaf in plain_leaves(self._learner.observation)]
        outer = plain_leaves(self.spaces.observation)
        self.observations = [(path, leaf, jnp.dtype(x.dtype)) for (path, leaf), x in zip(outer, inner, strict=True)]
        self._inner = inner
        self._layers: list[Any] = [] if wrapped else _wrappers(trained)
        carry = jax.jit(lambda: network.initial_state())()
        carry, self._carry_tree = jax.tree.flatten(carry)
        action = jnp.asarray(np.zeros(self.action_space.shape, self.action_space.dtype))
        self.initial = PolicyState(tuple(carry), action)
        if self._layers:
            self._check_shown(spaces.network.observation)

    def __call__(
        self,
        leaves: tuple[Array, ...],
        state: PolicyState,
        observation: tuple[Array, ...],
        reward: Array,
        start: Array,
        key: PRNGKeyArray,
        action_mask: Array | None = None,
    ) -> tuple[PolicyState, Array]:
        """Return the state after a step, and the action as the environment takes it, with at most 32 bits.

        Args:
            leaves: The network's arrays, `self.leaves`.
            state: The last state; where `start` is true it does not count.
            observation: Its arrays, as `self.observations` says, in the environment's own values.
            reward: What followed the last action; where `start` is true it does not count.
            start: Whether the observation begins an episode.
            key: For the action.
            action_mask: Which actions are legal, None for all (`memax_rl.envs.base.Environment.action_mask`).
        """
        network = eqx.combine(jax.tree.unflatten(self._network_tree, leaves), self._static)
        for layer in self._layers:
            reward = layer.show_reward(reward)
        inputs = AgentInput(
            observation=self._show(observation),
            previous_action=jnp.where(start, jnp.zeros_like(state.previous_action), state.previous_action),
            previous_reward=jnp.where(start, 0, reward),
            start=start,
            action_mask=None if action_mask is None else self._show_mask(action_mask),
        )
        act: Act = self._acting.act(network, self._greedy)
        with products_in(self._precision):
            carry, action, _ = act(jax.tree.unflatten(self._carry_tree, state.carry), inputs, key)
        # Strong dtypes, so that the state of every step is like the first one.
        carry = tuple(x.astype(old.dtype) for x, old in zip(jax.tree.leaves(carry), self.initial.carry, strict=True))
        given = _from_learner(self.spaces.action, self._inner_action(to_environment(self.action_space, action)))
        return PolicyState(carry, action.astype(state.previous_action.dtype)), given

    def _inner_action(self, action: Array) -> Array:
        """Return an action of the network as the environment takes it within all wrappers."""
        for layer in reversed(self._layers):
            action = layer.inner_action(action, None)
        return action

    def _show(self, observation: tuple[Array, ...]) -> Any:
        """Return an observation as the network sees it."""
        found = zip(observation, self.observations, self._inner, strict=True)
        arrays = [_to_learner(outer, inner, x, dtype) for x, (_, outer, dtype), inner in found]
        shown = jax.tree.unflatten(jax.tree.structure(structure(self._learner.observation)), arrays)
        for layer in self._layers:
            shown = layer.show(shown, None)
        return shown

    def _show_mask(self, mask: Array) -> Array:
        """Return which actions of the network are legal."""
        mask = usable_mask(self.mask_space, mask)
        for layer in self._layers:
            mask = layer.show_action_mask(mask, None)
        return mask

    def _check_shown(self, expected: Any) -> None:
        """Raise `ValueError` unless the wrappers make of an observation what the network sees."""
        arrays = tuple(jax.ShapeDtypeStruct(leaf.shape, dtype) for _, leaf, dtype in self.observations)
        shown = jax.eval_shape(self._show, arrays)
        wanted = [(leaf.shape, np.dtype(jnp.dtype(leaf.dtype))) for _, leaf in plain_leaves(expected)]
        action = jax.ShapeDtypeStruct(self.action_space.shape, self.action_space.dtype)
        taken = jax.eval_shape(self._inner_action, action).shape
        fits = math.prod(taken) == math.prod(self._learner.action.shape)
        if not fits or [(x.shape, np.dtype(x.dtype)) for x in jax.tree.leaves(shown)] != wanted:
            names = ", ".join(type(layer).__name__ for layer in self._layers)
            raise ValueError(
                f"the wrappers of the run ({names}) cannot be applied outside of its environment; show the policy what "
                "they show (from Python: wrapped=True, on the command line: --wrapped)"
            )


def _wrappers(trained: Trained) -> list[Any]:
    """Return the wrappers of the run, the innermost first, around nothing but spaces."""
    learner = trained.spaces.learner
    bare = Spaces(from_plain(learner.observation), from_plain(learner.action))
    env, _ = wrap(bare, None, trained.config.env, trained.config.env_wrappers)
    return layers(env)[1:]


def _to_learner(outer: Any, inner: Any, x: Array, dtype: Any) -> Array:
    """Return an array of an observation in the learner's form: from 0, and flat where the learner's is."""
    return (x - _starts(outer, x.dtype)).reshape(inner.shape).astype(dtype) if _is_counted(outer) else x.astype(dtype)


def _from_learner(outer: Any, action: Array) -> Array:
    """Return an action as the environment counts and shapes it."""
    return action.reshape(outer.shape) + _starts(outer, action.dtype) if _is_counted(outer) else action


def _is_counted(space: Any) -> bool:
    return isinstance(space, PlainDiscrete | PlainMultiDiscrete | PlainMultiBinary)


def _counts(space: Any) -> Any:
    """Return how many values each element has."""
    if isinstance(space, PlainMultiDiscrete):
        return np.reshape(space.nvec, space.shape)
    return space.n if isinstance(space, PlainDiscrete) else 2


def _starts(space: Any, dtype: Any) -> np.ndarray:
    start = 0 if isinstance(space, PlainMultiBinary) else space.start
    return np.asarray(start, dtype).reshape(space.shape) if isinstance(start, tuple) else np.asarray(start, dtype)


class LoadedPolicy:
    """The trained policy of a run, that acts for one environment or for a batch of them.

    >>> policy = memax_rl.load("runs/first")  # doctest: +SKIP
    >>> action = policy.step(observation)  # doctest: +SKIP

    It keeps its memory, its previous action and its random key from step to step. The actions are those of
    `memax_rl.evaluate` of the same seed and as many episodes.

    Attributes:
        seed: Which of the run's seeds it is of.
        batch_size: For how many environments it acts, or None for one without a batch axis.
        greedy: Whether it takes its best action at every step.
        spaces: Observation and action, as it takes and gives them: those of the environment, or with `wrapped` those of
            the environment in its wrappers.
    """

    def __init__(self, trained: Trained, seed: int, batch_size: int | None, greedy: bool, wrapped: bool):
        self.seed, self.batch_size, self.greedy = seed, batch_size, greedy
        self._function = PolicyStep(trained, trained.seeds.index(seed), greedy, wrapped)
        self.spaces = self._function.spaces
        self._config = trained.config
        self._batch = () if batch_size is None else (batch_size,)
        self._leaves = self._function.leaves
        self._dtype = np.dtype(self.spaces.action.dtype)
        self._compiled = jax.jit(self._act, static_argnames="given")
        self.reset(trained.config.seed)

    def __repr__(self) -> str:
        """Say of what it is."""
        config = self._config
        about = f"env={config.env!r}, memory={config.network.memory!r}, seed={self.seed}, greedy={self.greedy}"
        return f"LoadedPolicy({about}, batch_size={self.batch_size})"

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode in every environment: the next observation is its first, and nothing before it counts.

        Args:
            seed: Of the random actions from here on, as that of `memax_rl.evaluate`. None: they go on as they are.
        """
        self._start = np.ones(self._batch, bool)
        first = jax.tree.map(np.asarray, self._function.initial)
        self._state = jax.tree.map(lambda x: jnp.asarray(np.broadcast_to(x, (*self._batch, *x.shape))), first)
        if seed is not None:
            self._key = _first_key(seed_key(seed), self.seed - self._config.seed, self._config.num_seeds)

    def step(
        self,
        observation: Any,
        reward: Any = None,
        *,
        start: Any = None,
        key: Any = None,
        action_mask: Any = None,
    ) -> Any:
        """Return the action for an observation, as the environment takes it: an array, or a number of numpy's.

        Args:
            observation: As the environment gives it: an array, a number, or a dict or tuple of them; of a batch, each
                with a leading axis.
            reward: What followed the last action; of a batch, one each. At an episode's start it does not count, and
                may be left out.
            start: Whether the observation is the first of an episode; of a batch, one flag each. After `reset` all are.
            key: Of the random action, or one each, instead of the policy's own.
            action_mask: Which actions are legal; for several components one after the other. It must be given where
                the environment of training has one, and may be left out where all always are.

        Raises:
            ValueError: That says what is wrong with an argument.
        """
        begins = self._start if start is None else self._start | self._array("start", start, np.bool_)
        if reward is None and self._function.needs_reward and not begins.all():
            raise ValueError("reward: the policy sees what followed its last action; give it, or begin with reset()")
        rewards = np.zeros(self._batch, np.float32) if reward is None else self._array("reward", reward, np.float32)
        arrays = tuple(self._read(path, leaf, dtype, observation) for path, leaf, dtype in self._function.observations)
        bits = self._key if key is None else jax.random.key_data(self._check_key(key))
        self._state, after, action = self._compiled(
            self._leaves, self._state, arrays, rewards, begins, bits, self._mask(action_mask), given=key is not None
        )
        if key is None:
            self._key = after
        self._start = np.zeros(self._batch, bool)
        # A number rather than an array of no axes, which cannot be a key of a dict.
        return np.asarray(action).astype(self._dtype)[()]

    def _act(self, leaves, state, observation, reward, start, bits, mask, *, given: bool):
        """Return state and key after a step, and the actions; with `given` the bits are the keys of the actions."""
        after, count = bits, self.batch_size or 1
        keys = jax.random.wrap_key_data(bits, impl=_IMPL)
        if not given:
            key, step_key = jax.random.split(keys)
            after = jax.random.key_data(key)
            # As in `play`: the second of each two is the environment's.
            keys = jax.random.split(step_key, (count, 2))[:, 0].reshape(self._batch)
        step = self._function if self.batch_size is None else jax.vmap(self._function, in_axes=(None, *[0] * 6))
        state, action = step(leaves, state, observation, reward, start, keys, mask)
        return state, after, action

    def _mask(self, mask: Any) -> np.ndarray | None:
        if mask is None and self._function.needs_mask:
            raise ValueError(
                "action_mask: in training the environment said which actions are legal, and without a mask the policy "
                "takes others too; give it, all true where all are"
            )
        if mask is None:
            return None
        space = self._function.mask_space
        if not isinstance(space, Discrete | MultiDiscrete):
            raise ValueError(f"action_mask: only discrete actions have one, and these are {_short(space)}")
        array, shape = np.asarray(mask), (*self._batch, sum(value_counts(space)))
        if array.shape != shape or array.dtype.kind not in "biu":
            raise ValueError(
                f"action_mask: expected bools of the shape {list(shape)}, got {array.dtype} {list(array.shape)}"
            )
        return array.astype(bool)

    def _check_key(self, key: Any) -> Any:
        if not jnp.issubdtype(getattr(key, "dtype", np.float32), jax.dtypes.prng_key):
            raise ValueError(f"key: expected keys of JAX, as jax.random.key(0, impl={_IMPL!r}); got {_short(key)}")
        if key.shape != self._batch:
            raise ValueError(f"key: expected keys of shape {list(self._batch)}, got {list(key.shape)}")
        if str(jax.random.key_impl(key)) != _IMPL:
            raise ValueError(f"key: expected keys of {_IMPL}, as jax.random.key(0, impl={_IMPL!r}); got {key.dtype}")
        return key

    def _array(self, name: str, value: Any, dtype: Any) -> np.ndarray:
        array = np.asarray(value)
        if array.shape != self._batch:
            raise ValueError(f"{name}: expected the shape {list(self._batch)}, got {list(array.shape)}{self._hint()}")
        if array.dtype.kind not in ("b" if dtype is np.bool_ else "fiub"):
            raise ValueError(f"{name}: expected {np.dtype(dtype)}, got {array.dtype}")
        return _narrowed(name, array, np.dtype(dtype))

    def _read(self, path: tuple[str | int, ...], leaf: Any, dtype: Any, observation: Any) -> np.ndarray:
        """Return an array of the observation, checked, as the compiled function takes it."""
        value, name = observation, "observation"
        for key in path:
            name += f"[{key!r}]"
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                raise ValueError(f"{name} is missing; got {_short(observation)}") from None
        array = np.asarray(value)
        shape = (*self._batch, *leaf.shape)
        if array.shape != shape:
            raise ValueError(f"{name}: expected the shape {list(shape)}, got {list(array.shape)}{self._hint()}")
        if array.dtype.kind not in ("biu" if dtype.kind in "biu" else "fiubV"):
            raise ValueError(f"{name}: expected {dtype}, got {array.dtype}")
        if _is_counted(leaf):
            low = _starts(leaf, np.int64)
            if ((array < low) | (array >= low + _counts(leaf))).any():
                raise ValueError(f"{name}: {_short(array.tolist())} is not in {_short(leaf)}")
        return _narrowed(name, array, dtype)

    def _hint(self) -> str:
        if self.batch_size is None:
            return "; for a batch give load a batch_size"
        return f", for a batch of {self.batch_size}"


@functools.partial(jax.jit, static_argnames=("index", "num_seeds"))
def _first_key(key: PRNGKeyArray, index: int, num_seeds: int) -> Array:
    """Return the key with which `evaluate_state` and `play` begin for the index-th seed of a run.

    As bits: a call with typed keys takes JAX several times as long.
    """
    keys = jax.random.split(jax.random.fold_in(key, 2**31), num_seeds)
    return jax.random.key_data(jax.random.split(keys[index])[1])


def _narrowed(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the array in a dtype that holds its values. Raises `ValueError` if it does not, or is not finite."""
    if dtype.kind in "biu":
        if array.dtype == dtype:
            return array
        narrow = array.astype(dtype)
        if (narrow != array).any():
            raise ValueError(f"{name}: {_short(array.tolist())} does not fit into {dtype}")
        return narrow
    with np.errstate(over="ignore"):
        narrow = array if array.dtype == dtype else array.astype(dtype)
    if not np.isfinite(narrow).all():
        raise ValueError(f"{name}: {_short(array.tolist())} is not finite as {dtype}")
    return narrow


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else text[:100] + "..."


def load(
    run: str | Path,
    seed: int | None = None,
    checkpoint: Checkpoint = "newest",
    *,
    batch_size: int | None = None,
    greedy: bool | None = None,
    wrapped: bool = False,
    imports: Iterable[str] = (),
    trust: bool = False,
) -> LoadedPolicy:
    """Return the trained policy of a run, to act in a program of one's own (docs/policy.md).

    Neither the environment nor anything of training is made. A run of a version that did not write spaces.json, or one
    of an agent of one's own that does not say how it acts without an environment, has its environment made to look at.

    Args:
        run: The run folder.
        seed: Which of the run's seeds; by default the first that did not diverge.
        checkpoint: "newest", "best" by evaluation during training, or the update of one that was kept.
        batch_size: For how many environments at once. None: one, without a batch axis.
        greedy: Whether to take the best action at every step. By default DQN does and PPO does not.
        wrapped: Whether observations and rewards come as the run's wrappers show them, and those of a Gymnasium
            environment in the learner's form. By default as the environment itself gives them: what the wrappers do is
            done inside.
        imports, trust: Packages that the run may import, for an agent or a memory of one's own (docs/runs.md).

    Raises:
        RunError: If the folder is no run, or has no sound checkpoint or none of that seed.
        ValueError: If spaces.json is damaged, or an argument is wrong.
    """
    trained, chosen, is_greedy = choose(run, seed, checkpoint, batch_size, greedy, imports, trust)
    return LoadedPolicy(trained, chosen, batch_size, is_greedy, wrapped)


def choose(
    run: str | Path,
    seed: int | None,
    checkpoint: Checkpoint,
    batch_size: int | None,
    greedy: bool | None,
    imports: Iterable[str],
    trust: bool,
) -> tuple[Trained, int, bool]:
    """Return what of a run is needed to act, the seed, and whether greedily.

    Args:
        seed, checkpoint, batch_size: As in `load`.

    Raises:
        ValueError: As `load`.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}; leave it out for one environment")
    trained = load_to_act(Run.open(run, imports, trust), checkpoint)
    chosen = trained.seeds[0] if seed is None else seed
    if chosen not in trained.seeds:
        raise ValueError(f"seed={seed}, but the run {run} has trained {', '.join(map(str, trained.seeds))}")
    return trained, chosen, plays_greedily(trained.acting, greedy)

"""The torso of a network: an encoder and a stack of memory blocks, from inputs to features.

Unbatched but for `Torso.scan`; `step` is for acting, `scan` for learning, as in the memory contract.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from memax_rl import memory as memories
from memax_rl.memory import Memory
from memax_rl.networks.encoder import AgentInput, Dense, Encoder, Space
from memax_rl.networks.images import ImageSettings
from memax_rl.unused import refuse_unused


class BlockConfig(BaseModel):
    """A memory block of a stack; in YAML a name, or a mapping with the memory's options beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    memory: str
    """Name of the memory model."""
    repeat: int = Field(default=1, ge=1, le=256)
    """How many such blocks follow each other."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Options of the memory model."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"memory": value}
        if not isinstance(value, dict):
            return value
        known = {key: x for key, x in value.items() if key in cls.model_fields}
        beside = {key: x for key, x in value.items() if key not in cls.model_fields}
        options = known.get("options", {})
        if not beside or not isinstance(options, dict):
            return known
        if twice := options.keys() & beside.keys():
            raise ValueError(
                f"{min(twice, key=str)} stands in options of {value.get('memory')!r} and beside; give it once"
            )
        return known | {"options": options | beside}

    @field_validator("memory")
    @classmethod
    def _any_case(cls, name: str) -> str:
        return name if name in memories.names() else name.lower()

    @model_validator(mode="after")
    def _check_memory(self) -> "BlockConfig":
        memories.check_options(self.memory, self.options)
        return self

    def __str__(self) -> str:
        return self.memory if self.repeat == 1 else f"{self.memory}x{self.repeat}"


class NetworkConfig(BaseModel):
    """Settings of a network."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    memory: str = "lru"
    """Name of the memory model, see `memax-rl list memories`."""
    memory_options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Options of the memory model, for example --memory-options.state-size 64."""
    blocks: tuple[BlockConfig, ...] = ()
    """A stack of different memories instead of `memory`, its options and `depth`, that next to the encoder first, for
    example --network.blocks '[lru, {memory: attention, window: 32, repeat: 2}]'."""
    scan: Literal["fast", "reference"] = "fast"
    """How memories run over a tape: "fast", with first derivatives in reverse mode alone, or "reference", a plain loop
    over steps that is differentiable any number of times and in forward mode."""
    width: int = Field(default=128, ge=1, le=65_536)
    """Features between layers, and size of the memory's output."""
    depth: int = Field(default=1, ge=1, le=256)
    """Number of memory blocks."""
    feed_forward: float = Field(default=0.0, ge=0, le=64)
    """Hidden size of the layer after each memory, as a multiple of width. 0: none."""
    images: Literal["auto", "pixels", "codes"] = "auto"
    """What images hold: brightness, or codes of things (such as MiniGrid's), one-hot. auto: codes where a Box of whole
    numbers has three to 32 values."""
    channels: Literal["auto", "first", "last"] = "auto"
    """Which axis of an image holds its channels. auto: the smaller one of the first and the last."""
    normalize_observation: bool = False
    """Show real observations minus their running mean, over their running standard deviation. The statistics are of all
    observations learned from so far; they are part of the network and change once an update, after the learning."""
    normalize_clip: float = Field(default=10.0, gt=0)
    """Normalized observations are clipped to plus and minus this."""
    previous_action: bool = True
    """Show the agent its previous action, zero at an episode's start."""
    previous_reward: bool = True
    """Show the agent its previous reward, zero at an episode's start."""
    start: bool = True
    """Show the agent a flag that is 1 at an episode's start."""
    separate_value: bool = False
    """Give the value function encoder and memory of its own."""
    state_dependent_std: bool = False
    """Let the memory say the standard deviation of continuous actions, too. False: a parameter for each component."""

    @field_validator("memory")
    @classmethod
    def _any_case(cls, name: str) -> str:
        return name if name in memories.names() else name.lower()

    @field_validator("blocks", mode="before")
    @classmethod
    def _read_blocks(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @model_validator(mode="before")
    @classmethod
    def _name_stack(cls, fields: Any) -> Any:
        """A stack is called by its parts where no memory is named."""
        if isinstance(fields, dict) and fields.get("blocks") and "memory" not in fields:
            return fields | {"memory": ""}
        return fields

    @model_validator(mode="after")
    def _check_memory(self) -> "NetworkConfig":
        if not self.blocks:
            memories.check_options(self.memory, self.memory_options)
            return self
        name = "+".join(map(str, self.blocks))
        if self.memory not in ("", name):
            raise ValueError(f"either memory or blocks: got memory {self.memory!r} and blocks {name}; leave one out")
        if self.memory_options or self.depth != 1:
            raise ValueError("memory_options and depth are for one memory; with blocks give options and repeat there")
        object.__setattr__(self, "memory", name)
        return self

    @model_validator(mode="after")
    def _check_used(self) -> "NetworkConfig":
        if not self.normalize_observation:
            refuse_unused(self, ("normalize_clip",), "is for normalized observations; set normalize_observation")
        if self.feed_forward and not self.feed_forward_size:
            raise ValueError(
                f"feed_forward={self.feed_forward} of width {self.width} is a layer of 0 units; set it to "
                f"{1 / self.width:.4g} or more, or to 0 for none"
            )
        return self

    @property
    def feed_forward_size(self) -> int:
        """Units of the feed-forward layer after each memory; 0 where there is none."""
        return round(self.width * self.feed_forward)

    def of_actor_critics(self) -> str | None:
        """Return the name of a setting that is set and that only actor-critics have, or None."""
        return next((name for name in ("separate_value", "state_dependent_std") if getattr(self, name)), None)

    @property
    def image_settings(self) -> ImageSettings:
        """How the encoder reads images."""
        return ImageSettings(self.images, self.channels)

    @property
    def clip(self) -> float | None:
        """Where normalized observations are clipped, or None where none are normalized."""
        return self.normalize_clip if self.normalize_observation else None

    @property
    def stack(self) -> tuple[BlockConfig, ...]:
        """The blocks one by one, the first one next to the encoder."""
        if not self.blocks:
            return (BlockConfig(memory=self.memory, options=self.memory_options),) * self.depth
        return tuple(block for block in self.blocks for _ in range(block.repeat))


class Block(eqx.Module):
    """Pre-norm residual blocks: x + memory(norm(x)), then x + feed_forward(norm(x)).

    Attributes:
        norm, memory: The memory and the norm before it.
        feed_norm, feed_in, feed_out: Norm and layers of the feed-forward block, or None.

    Args:
        config: Settings of the network.
        block: Memory and options of this block.
    """

    norm: eqx.nn.LayerNorm
    memory: Memory
    feed_norm: eqx.nn.LayerNorm | None
    feed_in: Dense | None
    feed_out: Dense | None

    def __init__(self, config: NetworkConfig, block: BlockConfig, *, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        width, method = config.width, "reference" if config.scan == "reference" else None
        self.norm = eqx.nn.LayerNorm(width)
        self.memory = memories.make(
            block.memory, in_size=width, out_size=width, key=keys[0], method=method, **block.options
        )
        hidden = config.feed_forward_size
        self.feed_norm = eqx.nn.LayerNorm(width) if hidden else None
        self.feed_in = Dense(width, hidden, 2**0.5, key=keys[1]) if hidden else None
        self.feed_out = Dense(hidden, width, key=keys[2]) if hidden else None

    def feed(self, x: Float[Array, " width"]) -> Float[Array, " width"]:
        """Return x + feed_forward(norm(x)), or x where there is no feed-forward layer."""
        if self.feed_norm is None or self.feed_in is None or self.feed_out is None:
            return x
        return x + self.feed_out(jax.nn.gelu(self.feed_in(self.feed_norm(x))))


class Torso(eqx.Module):
    """Encoder and memory blocks, from inputs to `width` features. The carry holds a state for each block.

    Attributes:
        encoder: From what the network is shown to `width` features.
        blocks: The memory blocks, in order.
        norm: The last norm.
    """

    encoder: Encoder
    blocks: tuple[Block, ...]
    norm: eqx.nn.LayerNorm

    @property
    def width(self) -> int:
        """Size of the features."""
        return self.encoder.project.weight.shape[0]

    def initial_state(self) -> tuple[Any, ...]:
        """Return the initial states of all blocks."""
        return tuple(block.memory.initial_state() for block in self.blocks)

    def step(self, state: tuple[Any, ...], inputs: AgentInput) -> tuple[tuple[Any, ...], Float[Array, " width"]]:
        """Return the next state and the features of one step."""
        x = self.encoder(inputs)
        states = []
        for block, s in zip(self.blocks, state, strict=True):
            s, y = block.memory.step(s, block.norm(x), inputs.start)
            x = block.feed(x + y)
            states.append(s)
        return tuple(states), self.norm(x)

    def scan(
        self, state: tuple[Any, ...], inputs: AgentInput
    ) -> tuple[tuple[Any, ...], Float[Array, "rows slots width"]]:
        """Return the last states and the features of all steps of a batch of rows.

        Batched, unlike the other methods: the layers between the memories see all slots as one flat batch, because a
        weight gradient that sums over two axes needs a transposed copy on a CPU.
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


def on_slots(f: Callable[..., Any], *args: PyTree[Array]) -> Any:
    """Return `f` of what each slot has of `args`, arrays [rows, slots, ...], such as its features."""
    rows, slots = jax.tree.leaves(args)[0].shape[:2]
    flat = jax.vmap(f)(*jax.tree.map(lambda leaf: leaf.reshape(rows * slots, *leaf.shape[2:]), args))
    return jax.tree.map(lambda leaf: leaf.reshape(rows, slots, *leaf.shape[1:]), flat)


def make_torso(config: NetworkConfig, observation_space: Space, action_space: Space, *, key: PRNGKeyArray) -> Torso:
    """Return a torso of the configured memory blocks."""
    encoder_key, *block_keys = jax.random.split(key, len(config.stack) + 1)
    return Torso(
        encoder=Encoder(
            observation_space,
            action_space,
            config.width,
            previous_action=config.previous_action,
            previous_reward=config.previous_reward,
            start=config.start,
            images=config.image_settings,
            normalize=config.clip,
            key=encoder_key,
        ),
        blocks=tuple(Block(config, block, key=k) for block, k in zip(config.stack, block_keys, strict=True)),
        norm=eqx.nn.LayerNorm(config.width),
    )

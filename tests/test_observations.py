"""What the network makes of an observation follows from its space: bounds and shape, never the dtype."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memax_rl
from memax_rl import envs
from memax_rl.envs import spaces
from memax_rl.envs.base import Environment
from memax_rl.networks import NetworkConfig, make_torso
from memax_rl.networks.encoder import AgentInput, Encoder, describe_inputs
from memax_rl.networks.images import ConvNet, ImageSettings, image_axes, image_codes
from memax_rl.runs import Run


def _encoder(space, seed: int = 0) -> Encoder:
    flags: dict[str, Any] = {"previous_action": False, "previous_reward": False, "start": False}
    return Encoder(space, spaces.Discrete(2), 8, **flags, key=jax.random.key(seed))


def _features(space, observation) -> np.ndarray:
    inputs = AgentInput(observation, jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros((), bool))
    return np.asarray(_encoder(space)(inputs))


def test_one_picture_gives_the_same_features_in_every_dtype():
    picture = np.random.default_rng(0).integers(0, 2, (8, 8, 3))
    as_float = _features(spaces.Box(0.0, 1.0, (8, 8, 3)), jnp.asarray(picture, jnp.float32))
    others = {
        "bool": (spaces.Box(0, 1, (8, 8, 3), jnp.bool_), picture.astype(bool)),
        "uint8 to 1": (spaces.Box(0, 1, (8, 8, 3), jnp.uint8), picture.astype(np.uint8)),
        "uint8 to 255": (spaces.Box(0, 255, (8, 8, 3), jnp.uint8), (255 * picture).astype(np.uint8)),
        "float to 255": (spaces.Box(0.0, 255.0, (8, 8, 3)), (255 * picture).astype(np.float32)),
        "int32 to 255": (spaces.Box(0, 255, (8, 8, 3), jnp.int32), (255 * picture).astype(np.int32)),
    }
    for name, (space, observation) in others.items():
        np.testing.assert_allclose(_features(space, jnp.asarray(observation)), as_float, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("shape", "channels", "rows"),
    [
        ((84, 84, 4), (2,), 0),
        ((4, 84, 84), (0,), 1),
        ((3, 64, 64), (0,), 1),
        ((10, 10, 4), (2,), 0),
        ((7, 7, 7), (2,), 0),
        ((84, 84), (), 0),
        ((4, 32, 32, 3), (0, 3), 1),
        ((4, 3, 32, 32), (0, 1), 2),
    ],
    ids=str,
)
def test_the_channels_of_an_image_are_found(shape, channels, rows):
    assert image_axes(spaces.Box(0, 255, shape, jnp.uint8)) == (channels, rows)


def test_a_stack_of_images_is_read_as_its_channels_end_to_end():
    stack = jax.random.uniform(jax.random.key(0), (4, 16, 16, 3))
    network = ConvNet(spaces.Box(0.0, 1.0, stack.shape), key=jax.random.key(1))
    joined = ConvNet(spaces.Box(0.0, 1.0, (12, 16, 16)), key=jax.random.key(1))
    np.testing.assert_allclose(network(stack), joined(stack.transpose(0, 3, 1, 2).reshape(12, 16, 16)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 2), (4,), (2, 9)], ids=str)
def test_small_arrays_are_vectors(shape):
    assert image_axes(spaces.Box(0.0, 1.0, shape)) is None


@pytest.mark.parametrize("shape", [(210, 160, 3), (84, 84, 4), (64, 64, 3), (10, 10, 4)], ids=str)
def test_no_image_becomes_more_features_than_a_layer_can_read(shape):
    assert ConvNet(spaces.Box(0, 255, shape, jnp.uint8), key=jax.random.key(0)).out_size <= 32 * 12 * 12


def test_numbers_with_large_bounds_are_scaled_and_others_are_as_they_are():
    ram = spaces.Box(0, 255, (3,), jnp.uint8)
    np.testing.assert_allclose(
        _encoder(ram).flatten(
            AgentInput(jnp.array([0, 51, 255], jnp.uint8), jnp.array(0), jnp.zeros(()), jnp.array(False))
        ),
        [0.0, 0.2, 1.0],
    )
    for space in (spaces.Box(-4.8, 4.8, (2,)), spaces.Box(-3.4e38, 3.4e38, (2,)), spaces.Box(-jnp.inf, jnp.inf, (2,))):
        x = jnp.array([2.0, -3.0])
        shown = _encoder(space).flatten(AgentInput(x, jnp.array(0), jnp.zeros(()), jnp.array(False)))
        np.testing.assert_array_equal(shown, x)


def test_a_discrete_space_of_millions_is_embedded():
    space = spaces.Discrete(10**7)
    encoder = _encoder(space)
    assert sum(x.size for x in jax.tree.leaves(encoder.parts)) < 1_000_000
    shown = [_features(space, jnp.array(x)) for x in (0, 1, 3163, 10**7 - 1)]
    assert np.all(np.isfinite(shown))
    assert len({features.tobytes() for features in shown}) == 4


def test_what_each_array_became_is_said():
    space = spaces.Dict(
        {
            "a": spaces.Box(0, 255, (84, 84, 3), jnp.uint8),
            "b": spaces.Box(-1.0, 1.0, (2,)),
            "c": spaces.Discrete(4),
            "d": spaces.Discrete(1000),
        }
    )
    assert describe_inputs(space) == [
        "a Box(84, 84, 3): an image of 84 x 84 with 3 channels, mapped from its bounds to [0, 1]",
        "b Box(2): as it is",
        "c Discrete(4): one-hot",
        "d Discrete(1000): embedded",
    ]
    nested = spaces.Dict({"x": spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3)))})
    assert [line.split()[0] for line in describe_inputs(nested)] == ["x.0", "x.1"]


def _codes(high: Any, shape: tuple[int, ...] = (7, 7, 3)) -> spaces.Box:
    bound = jnp.broadcast_to(jnp.array(high, jnp.uint8), shape)
    return spaces.Box(jnp.zeros(shape, jnp.uint8), bound, shape, jnp.uint8)


def test_an_image_of_codes_is_read_one_hot():
    """A code is the number of a thing: twice the number is not twice the thing."""
    space = _codes([10, 5, 3])
    network = ConvNet(space, key=jax.random.key(0))
    assert network.codes == (11, 6, 4)
    assert network.layers[0].weight.shape[1] == 21
    image = jax.random.randint(jax.random.key(1), (7, 7, 3), 0, 4).astype(jnp.uint8)
    by_hand = jnp.concatenate([jax.nn.one_hot(image[..., i], n) for i, n in enumerate((11, 6, 4))], axis=-1)
    joined = ConvNet(spaces.Box(0.0, 1.0, (7, 7, 21)), ImageSettings("pixels", "last"), key=jax.random.key(0))
    np.testing.assert_allclose(network(image), joined(by_hand), atol=1e-6)
    assert "codes of 11 + 6 + 4 values, one-hot" in describe_inputs(space)[0]
    assert np.isfinite(np.asarray(_features(space, image))).all()


@pytest.mark.parametrize(
    ("space", "settings", "codes"),
    [
        (_codes([1, 1, 1]), {}, None),
        (spaces.Box(0.0, 10.0, (7, 7, 3)), {}, None),
        (_codes([255, 255, 255]), {}, None),
        (_codes([10, 5, 3]), {"kind": "pixels"}, None),
        (_codes([255, 255, 255]), {"kind": "codes"}, (256, 256, 256)),
        (_codes([4, 4, 4, 4, 4, 4], (6, 9, 6)), {"channels": "first"}, (5,) * 6),
    ],
    ids=["flags", "real", "brightness", "stated pixels", "stated codes", "channels first"],
)
def test_which_images_hold_codes(space, settings, codes):
    assert image_codes(space, ImageSettings(**settings)) == codes


def test_settings_of_images_reach_the_network_and_are_checked():
    with pytest.raises(ValueError, match=r"network.images is 'codes', but .* no Box of whole numbers"):
        image_codes(spaces.Box(0.0, 1.0, (8, 8, 3)), ImageSettings("codes"))
    assert image_axes(spaces.Box(0.0, 1.0, (6, 9, 6)), ImageSettings(channels="first")) == ((0,), 1)
    assert image_axes(spaces.Box(0.0, 1.0, (6, 9, 6)), ImageSettings(channels="last")) == ((2,), 0)
    network = NetworkConfig(images="codes", width=8)
    torso = make_torso(network, _codes([255, 255, 255]), spaces.Discrete(2), key=jax.random.key(0))
    (part,) = torso.encoder.parts
    assert isinstance(part, ConvNet)
    assert part.codes == (256, 256, 256)


class EmptyPart(Environment):
    """Shows an array of no numbers beside one that tells which action pays."""

    @property
    def default_params(self):
        return None

    def action_space(self, params):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Dict({"empty": spaces.Box(0.0, 1.0, (0,)), "cue": spaces.Discrete(2)})

    def max_episode_steps(self, params):
        return 1

    def fixed_length(self, params):
        return 1

    def truncates(self, params):
        return False

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)

    def reset_env(self, key, params):
        cue = jax.random.bernoulli(key).astype(jnp.int32)
        return {"empty": jnp.zeros(0), "cue": cue}, cue

    def step_env(self, key, state, action, params):
        reward = jnp.where(action == state, 1.0, 0.0)
        return {"empty": jnp.zeros(0), "cue": state}, state, reward, jnp.ones((), bool), {}


@pytest.mark.slow
def test_an_empty_array_is_left_out_of_checkpoints_too(tmp_path):
    envs.register("own/EmptyPart", EmptyPart)
    settings: dict[str, Any] = {
        "network": {"memory": "mlp", "width": 8},
        "ppo": {"num_envs": 4, "rollout_length": 16, "num_minibatches": 1},
    }
    folder = memax_rl.train(
        env="own/EmptyPart", total_steps=64, eval_episodes=0, out=tmp_path / "run", **settings
    ).folder
    assert memax_rl.evaluate(folder, episodes=4)["unfinished_episodes"] == 0
    assert Run.open(folder).saved_updates() == [1]

"""Environments on the host: one call for all streams, ends and seeds, faults, and what a run makes of them."""

import json
import math
import multiprocessing
import sys
from functools import partial
from typing import Any

import _host_environments  # noqa: F401
import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from memax_rl import envs
from memax_rl.agents.ppo import PPO, PPOConfig
from memax_rl.cli import main
from memax_rl.envs import base, spaces
from memax_rl.envs.adapters.gymnasium import GymnasiumAdapter
from memax_rl.envs.adapters.gymnasium import _seed as _host_seed
from memax_rl.envs.adapters.gymnasium_options import HostOptions
from memax_rl.evaluation import evaluate
from memax_rl.networks import NetworkConfig, make_actor_critic
from memax_rl.runs import Run, make_config
from memax_rl.runs.overrides import override
from memax_rl.training import TrainingError, train

COUNTER = "gym/memax_test/Counter-v0"


@pytest.fixture
def make():
    """`envs.make` with arguments; what it made is closed after the test."""
    made = []

    def one(env_id=COUNTER, processes=0, step_timeout=60.0, **arguments):
        made.append(envs.make(env_id, processes=processes, step_timeout=step_timeout, arguments=arguments))
        return made[-1]

    yield one
    for env, _ in made:
        base.close(env)


def roll(env, params, key, steps=10, seeds=2, streams=3, active=True):
    """Observations, final observations and ends of steps [seeds, streams, steps] of action 1."""

    def one(key):
        reset_key, key = jax.random.split(key)

        def step(carry, key):
            _, state = carry
            step = base.step_if(jnp.asarray(active), env, key, state, jnp.int32(1), params)
            seen = (step.observation, step.final_observation, step.reward, step.terminated, step.truncated)
            return (step.observation, step.state), seen

        (_, state), out = jax.lax.scan(step, env.reset(reset_key, params), jax.random.split(key, steps))
        return state, out

    return jax.jit(jax.vmap(jax.vmap(one)))(jax.random.split(key, (seeds, streams)))


def agent_of(env, params, **changes):
    settings: Any = {"num_envs": 4, "rollout_length": 11, "num_minibatches": 2, "update_epochs": 1} | changes
    network = NetworkConfig(memory="min_gru", width=8)

    def make_network(observation_space, action_space, key):
        return make_actor_critic(network, observation_space, action_space, key=key)

    return PPO(env, params, make_network, PPOConfig(**settings), 10_000)


def test_all_streams_of_all_seeds_step_in_one_call(make, key, monkeypatch):
    env, params = make()
    sizes = []
    run = env.host.run
    monkeypatch.setattr(env.host, "run", lambda commands, *rest: sizes.append(len(commands)) or run(commands, *rest))
    state, _ = roll(env, params, key)
    jax.block_until_ready(state)
    assert sizes == [6] * 10
    assert env.host.begun == 1
    assert np.asarray(state.count).tolist() == [[11] * 3] * 2


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_ends_and_last_observations(ending, make, key):
    env, params = make(ending=ending)
    _, (obs, final, reward, terminated, truncated) = roll(env, params, key)
    assert env.host.failure is None
    time = np.arange(1, 11)
    done = time % 4 == 0
    np.testing.assert_array_equal(obs[0, 0, :, 1], time % 4)
    np.testing.assert_array_equal(final[0, 0, :, 1], np.where(done, 4, time % 4))
    ended, other = (terminated, truncated) if ending == "terminated" else (truncated, terminated)
    np.testing.assert_array_equal(ended, np.broadcast_to(done, ended.shape))
    assert not np.asarray(other).any()
    assert (np.asarray(reward) == 1).all()
    numbers = np.asarray(final[..., 0])
    assert len(np.unique(numbers)) == 18, "every episode of every stream has a seed of its own"


def test_the_same_keys_give_the_same_episodes_in_any_number_of_processes(make, key):
    made = [make(processes=processes) for processes in (0, 0, 2, 4)]
    results = [roll(env, params, key)[1] for env, params in made]
    for other in results[1:]:
        for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_inactive_step_does_not_reach_the_environment(make, key):
    env, params = make()
    state, _ = roll(env, params, key, active=False)
    assert np.asarray(state.count).tolist() == [[1] * 3] * 2
    _, (obs, *_) = roll(env, params, key)
    assert np.asarray(obs)[0, 0, 0, 1] == 1


def test_a_state_can_be_stepped_once(make, key):
    env, params = make()
    _, state = env.reset(key, params)
    env.step(key, state, jnp.int32(0), params)
    assert env.host.failure is None
    jax.block_until_ready(env.step(key, state, jnp.int32(0), params))
    assert "a state was stepped twice" in str(env.host.failure)


@pytest.mark.parametrize("fill", ["whole_episodes", "truncated_bptt"])
@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_the_tape_holds_every_step_of_the_host(fill, ending, make, key):
    """Streams wait, final slots act on nothing, and still no step is lost, doubled or out of order."""
    env, params = make(ending=ending)
    agent = agent_of(env, params, rollout=fill)
    state, steps = agent.init(key), 0
    collect = eqx.filter_jit(agent.collect)
    for i in range(3):
        streams, pending, rows, metrics = collect(state, jax.random.key(i))
        state = eqx.tree_at(lambda s: (s.streams, s.pending), state, (streams, pending))
        steps += int(metrics["env_steps"])
    assert env.host.failure is None
    assert env.host.pools[0].count.sum() == 4 + steps, "a step that the tape does not hold reached the host"
    check_tape(rows.tape, fill)


def check_tape(tape, fill="whole_episodes", slots=11):
    for row in range(4):
        for slot in range(1, slots):
            number, time = np.asarray(tape.observation[row, slot])
            before = np.asarray(tape.observation[row, slot - 1])
            assert bool(tape.start[row, slot]) == (time == 0)
            if not tape.start[row, slot]:
                assert (number, time) == (before[0], before[1] + 1), "an episode spliced out of two"
        assert fill == "truncated_bptt" or tape.start[row, 0]


def test_reopened_streams_begin_anew(make, key):
    """As after a resume: no episode goes on that the new copies do not know; memory and inputs are those of a start."""
    env, params = make()
    agent = agent_of(env, params)
    state = agent.init(key)
    collect = eqx.filter_jit(agent.collect)
    streams, pending, _, _ = collect(state, key)
    state = eqx.tree_at(lambda s: (s.streams, s.pending), state, (streams, pending))
    assert int(pending.length.sum()) > 0
    base.close(env)
    again = agent.reset_environments(state)
    assert not np.asarray(again.pending.length).any()
    assert np.asarray(again.streams.inputs.start).all()
    for leaf, fresh in zip(
        jax.tree.leaves(again.streams.carry), jax.tree.leaves(state.network.initial_state()), strict=True
    ):
        np.testing.assert_array_equal(leaf, np.broadcast_to(fresh, leaf.shape))
    _, _, rows, _ = collect(again, key)
    assert env.host.failure is None
    check_tape(rows.tape)


TROUBLES = [
    ("raises", r"step raised RuntimeError: the door is stuck"),
    ("nan", r"the observation is not finite: array\(\[.*nan\]"),
    ("shape", r"the observation has shape \[1\], expected \[2\]"),
    ("dtype", r"the observation has dtype <U1, expected float32: array\(\['a', 'b'\]"),
    ("reward", r"the reward is inf, expected one finite number"),
    ("huge reward", r"the reward is 1e\+300, too large for float32, expected one finite number"),
    ("four", r"step returned 4 values, expected \(observation, reward, terminated, truncated, info\)"),
    ("swapped", r"truncated is {}, expected true or false"),
    ("exits", r"step raised SystemExit: the simulator gave up"),
    ("interrupts", r"step raised KeyboardInterrupt: the simulator was stopped"),
]


@pytest.mark.parametrize(("trouble", "message"), TROUBLES)
def test_trouble_is_told_with_its_step_and_value(trouble, message, make, key):
    env, params = make(trouble=trouble)
    roll(env, params, key)
    text = str(base.failure(env))
    assert text.startswith(f"the environment {COUNTER} failed: at step 3 of an episode (copy 0, episode seed ")
    assert pytest.importorskip("re").search(message, text), text


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("trouble", ["nan", "huge reward"])
def test_trouble_in_the_last_step_is_told_with_that_episode(trouble, processes, make, key):
    env, params = make(trouble=trouble, at=4, length=4, processes=processes)
    first = jax.jit(env.reset)(key, params)[1]
    begun = int(_host_seed(key))
    state = first
    for i in range(4):
        state = env.step(jax.random.fold_in(key, i), state, jnp.int32(0), params)[1]
    jax.block_until_ready(state)
    assert f"at step 4 of an episode (copy 0, episode seed {begun}) " in str(base.failure(env))


@pytest.mark.parametrize("processes", [0, 2])
def test_an_environment_that_exits_in_its_constructor_is_trouble(processes):
    def leave(**_: Any) -> gymnasium.Env:
        raise SystemExit("no licence")

    gymnasium.register("memax_test/Leaves-v0", entry_point=leave)
    try:
        with pytest.raises(ValueError, match="gym/memax_test/Leaves-v0 cannot be made: SystemExit: no licence"):
            envs.make("gym/memax_test/Leaves-v0", processes=processes)
    finally:
        gymnasium.registry.pop("memax_test/Leaves-v0")


SHOWS = "gym/memax_test/Shows-v0"
LARGE = 2.0**62


@pytest.mark.parametrize(
    ("space", "value", "kind", "want"),
    [
        ((-LARGE, LARGE, "int64"), 1_700_000_000_000, "float32", np.float32(1_700_000_000_000)),
        ((0, LARGE, "uint64"), 2_147_483_653, "float32", np.float32(2_147_483_653)),
        ((0, 9, "int64"), 7, "int32", 7),
        ((0, 9, "uint64"), 7, "int32", 7),
        ((0, 2**32 - 1, "uint32"), 2_147_483_653, "uint32", 2_147_483_653),
        ((-np.inf, np.inf, "float64"), 0.1, "float32", np.float32(0.1)),
        ((-1e300, 1e300, "float64"), -3e38, "float32", np.float32(-3e38)),
    ],
)
def test_64_bits_are_narrowed_without_turning_over(space, value, kind, want, make, key):
    low, high, dtype = space
    env, params = make(SHOWS, low=low, high=high, dtype=dtype, value=value)
    obs, _ = env.reset(key, params)
    assert env.host.failure is None
    assert (obs.dtype, env.observation_space(params).dtype) == (jnp.dtype(kind), jnp.dtype(kind))
    assert obs.tolist() == [want]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": -np.inf, "high": np.inf, "dtype": "float64", "value": 1e39}, "too large for float32: array([1.e+39])"),
        ({"low": 0, "high": 9, "dtype": "int64", "value": 2**32 + 5}, "does not fit in int32, by its space"),
        ({"low": 0, "high": 255, "dtype": "uint8", "value": 300, "as_dtype": "uint16"}, "does not fit in uint8"),
    ],
)
def test_what_cannot_be_narrowed_is_trouble(arguments, message, make, key):
    env, params = make(SHOWS, **arguments)
    jax.block_until_ready(env.reset(key, params))
    assert f"the environment {SHOWS} failed: at step 0 of an episode" in str(env.host.failure)
    assert message in str(env.host.failure)


MISSION = "gym/memax_test/Mission-v0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"observation\['mission'\] cannot be .*Text.*leave it out with --env-options.drop-keys '\[mission\]'$"),
        ({"arguments": {"nested": True}}, r"observation\[0\]\['mission'\] cannot be given to a network: .*Text[^;]*$"),
        ({"drop_keys": ["missoin"]}, "there is no 'missoin' of the keys direction, image, mission"),
        ({"keep_keys": ["mission"]}, r"observation\['mission'\] cannot be"),
        ({"keep_keys": ["image"], "drop_keys": ["image"]}, "nothing is left of the keys direction, image, mission"),
    ],
)
def test_a_part_that_no_array_can_stand_for_is_named(arguments, message):
    with pytest.raises(ValueError, match=rf"gym/memax_test/Mission-v0 cannot be made: .*{message}"):
        envs.make(MISSION, **arguments)


def test_keys_of_what_is_no_dict_are_refused():
    with pytest.raises(ValueError, match=r"keep_keys and drop_keys are for Dict observations, and it has Box"):
        envs.make(COUNTER, drop_keys=["mission"])


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize(
    ("options", "left"), [({"drop_keys": ["mission"]}, ["direction", "image"]), ({"keep_keys": ["image"]}, ["image"])]
)
def test_keys_can_be_dropped_or_kept(options, left, processes, key):
    env, params = envs.make(MISSION, processes=processes, **options)
    try:
        _, (obs, final, *_) = roll(env, params, key)
        assert env.host.failure is None
        assert sorted(obs) == sorted(final) == sorted(env.observation_space(params).spaces) == left
        assert (np.asarray(obs["image"]) == 1).all()
    finally:
        base.close(env)


def test_an_observation_outside_its_space_is_trouble(make, key):
    env, params = make("gym/memax_test/Shapes-v0", outside=True)
    jax.block_until_ready(env.reset(key, params))
    assert "the observation['z'] is np.int64(2), not in Discrete(3, start=-1)" in str(env.host.failure)


def test_trouble_in_a_worker_process_and_a_dead_one(make, key):
    env, params = make(processes=2, trouble="raises")
    roll(env, params, key)
    assert "the door is stuck" in str(env.host.failure)
    env, params = make(processes=2)
    state = jax.vmap(partial(env.reset, params=params))(jax.random.split(key, 3))[1]
    env.host.pools[0].workers.processes[1].kill()
    jax.block_until_ready(jax.vmap(lambda s: env.step(key, s, jnp.int32(0), params))(state))
    assert "its worker process has ended" in str(env.host.failure)


def test_hanging_is_noticed_and_leaves_no_process(make, key):
    env, params = make(processes=2, step_timeout=5.0, trouble="hangs", at=2)
    roll(env, params, key)
    assert "did not answer within 5 s" in str(env.host.failure)
    workers = env.host.pools[0].workers.processes
    base.close(env)
    assert not any(process.is_alive() for process in workers)
    assert not multiprocessing.active_children()


def test_spaces(make, key):
    env, params = make("gym/memax_test/Shapes-v0")
    space = env.observation_space(params)
    assert (
        spaces.describe(space)
        == "Dict(a: Tuple(MultiDiscrete(2 x 4), Box(2, 2, 3)), m: MultiDiscrete(3, 4), z: Discrete(3))"
    )
    obs, state = env.reset(key, params)
    obs, *_ = env.step(key, state, jnp.array([2, 3]), params)
    assert env.host.failure is None
    assert obs["z"] == 0
    assert obs["m"].tolist() == [2, 3]
    assert obs["a"][0].tolist() == [1, 0, 0, 1]
    assert obs["a"][1].dtype == jnp.uint8
    network = make_actor_critic(NetworkConfig(memory="mlp", width=4), space, env.action_space(params), key=key)
    agent = agent_of(env, params, rollout="truncated_bptt")
    assert jax.eval_shape(lambda: agent.init(key).pending.tape.observation["m"]).shape == (4, 11, 2)
    assert network.log_std is None


def test_lengths():
    for env_id, horizon, fixed in [
        ("CartPole-v1", 500, None),
        ("popgym-RepeatPreviousEasy-v0", 51, 51),
        ("popgym-VelocityOnlyCartpoleEasy-v0", 200, None),
        ("memax_test/Counter-v0", None, None),
    ]:
        env = GymnasiumAdapter(env_id, HostOptions())
        assert (env.max_episode_steps(env.default_params), env.fixed_length(env.default_params)) == (horizon, fixed)
    env = GymnasiumAdapter("CartPole-v1", HostOptions(arguments={"max_episode_steps": 30}))
    assert env.max_episode_steps(env.default_params) == 30


def test_mistakes_are_one_line():
    for env_id, message in [
        ("gym/CartPoel-v1", "gymnasium has no environment 'CartPoel-v1'; did you mean gym/CartPole-v1"),
        ("gym/no_such_package:Thing-v0", "the package no_such_package cannot be imported"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            make_config({"env": env_id})
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"cannot be made: .*unexpected keyword argument 'depth'"):
        envs.make(COUNTER, arguments={"depth": 3})
    with pytest.raises(ValueError, match="popgym/RepeatPreviousEasy has no option 'processes'; it takes none"):
        make_config({"env_options": {"processes": 2}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"step_seconds": 3},
            "has no option 'step_seconds'; its options are processes, step_timeout, arguments",
        ),
        ({"step_timeout": 0}, "env_options.step_timeout: input should be greater than 0, got 0"),
        ({"processes": True}, "env_options.processes: input should be a valid integer, got True"),
        ({"arguments": 3}, "env_options.arguments: input should be a valid dictionary, got 3"),
    ],
)
def test_wrong_options_are_one_line(options, message):
    for refuse in (
        lambda: make_config({"env": COUNTER, "env_options": options}),
        lambda: envs.make(COUNTER, **options),
    ):
        with pytest.raises(ValueError, match=message) as error:
            refuse()
        assert "\n" not in str(error.value)


def test_options_from_the_command_line_are_stored_completely():
    plain = make_config({})
    config = override(plain, ["--env", COUNTER, "--env-options.arguments.length", "5", "--env-options.processes=2"])
    assert config.env_options == {
        "processes": 2,
        "step_timeout": 60.0,
        "arguments": {"length": 5},
        "action_masks": True,
        "keep_keys": None,
        "drop_keys": [],
        "wrappers": [],
    }
    config = override(config, ["--env-options.arguments.ending", "truncated"])
    assert config.env_options["arguments"] == {"length": 5, "ending": "truncated"}
    assert override(config, ["--env-options.arguments", "{length: 3}"]).env_options["arguments"] == {"length": 3}
    # Defaults of one environment are not asked of another; what was chosen is.
    assert override(make_config({"env": COUNTER}), ["--env", plain.env]).env_options == {}
    with pytest.raises(ValueError, match="has no option 'processes'"):
        override(config, ["--env", plain.env])


@pytest.mark.filterwarnings("ignore:Maze environments:DeprecationWarning")
def test_a_labyrinth(make, key):
    pytest.importorskip("mazelib")
    env, params = make("gym/popgym-LabyrinthEscapeEasy-v0")
    assert env.max_episode_steps(params) == 1023
    assert spaces.describe(env.observation_space(params)) == "MultiDiscrete(5 x 10)"
    _, (obs, _, reward, *_) = roll(env, params, key, steps=5)
    assert env.host.failure is None
    assert (np.asarray(reward) < 1).all()
    assert (np.asarray(obs)[..., 9] == 1).all(), "the last component is the previous action"


SMALL = {
    "env": COUNTER,
    "total_steps": 100,
    "network": {"memory": "min_gru", "width": 4},
    "ppo": {"num_envs": 4, "rollout_length": 11, "update_epochs": 1, "num_minibatches": 1},
    "eval_episodes": 0,
    "checkpoint_interval": 0.0,
}


OF_DQN = {
    "num_envs": 4,
    "batch_size": 4,
    "tape_length": 11,
    "samples_per_insert": 1.0,
    "buffer_size": 120,
    "learning_starts": 20,
}


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"ppo": SMALL["ppo"]}, {"agent": "dqn", "dqn": OF_DQN}], ids=["ppo", "dqn"])
def test_train_evaluate_and_resume(fields, tmp_path, capsys):
    small = {name: value for name, value in SMALL.items() if name != "ppo"}
    run = train(make_config(small | fields | {"num_seeds": 2}), out=tmp_path / "run")
    assert not multiprocessing.active_children()
    result = evaluate(run.folder, episodes=3)
    assert result["mean_length"] == 4
    assert result["unfinished_episodes"] == 0
    assert (result["chance"], result["best"]) == (None, None)
    longer = ["--env-options.arguments.length", "6", "--episodes", "3", "--json"]
    assert main(["evaluate", str(run.folder), *longer]) == 0
    assert json.loads(capsys.readouterr().out)["mean_length"] == 6
    assert main(["evaluate", str(run.folder), "--seed-of", "6"]) == 2
    assert "--seed-of" in capsys.readouterr().err
    assert not multiprocessing.active_children()
    before = len(run.metrics())
    fields = yaml.safe_load(run.config_path.read_text()) | {"total_steps": 150}
    run.config_path.write_text(yaml.safe_dump(fields))
    assert main(["train", "--resume", str(run.folder)]) == 0
    assert "every stream begins a new episode" in capsys.readouterr().err
    assert len(run.metrics()) > before
    lengths = {row["episode/length"] for row in run.metrics()}
    # An update of DQN may be shorter than an episode, and then has none to tell of.
    assert {n for n in lengths if fields == {} or not math.isnan(n)} == {4.0}


@pytest.mark.slow
def test_a_run_that_fails_stops_in_one_line_and_keeps_its_checkpoint(tmp_path, capsys, monkeypatch):
    config = make_config(
        SMALL | {"total_steps": 10_000, "env_options": {"arguments": {"length": 5, "ending": "truncated"}}}
    )
    import memax_rl.training.loop as loop
    import memax_rl.training.updates as updates

    monkeypatch.setattr(updates, "_MOST_UPDATES_A_CALL", 1)
    agents, make_agent = [], loop.make_agent
    monkeypatch.setattr(loop, "make_agent", lambda config: agents.append(make_agent(config)) or agents[-1])
    save = Run.save

    saved = []

    def save_and_break(run, update, state, seconds, **more):
        saved.append(jax.tree.map(jnp.copy, state))
        save(run, update, state, seconds, **more)
        if update == 2:
            for copy in agents[0].env.host.pools[0].group.vector.envs:
                copy.unwrapped.trouble = "nan"

    monkeypatch.setattr(Run, "save", save_and_break)
    with pytest.raises(
        TrainingError, match=r"Counter-v0 failed: at step 3 .*nan.*checkpoints: the last is of update 2 in"
    ):
        train(config, out=tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.saved_updates() == [2]
    assert [row["update"] for row in run.metrics()] == [1, 2]
    assert int(run.restore(saved[1])[0].updates[0]) == 2
    fields = [
        "--env-options.arguments",
        "{trouble: raises, at: 1}",
        "--ppo.rollout-length",
        "11",
        "--memory",
        "min_gru",
    ]
    assert main(["train", "--env", COUNTER, "--out", str(tmp_path / "other"), *fields]) == 2
    error = capsys.readouterr().err
    assert "step raised RuntimeError: the door is stuck" in error
    assert "before the first update" in error or "there is none yet" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_module_of_the_current_folder_is_found_from_the_console_script(tmp_path, monkeypatch, capsys):
    """A console script, unlike `python -m`, does not search the current folder by itself."""
    (tmp_path / "memax_own_module.py").write_text(
        "import gymnasium\ngymnasium.register('memax_test/Mine-v0', entry_point='_host_environments:Counter')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [folder for folder in sys.path if folder != ""])
    fields = ["--env", "gym/memax_own_module:memax_test/Mine-v0", "--memory", "min_gru", "--ppo.rollout-length", "11"]
    trouble = ["--env-options.arguments", "{trouble: raises, at: 1}"]
    try:
        assert main(["train", *fields, *trouble]) == 2
        assert "Mine-v0 failed: at step 1 of an episode" in capsys.readouterr().err
    finally:
        gymnasium.registry.pop("memax_test/Mine-v0", None)
        sys.modules.pop("memax_own_module", None)

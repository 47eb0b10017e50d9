"""See the tests fail: put known mistakes of recurrent reinforcement learning into a copy of the code, one at a time.

    python tests/mutants.py [--rows 1 2 5]

For each mistake a copy of the project gets it, the tests that are for it run there, and at least one of them must fail.
First they all run on an unchanged copy, where none may. Prints a table; exits with 1 if a mistake goes unnoticed.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PARTS = ("memax_rl", "agents", "envs", "configs", "tests", "docs", "pyproject.toml", "README.md")


class Mistake(NamedTuple):
    """A change of one place in the code, and the tests that must notice it.

    `row` is a number that groups mistakes of a kind, for `--rows`.
    """

    row: int
    what: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


def _ppo(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_ppo.py::test_{name}" for name in names)


def _bc(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_bc.py::test_{name}" for name in names)


def _policy(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_policy.py::test_{name}" for name in names)


def _probes(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_probes.py::test_{name}" for name in names)


MISTAKES = (
    Mistake(
        1,
        "the memory after the row is stored as the one before it",
        "memax_rl/rollout/collect.py",
        "RolloutBatch(row, streams.carry, before, after.inputs)",
        "RolloutBatch(row, after.carry, before, after.inputs)",
        _ppo("ratio_is_one_on_a_fresh_tape"),
    ),
    Mistake(
        1,
        "the previous action is that of the row's end",
        "memax_rl/rollout/collect.py",
        "before = (streams.inputs.previous_action, streams.inputs.previous_reward)",
        "before = (after.inputs.previous_action, after.inputs.previous_reward)",
        _ppo("ratio_is_one_on_a_fresh_tape"),
    ),
    Mistake(
        2,
        "the memory is reset at the last step of an episode, not at the first of the next",
        "memax_rl/rollout/streams.py",
        "            start=begins,",
        "            start=done,",
        _ppo("memory_resets_exactly_at_the_start_while_acting", "what_the_tape_holds"),
    ),
    Mistake(
        2,
        "the memory is never reset while acting",
        "memax_rl/rollout/streams.py",
        "            start=begins,",
        "            start=jnp.zeros_like(begins),",
        _ppo("memory_resets_exactly_at_the_start_while_acting"),
    ),
    Mistake(
        2,
        "the start flag is shifted once more while learning",
        "memax_rl/rollout/collect.py",
        "AgentInput(tape.observation, action, reward, tape.start, tape.action_mask)",
        "AgentInput(tape.observation, action, reward, jnp.roll(tape.start, 1, axis=1), tape.action_mask)",
        _ppo("ratio_is_one_on_a_fresh_tape"),
    ),
    Mistake(
        2,
        "step does not reset",
        "memax_rl/memory/bases.py",
        "state = select(start, self.initial_state(), state)",
        "del start",
        ("tests/test_memory_laws.py::test_laws[gru]",),
    ),
    Mistake(
        2,
        "the reset takes the first input with it",
        "memax_rl/memory/lru.py",
        "h = self._decay() * jnp.where(start, 0, state) + self._write(x)",
        "h = jnp.where(start, 0, self._decay() * state + self._write(x))",
        ("tests/test_memory_laws.py::test_laws[lru]",),
    ),
    Mistake(
        3,
        "advantages run on over a truncation",
        "memax_rl/rollout/returns.py",
        "discount * lambda_, terminated | truncated)",
        "discount * lambda_, terminated)",
        ("tests/test_returns.py", *_ppo("advantages_agree_with_a_loop_over_episodes")),
    ),
    Mistake(
        3,
        "the value is off by one",
        "agents/ppo.py",
        "next_value = jnp.concatenate([value[:, 1:], after[:, None]], axis=1)",
        "next_value = value",
        _ppo("advantages_agree_with_a_loop_over_episodes"),
    ),
    Mistake(
        3,
        "returns stop a step late",
        "memax_rl/rollout/returns.py",
        "ends = jnp.concatenate([start[1:], jnp.ones((1,), bool)])",
        "ends = start",
        ("tests/test_returns.py",),
    ),
    Mistake(
        4,
        "a truncation counts as a termination",
        "memax_rl/rollout/returns.py",
        "delta = reward + discount * jnp.where(terminated, 0, next_value) - value",
        "delta = reward + discount * jnp.where(terminated | truncated, 0, next_value) - value",
        ("tests/test_returns.py", *_ppo("value_at_an_end")),
    ),
    Mistake(
        4,
        "a truncation counts as a termination in DQN's targets",
        "memax_rl/rollout/returns.py",
        "one_step = reward + discount * jnp.where(terminated, 0, next_value)",
        "one_step = reward + discount * jnp.where(terminated | truncated, 0, next_value)",
        ("tests/test_returns.py", "tests/test_dqn.py::test_value_at_an_end"),
    ),
    Mistake(
        5,
        "the bootstrap at a truncation sees the next episode's first observation",
        "memax_rl/rollout/streams.py",
        "shown = where(truncated, step.final_observation,",
        "shown = where(truncated, step.observation,",
        _ppo("value_at_an_end", "what_the_tape_holds"),
    ),
    Mistake(
        5,
        "the bootstrap at a truncation is made with an empty memory",
        "memax_rl/rollout/collect.py",
        "return AgentInput(tape.observation, action, reward, tape.start, tape.action_mask)",
        "start = tape.start.at[:, 1:].set(tape.start[:, 1:] | tape.truncated[:, :-1])\n"
        "    return AgentInput(tape.observation, action, reward, start, tape.action_mask)",
        _ppo("advantages_agree_with_a_loop_over_episodes"),
    ),
    Mistake(
        6,
        "the next value of Q-learning is that of the same slot",
        "agents/dqn.py",
        "next_value = next_slot(value)",
        "next_value = value",
        ("tests/test_dqn.py::test_next_values_are_one_unroll_shifted_by_one_slot",),
    ),
    Mistake(
        9,
        "the newest episode of a stream is never drawn from the replay",
        "memax_rl/rollout/replay.py",
        "mass = {",
        "newest = (replay.head % replay.length.shape[1])[:, None]\n"
        "    replay = eqx.tree_at(lambda r: r.length, replay, "
        "jnp.where(jnp.arange(replay.length.shape[1]) == newest, 0, replay.length))\n    mass = {",
        ("tests/test_replay.py",),
    ),
    Mistake(
        10,
        "the targets of Q-learning do not follow the target network",
        "agents/dqn.py",
        "value = _on_slots(lambda q, target_q: target_q.of(q.mode()), q, target_q)",
        "value = _on_slots(lambda q: q.max(), q)",
        ("tests/test_dqn.py::test_targets_follow_the_parameters",),
    ),
    Mistake(
        7,
        "a reshape that strides over time and environments",
        "memax_rl/rollout/collect.py",
        "jnp.swapaxes(leaf, 0, 1), new)",
        "leaf.reshape((rows, slots) + leaf.shape[2:]), new)",
        _ppo("what_the_tape_holds"),
    ),
    Mistake(
        7,
        "padding in front of a packed row",
        "memax_rl/rollout/tape.py",
        "np.concatenate([joined, padding])",
        "np.concatenate([padding, joined])",
        ("tests/test_tape.py",),
    ),
    Mistake(
        7,
        "some rows enter several minibatches, and some none",
        "agents/ppo.py",
        "jax.random.permutation(k, len(batch.value))",
        "jax.random.randint(k, (self.num_envs,), 0, self.num_envs)",
        _ppo("each_row_is_learnt_from_once_in_an_epoch"),
    ),
    Mistake(
        8,
        "slots that do not count enter the mean",
        "agents/ppo.py",
        "return jnp.sum(jnp.where(tape.valid, x, 0)) / stats.count",
        "return jnp.mean(x)",
        _ppo("slots_that_do_not_count_do_not_matter", "loss_by_hand_over_the_slots_that_count"),
    ),
    Mistake(
        8,
        "slots that do not count enter the normalization of advantages",
        "agents/ppo.py",
        "return jnp.sum(jnp.where(valid, x, 0), axis=(1, 2))",
        "return jnp.sum(jnp.where(valid, x, x), axis=(1, 2))",
        _ppo("slots_that_do_not_count_do_not_matter", "loss_by_hand_over_the_slots_that_count"),
    ),
    Mistake(
        8,
        "the mean is over all slots, with zeros in those that do not count",
        "agents/ppo.py",
        "return jnp.sum(jnp.where(tape.valid, x, 0)) / stats.count",
        "return jnp.mean(jnp.where(tape.valid, x, 0))",
        _ppo("loss_by_hand_over_the_slots_that_count"),
    ),
    Mistake(
        11,
        "the last action of an episode is shown in the first step of the next",
        "memax_rl/rollout/streams.py",
        "previous_action=where(begins, jax.tree.map(jnp.zeros_like, action), action)",
        "previous_action=action",
        _ppo("inputs_at_an_episodes_start_show_nothing_of_the_last"),
    ),
    Mistake(
        11,
        "the last reward of an episode is shown in the first step of the next",
        "memax_rl/rollout/streams.py",
        "previous_reward=jnp.where(begins, 0, reward)",
        "previous_reward=reward",
        _ppo("inputs_at_an_episodes_start_show_nothing_of_the_last"),
    ),
    Mistake(
        11,
        "the same while learning",
        "memax_rl/rollout/tape.py",
        "return jnp.where(reset, jnp.zeros_like(shifted), shifted)",
        "return shifted",
        ("tests/test_tape.py", *_ppo("inputs_at_an_episodes_start_show_nothing_of_the_last")),
    ),
    Mistake(
        12,
        "the target network follows by a count that steps over its period",
        "agents/dqn.py",
        "gradient_steps % self.config.target_update_period == 0",
        "(2 * gradient_steps + 1) % self.config.target_update_period == 0",
        ("tests/test_dqn.py::test_updates_wait_for_learning_starts_and_follow_a_period_of_gradient_steps",),
    ),
    Mistake(
        12,
        "all epochs but one are skipped",
        "agents/ppo.py",
        "order = order.reshape(config.update_epochs * config.num_minibatches, -1)",
        "order = order[:1].reshape(config.num_minibatches, -1)",
        _ppo("each_row_is_learnt_from_once_in_an_epoch"),
    ),
    Mistake(
        13,
        "evaluation counts the episodes after the first as well",
        "memax_rl/evaluation/episodes.py",
        "jax.random.split(step_key, (episodes, 2)), ~ended)",
        "jax.random.split(step_key, (episodes, 2)), ended | True)",
        ("tests/test_evaluation.py",),
    ),
    Mistake(
        13,
        "evaluation empties the memory before every step",
        "memax_rl/evaluation/episodes.py",
        "streams, _, finished = step(",
        "streams = eqx.tree_at(lambda s: s.carry, streams, start.carry)\n        streams, _, finished = step(",
        ("tests/test_evaluation.py",),
    ),
    Mistake(
        14,
        "the log holds the mean of the seeds",
        "memax_rl/training/rows.py",
        "{name: float(m[i, s]) for name, m in metrics.items()}",
        "{name: float(m[i].mean()) for name, m in metrics.items()}",
        ("tests/test_training.py::test_a_run_leaves_what_it_should",),
    ),
    Mistake(
        14,
        "the networks of the seeds are averaged in evaluation",
        "memax_rl/evaluation/episodes.py",
        "    max_steps = env.max_episode_steps(env_params) or 10_000",
        "    max_steps = env.max_episode_steps(env_params) or 10_000\n    networks = jax.tree.map("
        "lambda x: jnp.broadcast_to(x.mean(0), x.shape) if eqx.is_inexact_array(x) else x, networks)",
        ("tests/test_evaluation.py",),
    ),
    Mistake(
        15,
        "bool('False')",
        "memax_rl/runs/config.py",
        "    for kind in (int, float):\n",
        '    if text in ("True", "False", "true", "false"):\n        return bool(text)\n'
        "    for kind in (int, float):\n",
        ("tests/test_training.py::test_command_line_values",),
    ),
    Mistake(
        16,
        "the gradient of a linear recurrence crosses a start",
        "memax_rl/ops/_linear_recurrence.py",
        "gone = row(starts, after) | (t == length - 1)",
        "gone = t == length - 1",
        ("tests/test_ops.py", "tests/test_memory_laws.py::test_laws[lru]"),
    ),
    Mistake(
        16,
        "the gradient of a nonlinear recurrence crosses a start",
        "memax_rl/ops/_nonlinear_recurrence.py",
        "return _reset(row(starts, t), (dbefore[0] + dh_before, *dbefore[1:])), dgates",
        "return (dbefore[0] + dh_before, *dbefore[1:]), dgates",
        (*_ppo("gradients_do_not_cross_episodes_on_the_tape"), "tests/test_memory_laws.py::test_laws[gru]"),
    ),
    Mistake(
        17,
        "each device learns from its own gradient",
        "agents/ppo.py",
        "grads, metrics = sharding.psum(gradients(params, static, rows, stats, now), self.devices)",
        "grads, metrics = gradients(params, static, rows, stats, now)",
        ("tests/test_devices.py",),
    ),
    Mistake(
        17,
        "each device normalizes its own advantages",
        "agents/ppo.py",
        "count, advantages = sharding.psum((sums(1.0), sums(advantage)), self.devices)",
        "count, advantages = sums(1.0), sums(advantage)",
        ("tests/test_devices.py",),
    ),
    Mistake(
        17,
        "each device has running statistics of its own",
        "agents/ppo.py",
        "network.observe(*sharding.all_gather((rows.tape.observation, rows.tape.valid), self.devices))",
        "network.observe(rows.tape.observation, rows.tape.valid)",
        ("tests/test_devices.py",),
    ),
    Mistake(
        17,
        "all devices act by the same random numbers",
        "agents/ppo.py",
        "sharding.local_shard(keys, self.devices, axis=1)",
        "keys[:, : self.num_envs // self.devices]",
        ("tests/test_devices.py",),
    ),
    Mistake(
        17,
        "a device reads sampled tapes of streams that another one holds",
        "memax_rl/rollout/replay.py",
        "drawn, index), held, devices)",
        "drawn, index), jnp.ones_like(held), devices)",
        ("tests/test_devices.py",),
    ),
    Mistake(
        17,
        "each device learns from its own part of the loss alone, in Q-learning from a replay",
        "agents/dqn.py",
        "grads, metrics = sharding.psum((grads, metrics), self.devices)",
        "pass",
        ("tests/test_devices.py",),
    ),
    Mistake(
        17,
        "the rows of one device alone are counted",
        "memax_rl/rollout/collect.py",
        "env_steps, used, lagging, overlong = sharding.psum(counts, devices)",
        "env_steps, used, lagging, overlong = counts",
        ("tests/test_devices.py",),
    ),
    Mistake(
        18,
        "the memory of the values begins every row empty",
        "agents/ppo.py",
        "(streams.carry[0], *carry[1:])",
        "streams.carry",
        _ppo("the_memory_of_the_values_goes_on_from_row_to_row_without_being_acted_with"),
    ),
    Mistake(
        19,
        "the end of an episode of a trial ends the trial",
        "envs/meta/trials.py",
        "return self._observe(observation, begins), after, reward, trial_ended, info",
        "return self._observe(observation, begins), after, reward, ended, info",
        ("tests/test_trials.py::test_the_memory_starts_with_the_trial_and_is_told_of_every_episode",),
    ),
    Mistake(
        20,
        "a resumed run begins with new moments of the optimizer",
        "agents/ppo.py",
        "transient_fields: tuple[str, ...] = ()",
        'transient_fields: tuple[str, ...] = ("optimizer",)',
        ("tests/test_training.py::test_interrupted_and_resumed_is_the_same_to_the_bit",),
    ),
    Mistake(
        20,
        "a resumed run starts its environments anew",
        "agents/ppo.py",
        "transient_fields: tuple[str, ...] = ()",
        'transient_fields: tuple[str, ...] = ("streams",)',
        ("tests/test_training.py::test_interrupted_and_resumed_is_the_same_to_the_bit",),
    ),
    Mistake(
        22,
        "the auxiliary loss predicts the next episode's first observation at an end",
        "memax_rl/rollout/tape.py",
        "return (tape.valid & ~tape.terminated).at[:, -1].set(False)",
        "return tape.valid.at[:, -1].set(False)",
        ("tests/test_auxiliary.py::test_what_is_predicted_is_the_episodes_own_next_observation",),
    ),
    Mistake(
        22,
        "the auxiliary loss predicts the observation of the slot itself",
        "agents/auxiliary.py",
        "jnp.roll(leaf, -1, axis=1), tape.observation)",
        "leaf, tape.observation)",
        ("tests/test_auxiliary.py::test_what_is_predicted_is_the_episodes_own_next_observation",),
    ),
    Mistake(
        22,
        "the auxiliary loss is not part of the loss",
        "agents/ppo.py",
        'loss += config.auxiliary_coef * metrics["auxiliary_loss"]',
        "loss += 0",
        ("tests/test_auxiliary.py::test_the_loss_trains_itself_memory_and_encoder",),
    ),
    Mistake(
        3,
        "the environment's own discount of a step is not used",
        "memax_rl/rollout/tape.py",
        "return gammas if tape.discount is None else gammas * tape.discount",
        "return gammas",
        ("tests/test_trials.py",),
    ),
    Mistake(
        25,
        "PQN's next value is that of the same slot",
        "agents/pqn.py",
        "next_value = jnp.concatenate([value[:, 1:], after[:, None]], axis=1)",
        "next_value = value",
        ("tests/test_pqn.py::test_targets_agree_with_a_loop_over_episodes",),
    ),
    Mistake(
        25,
        "PQN takes nothing to follow a row that ends within an episode",
        "agents/pqn.py",
        "after = jax.vmap(lambda carry, inputs: network.step(carry, inputs)[1].max())(carry, rows.after)",
        "pass",
        ("tests/test_pqn.py::test_targets_agree_with_a_loop_over_episodes",),
    ),
    Mistake(
        25,
        "a time limit counts as an end in PQN",
        "agents/pqn.py",
        "            tape.terminated,\n            tape.truncated,",
        "            tape.terminated | tape.truncated,\n            tape.truncated,",
        (
            "tests/test_pqn.py::test_value_at_an_end",
            "tests/test_pqn.py::test_targets_agree_with_a_loop_over_episodes",
        ),
    ),
    Mistake(
        25,
        "slots that do not count enter PQN's loss",
        "agents/pqn.py",
        "return jnp.sum(jnp.where(tape.valid, x, 0)) / count",
        "return jnp.sum(x) / count",
        ("tests/test_pqn.py::test_slots_that_do_not_count_do_not_matter",),
    ),
    Mistake(
        25,
        "some rows are in several minibatches of PQN",
        "agents/pqn.py",
        "jax.random.permutation(k, len(valid))",
        "jax.random.randint(k, (len(valid),), 0, len(valid))",
        ("tests/test_pqn.py::test_each_row_is_learned_from_once_in_an_epoch",),
    ),
    Mistake(
        25,
        "PQN's targets pass gradients on",
        "agents/pqn.py",
        "targets = jax.lax.stop_gradient(self.targets(network, rows, carry, q))",
        "targets = self.targets(network, rows, carry, q)",
        ("tests/test_pqn.py::test_the_gradient_is_that_of_fixed_targets",),
    ),
    Mistake(
        26,
        "the final observation of a truncated episode is imitated",
        "agents/bc.py",
        '"loss": jnp.sum(jnp.where(rows.valid, loss, 0)) / count,',
        '"loss": jnp.sum(loss) / count,',
        _bc(
            "the_final_observation_of_a_truncated_episode_is_not_imitated",
            "the_loss_is_that_of_acting_as_the_teacher_did",
        ),
    ),
    Mistake(
        26,
        "held-out episodes are learned from",
        "agents/bc.py",
        "pack(episodes[:learned], slots)",
        "pack(episodes, slots)",
        _bc("held_out_episodes_are_the_last_ones_and_not_learned_from"),
    ),
    Mistake(
        26,
        "some rows come again before others have come",
        "agents/bc.py",
        "jax.random.permutation(k, count)",
        "jax.random.randint(k, (count,), 0, count)",
        _bc("every_row_is_learned_from_once_before_any_comes_again"),
    ),
    Mistake(
        26,
        "actions are learned from in the units of the environment",
        "agents/bc.py",
        "action = jax.vmap(lambda a: from_environment(space, a))(jnp.asarray(tape.action))",
        "action = tape.action",
        _bc("actions_are_written_in_the_units_of_the_environment"),
    ),
    Mistake(
        26,
        "the previous action is the one that is asked for",
        "agents/bc.py",
        "network.scan(carry, inputs_of(rows)).distribution",
        "network.scan(carry, inputs_of(rows)._replace(previous_action=rows.action)).distribution",
        _bc("the_loss_is_that_of_acting_as_the_teacher_did"),
    ),
    Mistake(
        26,
        "a resumed run learns from another file",
        "agents/bc.py",
        "if config.data_sha256 not in (None, sha256):",
        "if False:",
        _bc("a_resumed_run_learns_as_one_left_alone_and_from_no_other_file"),
    ),
    Mistake(
        26,
        "the final observation is not collected",
        "memax_rl/evaluation/collecting.py",
        "is_open & ~slot.terminated & ~passes",
        "is_open & ~slot.terminated & ~slot.truncated",
        _bc("episodes_are_whole_and_differ"),
    ),
    Mistake(
        26,
        "a second batch of episodes is the first again",
        "memax_rl/evaluation/collecting.py",
        "key, batch_key = jax.random.split(key)\n            # Always",
        "batch_key = key\n            # Always",
        _bc("more_episodes_than_play_at_once_go_on_with_others"),
    ),
    Mistake(
        26,
        "the bonus for entropy does not fall",
        "agents/ppo.py",
        '- now.entropy_coef * metrics["entropy"]',
        '- config.entropy_coef * metrics["entropy"]',
        _ppo("clipping_and_the_entropy_bonus_fall_by_their_schedules"),
    ),
    Mistake(
        21,
        "a gradient of a stack of weights is transposed",
        "memax_rl/ops/_nonlinear_recurrence.py",
        "return _transpose(jax.lax.optimization_barrier(_transpose(weight)))",
        "return jax.lax.optimization_barrier(_transpose(weight))",
        ("tests/test_memory_laws.py::test_laws[slstm]",),
    ),
    Mistake(
        23,
        "a loaded policy sees the last reward of the episode before",
        "memax_rl/evaluation/policy.py",
        "previous_reward=jnp.where(start, 0, reward),",
        "previous_reward=reward,",
        _policy("it_compiles_once_and_forgets_at_a_start"),
    ),
    Mistake(
        23,
        "a loaded policy sees rewards as the environment gives them, not as the wrappers show them",
        "memax_rl/evaluation/policy.py",
        "reward = layer.show_reward(reward)",
        "reward = jnp.asarray(reward)",
        _policy("many_episodes_of_one_environment_are_those_of_the_stream"),
    ),
    Mistake(
        23,
        "a loaded policy draws its actions by the keys of the environment",
        "memax_rl/evaluation/policy.py",
        "keys = jax.random.split(step_key, (count, 2))[:, 0].reshape(self._batch)",
        "keys = jax.random.split(step_key, (count, 2))[:, 1].reshape(self._batch)",
        _policy("a_thousand_steps_are_those_of_evaluate"),
    ),
    Mistake(
        23,
        "a loaded policy takes values of Gymnasium as if they counted from 0",
        "memax_rl/evaluation/policy.py",
        "return (x - _starts(outer, x.dtype)).reshape(inner.shape)",
        "return x.reshape(inner.shape)",
        _policy("a_thousand_steps_are_those_of_evaluate"),
    ),
    Mistake(
        23,
        "a loaded policy gives the action of the network, not of the environment",
        "memax_rl/evaluation/policy.py",
        "to_environment(self.action_space, action))",
        "action)",
        _policy("a_thousand_steps_are_those_of_evaluate"),
    ),
    Mistake(
        24,
        "the mask of a time limit's final observation is that of the next episode",
        "memax_rl/rollout/streams.py",
        "action_mask=where(truncated, step.final_action_mask, step.action_mask)",
        "action_mask=step.action_mask",
        (
            "tests/test_action_masks.py::test_every_slot_holds_the_mask_of_its_observation",
            "tests/test_action_masks.py::test_the_target_of_q_learning_is_the_best_legal_value_also_at_a_time_limit",
        ),
    ),
    Mistake(
        24,
        "the policy that learns is not masked",
        "memax_rl/networks/actor_critic.py",
        "policy = on_slots(self._policy, features, inputs.action_mask)",
        "policy = on_slots(self._policy, features, None)",
        ("tests/test_action_masks.py::test_the_policy_that_learns_is_the_one_that_acted",),
    ),
    Mistake(
        24,
        "the target is the best value of all actions",
        "memax_rl/networks/q_network.py",
        "jnp.sum(jnp.stack([jnp.max(values) for values in self._legal()]))",
        "jnp.sum(jnp.stack([jnp.max(values) for values in spaces.by_component(self.space, self.raw)]))",
        (
            "tests/test_action_masks.py::test_the_best_action_value_is_of_a_legal_action",
            "tests/test_action_masks.py::test_the_target_of_q_learning_is_the_best_legal_value_also_at_a_time_limit",
        ),
    ),
    Mistake(
        24,
        "exploration takes illegal actions",
        "agents/epsilon_greedy.py",
        "drawn = spaces.draw_action(space, uniform[1:], inputs.action_mask)",
        "drawn = spaces.draw_action(space, uniform[1:])",
        ("tests/test_action_masks.py::test_exploration_is_even_over_what_is_legal",),
    ),
    Mistake(
        24,
        "the replay's pending slot has no mask of its own",
        "memax_rl/rollout/replay.py",
        "action_mask=shown.action_mask,",
        "action_mask=None if shown.action_mask is None else slots.action_mask[:, -1],",
        ("tests/test_action_masks.py::test_the_target_of_q_learning_is_the_best_legal_value_also_at_a_time_limit",),
    ),
    Mistake(
        24,
        "a task that is held out is trained on",
        "envs/meta/trials.py",
        'chosen = order[:held_out] if split == "test" else order[held_out:]',
        'chosen = order[:held_out] if split == "test" else order',
        ("tests/test_own_options.py::test_tasks_that_can_be_counted_are_split_without_overlap",),
    ),
    Mistake(
        27,
        "the kernel's gradient of a diagonal recurrence crosses a start",
        "memax_rl/ops/kernels/_diagonal.py",
        "later = _reset(start, _conjugate_times(a, g))",
        "later = _conjugate_times(a, g)",
        ("tests/test_kernels.py::test_linear_recurrence",),
    ),
    Mistake(
        27,
        "the kernel's gradient by a decay counts the state from before a start",
        "memax_rl/ops/kernels/_diagonal.py",
        "da = _reset(start, _decay_gradient(layout.decay_parts, g, before))",
        "da = _decay_gradient(layout.decay_parts, g, before)",
        ("tests/test_kernels.py::test_linear_recurrence",),
    ),
    Mistake(
        27,
        "the kernel's gradient is not that of the conjugate",
        "memax_rl/ops/kernels/_diagonal.py",
        "_times(a if len(a) == 1 else (a[0], -a[1]), g)",
        "_times(a, g)",
        ("tests/test_kernels.py::test_complex_diagonal_recurrence",),
    ),
    Mistake(
        27,
        "the kernel of a diagonal recurrence begins with zero",
        "memax_rl/ops/kernels/_diagonal.py",
        "    h = lanes.read(h0_ref, layout.parts)\n",
        "    h = tuple(jnp.zeros_like(x) for x in lanes.read(h0_ref, layout.parts))\n",
        ("tests/test_kernels.py::test_linear_recurrence",),
    ),
    Mistake(
        27,
        "the kernel of a diagonal recurrence leaves out the steps after the last whole chunk",
        "memax_rl/ops/kernels/_diagonal.py",
        "    _repeat(length % together, lambda k, h: steps(chunks * together + k, 1, h), h)\n",
        "",
        ("tests/test_kernels.py::test_linear_recurrence",),
    ),
    Mistake(
        27,
        "the kernel's last block of features writes beyond its row",
        "memax_rl/ops/kernels/_batch.py",
        "if features % self.SIZE else None",
        "if features < 0 else None",
        ("tests/test_kernels.py::test_linear_recurrence",),
    ),
    Mistake(
        27,
        "the kernel of a cell with gates is never reset",
        "memax_rl/ops/kernels/_gates.py",
        "        state = _reset(start, state)\n",
        "        state = _reset(start & False, state)\n",
        ("tests/test_kernels.py::test_nonlinear_recurrence",),
    ),
    Mistake(
        27,
        "the kernel's gradient of a cell with gates crosses a start",
        "memax_rl/ops/kernels/_gates.py",
        "return ahead, _reset(start, sequence.clean(dbefore))",
        "return ahead, sequence.clean(dbefore)",
        ("tests/test_kernels.py::test_nonlinear_recurrence",),
    ),
    Mistake(
        27,
        "the kernel of a cell takes the state after a step for that before it",
        "memax_rl/ops/kernels/_gates.py",
        "before = sequence.read(states, jnp.maximum(t - 1, 0))",
        "before = sequence.read(states, t)",
        ("tests/test_kernels.py::test_nonlinear_recurrence",),
    ),
    Mistake(
        27,
        "the kernel's gradient by the last state is dropped",
        "memax_rl/ops/kernels/_gates.py",
        "sequence.read(dlast)\n",
        "sequence.read([dstate[0]] * size)\n",
        ("tests/test_kernels.py::test_nonlinear_recurrence",),
    ),
    Mistake(
        27,
        "units beyond the width of a cell take part in its products",
        "memax_rl/ops/kernels/_gates.py",
        "        if self.cell.width == self.plan.tile:\n",
        "        if self.cell.width <= self.plan.tile:\n",
        ("tests/test_kernels.py::test_nonlinear_recurrence_keeps_what_is_beyond_the_width_out",),
    ),
    Mistake(
        27,
        "sequences of one seed run with the weights of another",
        "memax_rl/ops/kernels/_batch.py",
        "weights = tuple(w.reshape(-1, *w.shape[2:]) for w in weights)",
        "weights = tuple(w.reshape(-1, *w.shape[2:])[::-1] for w in weights)",
        ("tests/test_kernels.py::test_nonlinear_recurrence_over_seeds_and_batch",),
    ),
    Mistake(
        27,
        "the selective kernel's gradient crosses a start",
        "memax_rl/ops/kernels/_selective.py",
        "return ahead, jnp.where(start, 0, dh), da + dlog_decay * dt[None, :]",
        "return ahead, dh, da + dlog_decay * dt[None, :]",
        ("tests/test_kernels.py::test_selective_scan",),
    ),
    Mistake(
        27,
        "the selective kernel computes a chunk again from the state after it",
        "memax_rl/ops/kernels/_selective.py",
        "initial = own.read_states(firsts_ref, index)",
        "initial = own.read_states(firsts_ref, jnp.minimum(index + 1, length // _CHUNK - 1))",
        ("tests/test_kernels.py::test_selective_scan",),
    ),
    Mistake(
        28,
        "sequences that are packed into a row have no start flags but at its beginning",
        "memax_rl/probes/learner.py",
        "    return Batch(*(leaf.reshape(rows, slots, *leaf.shape[2:]) for leaf in (*drawn, start)))",
        "    start = start.at[jnp.arange(sequences) % pack > 0].set(False)\n"
        "    return Batch(*(leaf.reshape(rows, slots, *leaf.shape[2:]) for leaf in (*drawn, start)))",
        _probes("eight_sequences_in_a_row_give_losses_and_gradients_of_eight_rows"),
    ),
    Mistake(
        28,
        "a chunk begins with an empty memory",
        "memax_rl/probes/learner.py",
        "        state, more = through(arrays, state, part)",
        "        state, more = through(arrays, jax.tree.map(jnp.zeros_like, state), part)",
        _probes("chunks_give_the_losses_and_gradients_of_the_whole"),
    ),
    Mistake(
        28,
        "the gradient is cut between chunks though it is to go through",
        "memax_rl/probes/learner.py",
        "        if truncate:\n",
        "        if truncate is not None:\n",
        _probes("chunks_give_the_losses_and_gradients_of_the_whole"),
    ),
    Mistake(
        28,
        "a loss is multiplied by its mark, so that a nan of a slot without one spreads",
        "memax_rl/probes/learner.py",
        "    outputs = jnp.where(where[..., None], outputs, 0)",
        "    outputs = outputs * where[..., None]",
        _probes("slots_without_a_mark_change_nothing"),
    ),
    Mistake(
        28,
        "permutations are composed in the wrong order",
        "memax_rl/probes/tasks/tracking.py",
        "jnp.take_along_axis(later, earlier, axis=-1)",
        "jnp.take_along_axis(earlier, later, axis=-1)",
        ("tests/test_probe_tasks.py::test_permutations_are_composed_the_earlier_one_first",),
    ),
    Mistake(
        28,
        "a step is taken in the frame after the turn",
        "memax_rl/probes/tasks/tracking.py",
        'jnp.einsum("tij,tj->ti", before, steps)',
        'jnp.einsum("tij,tj->ti", after, steps)',
        ("tests/test_probe_tasks.py::test_localization_composes_turns_and_steps_in_the_local_frame",),
    ),
)


def _copy(to: Path) -> Path:
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, to / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, to / part)
    return to


# What a wrong text raises that does not fit the code any more: the test that fails then has noticed nothing.
STALE = ("NameError", "AttributeError", "TypeError", "ImportError", "UnboundLocalError")


def _run(folder: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Return whether all tests passed, and the first that failed. Tests that could not run are an error."""
    # From its own folder the copy comes before what is installed.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest could not run {tests}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not failed:
        return True, ""
    test, _, reason = failed[0].partition(" - ")
    if reason.startswith(STALE):
        raise RuntimeError(f"{test} fails by {reason}: the mistake is not in the form of today's code")
    return False, test.split("::")[-1]


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Put known mistakes into a copy of the code, and see the tests fail.")
    parser.add_argument("--rows", nargs="*", type=int, help="only mistakes of these kinds")
    arguments = parser.parse_args()
    chosen = [mistake for mistake in MISTAKES if not arguments.rows or mistake.row in arguments.rows]
    with tempfile.TemporaryDirectory() as folder:
        tests = tuple(dict.fromkeys(test for mistake in chosen for test in mistake.tests))
        passed, failed = _run(_copy(Path(folder)), tests)
        if not passed:
            print(f"{failed} fails without any mistake")
            return 1
    missed = 0
    print("| row | mistake | first test that fails |\n|---|---|---|")
    for mistake in chosen:
        with tempfile.TemporaryDirectory() as folder:
            copy = _copy(Path(folder))
            text = (copy / mistake.file).read_text()
            if text.count(mistake.right) != 1:
                raise RuntimeError(f"{mistake.right!r} must stand once in {mistake.file}; change tests/mutants.py")
            (copy / mistake.file).write_text(text.replace(mistake.right, mistake.wrong))
            passed, failed = _run(copy, mistake.tests)
        missed += passed
        print(f"| {mistake.row} | {mistake.what} | {'**none**' if passed else failed} |", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())

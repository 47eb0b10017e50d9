"""The agents' pages: every setting and metric is there as it is, and the example trains."""

import re
import runpy
from pathlib import Path

import equinox as eqx
import pytest

import memax_rl
from memax_rl.agents import auxiliary
from memax_rl.runs import make_config
from memax_rl.runs.build import make_agent

DOCS = Path(__file__).parent.parent / "docs"
SIZES = {
    "ppo": {"num_envs": 2, "num_minibatches": 1, "update_epochs": 1, "auxiliary": "next_observation"},
    "dqn": {"num_envs": 2, "batch_size": 1, "samples_per_insert": 1, "learning_starts": 2, "buffer_size": 1000},
    "pqn": {"num_envs": 2, "num_minibatches": 1, "update_epochs": 1},
    "sac": {"num_envs": 2, "batch_size": 1, "samples_per_insert": 1, "learning_starts": 2, "buffer_size": 1000},
}
# What the loop adds to the metrics of an update, beside the row's number and seed.
OF_THE_LOOP = {"finite"}


@pytest.mark.parametrize("page", ["ppo.md", "dqn.md", "pqn.md", "sac.md", "bc.md"])
def test_tables_of_settings_are_the_fields(page):
    text = (DOCS / page).read_text()
    assert "| `" in text
    assert runpy.run_path(str(DOCS / "make_tables.py"))["fill"](text) == text, "run python docs/make_tables.py"


def _metrics_of_page(name: str) -> set[str]:
    """Return the names in the first column of a page's table of metrics."""
    section = (DOCS / f"{name}.md").read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return {metric for row in rows for metric in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize("name", ["ppo", "dqn", "pqn", "sac"])
def test_every_metric_has_its_meaning(name, key):
    network = {"memory": "min_gru", "width": 4}
    agent = make_agent(make_config({"agent": name, "network": network, name: SIZES[name]}))
    _, metrics = eqx.filter_eval_shape(agent.update, eqx.filter_jit(agent.init)(key))
    assert _metrics_of_page(name) == set(metrics) | OF_THE_LOOP


def test_every_metric_of_behavior_cloning_has_its_meaning(tmp_path, key):
    """Those of discrete and of continuous actions."""
    found = set()
    for env in ("popgym/RepeatFirstEasy", "gymnax/Pendulum-v1"):
        data = tmp_path / "data.npz"
        memax_rl.collect(env=env, strategy="random", episodes=2, out=data)
        fields = {"agent": "bc", "env": env, "network": {"memory": "min_gru", "width": 4}, "bc": {"data": str(data)}}
        agent = make_agent(make_config(fields))
        state = eqx.filter_eval_shape(agent.init, key)
        found |= set(eqx.filter_eval_shape(agent.update, state)[1])
    assert _metrics_of_page("bc") == found | OF_THE_LOOP


def test_the_auxiliary_loss_of_the_page_trains(key):
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "ppo.md").read_text(), re.S)
    exec(compile(block, "ppo.md", "exec"), {})
    fields = {"network": {"memory": "min_gru", "width": 4}, "ppo": SIZES["ppo"] | {"auxiliary": "reward"}}
    agent = make_agent(make_config(fields))
    state = eqx.filter_jit(agent.init)(key)
    after, metrics = eqx.filter_jit(agent.update)(state)
    assert float(metrics["auxiliary_loss"]) > 0
    assert float(abs(after.auxiliary.out.weight - state.auxiliary.out.weight).max()) > 0
    auxiliary._LOSSES.pop("reward")

"""Agents, one readable file each."""

# The folder stands at the top level of the repository, where it could be imported as `agents`: a name that other
# distributions own, and under which every class here would be a second, different type.
if __name__ != "memax_rl.agents":
    raise ImportError(f"import memax_rl.agents, not {__name__}")

from memax_rl.agents.base import Agent as Agent
from memax_rl.agents.base import AgentSettings as AgentSettings
from memax_rl.agents.base import AgentState as AgentState
from memax_rl.agents.registry import AgentSpec as AgentSpec
from memax_rl.agents.registry import make as make
from memax_rl.agents.registry import names as names
from memax_rl.agents.registry import register as register
from memax_rl.agents.registry import spec as spec

"""Agents, one readable file each."""

# The folder stands at the top level of the repository, where it could be imported as `agents`: a name that other
# distributions own, and under which every class here would be a second, different type.
if __name__ != "memax_rl.agents":
    raise ImportError(f"import memax_rl.agents, not {__name__}")

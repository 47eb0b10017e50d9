"""What a configuration asks for that its run is too short for. It is told, not refused: a run may be made longer."""

from memax_rl.agents.replay_settings import ReplaySettings
from memax_rl.runs.config import TrainConfig


def unreached(config: TrainConfig) -> list[str]:
    """Return a line for each setting that waits for more steps than the run has."""
    total, lines = config.total_steps, []
    if isinstance(config.settings, ReplaySettings) and config.settings.learning_starts > total:
        name = f"{config.agent}.learning_starts={config.settings.learning_starts:,}"
        lines.append(f"{name} is more than total_steps={total:,}: this run learns nothing")
    interval, patience = config.eval_interval, config.early_stopping.patience
    if interval is not None and interval > total:
        lines.append(f"eval_interval={interval:,} is more than total_steps={total:,}: no evaluation before the end")
    elif interval is not None and patience is not None and (patience + 1) * interval >= total:
        lines.append(
            f"early_stopping.patience={patience} with eval_interval={interval:,} ends no run of {total:,} steps early"
        )
    kept = config.keep_every_n_steps
    if kept is not None and kept > total:
        lines.append(
            f"keep_every_n_steps={kept:,} is more than total_steps={total:,}: the last checkpoint alone is kept"
        )
    return lines

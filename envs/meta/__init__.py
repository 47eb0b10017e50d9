"""The meta suite: distributions of tasks, played in trials."""

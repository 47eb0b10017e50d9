"""Figures that can be read: type of 8 points, nothing outside, nothing over another, for awkward results too."""

import itertools

import numpy as np
import pytest
from matplotlib.text import Text

from memax_rl.evaluation.in_context_figure import icl_figure
from memax_rl.evaluation.sensitivity import inspection_figure

LONG = (
    "meta/Trials of an environment whose name goes on and on, as those of registries do/XLand-MiniGrid-R4-13x13-Random"
)


def check(figure):
    """Check the texts of a figure as they are drawn, and that no panel is empty."""
    figure.canvas.draw()
    assert figure.get_size_inches()[0] <= 7, "as wide as a page, so that a point is a point"
    # Ticks beyond the limits are made, but not drawn.
    panels = figure.findobj(lambda artist: type(artist).__name__ == "Axes")
    beyond = {label for panel in panels for axis in (panel.xaxis, panel.yaxis) for label in _not_drawn(axis)}
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in beyond]
    inside = [(text.get_text(), text.get_window_extent()) for text in texts]
    frame = figure.bbox
    for text in texts:
        assert text.get_fontsize() >= 8, text.get_text()
    for text, box in inside:
        assert frame.x0 - 1 <= box.x0 <= box.x1 <= frame.x1 + 1, text
        assert frame.y0 - 1 <= box.y0 <= box.y1 <= frame.y1 + 1, text
    for (a, box_a), (b, box_b) in itertools.combinations(inside, 2):
        x = min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0)
        y = min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0)
        assert x < 1 or y < 1, f"{a!r} lies over {b!r}"
    for axes in panels:
        assert axes.lines or axes.images, "an empty panel"


def _not_drawn(axis):
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [label for tick in ticks if not low <= tick.get_loc() <= high for label in (tick.label1, tick.label2)]


def trials(episodes, strategies, seeds, longer, name):
    """A result of `evaluate_in_context` with curves that rise."""

    def summary(n, slope):
        values = 1 - np.exp(-slope * np.arange(1, n + 1))
        entries = [{"value": v, "low": v - 0.05, "high": v + 0.05} for v in values.tolist()]
        return {"return_by_episode": entries, "area": {"value": float(values.sum())}}

    both = {"agent": summary(episodes, 0.5), "wiped": summary(episodes, 0.01)}
    return {
        "env": name, "memory": "gru", "policy": "sampled", "seeds": list(range(seeds)), "tasks": 512,
        "episodes": episodes, "trained_episodes": episodes, "episode_length": 10, "has_boundaries": episodes != 60,
        "train": both, "test": both, "longer": {str(n): summary(n * episodes, 0.4) for n in longer},
        "strategies": {f"a strategy of some renown, number {i}": summary(episodes, 0.1 * i) for i in range(strategies)},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("episodes", "strategies", "seeds", "longer", "name"),
    [(10, 5, 3, (2, 4), "meta/DarkRoom"), (1, 20, 1, (2, 4), LONG), (60, 0, 8, (), "meta/DarkRoom")],
)
def test_the_figure_of_trials_can_be_read(episodes, strategies, seeds, longer, name):
    figure = icl_figure(trials(episodes, strategies, seeds, longer, name))
    check(figure)
    assert len(figure.findobj(lambda artist: type(artist).__name__ == "Axes")) == 1 + bool(longer)
    legend = figure.findobj(lambda artist: type(artist).__name__ == "Legend")[0]
    looks = {
        (h.get_color(), str(h.get_linestyle()), h._unscaled_dash_pattern, h.get_marker()) for h in legend.get_lines()
    }
    assert len(looks) == 3 + strategies, "every line looks different"
    text = " ".join(t.get_text() for t in figure.findobj(Text)).replace("\n", " ")
    assert "Bands: 95 % bootstrap intervals of the mean over tasks" in text
    assert f"{seeds} seed" in text


@pytest.mark.parametrize(
    ("lags", "seeds", "scale", "name"), [(1, 1, 1.0, "a/b"), (200, 8, 1.0, LONG), (5, 2, 0.0, "a/b")]
)
def test_the_figure_of_an_inspection_can_be_read(lags, seeds, scale, name):
    def measures(d):
        value = scale * 0.9**d
        names = ("value_gradient", "policy_gradient", "action_change")
        entry = {n + end: value * f for n in names for end, f in (("", 1.0), ("_low", 0.8), ("_high", 1.2))}
        return entry | {"pairs": 40}

    result = {
        "env": name, "memory": "gru", "seeds": list(range(seeds)), "rows": 1 if seeds == 1 else 16, "steps": lags + 1,
        "reach": {"value_gradient": 3, "policy_gradient": 4, "action_change": 5},
        "lags": [{"lag": d} | measures(d) for d in range(lags)],
        "first_step": [{"from": d, "to": d + 1} | measures(d) for d in range(0, lags, 8)],
    }  # fmt: skip
    figure = inspection_figure(result)
    check(figure)
    text = " ".join(t.get_text() for t in figure.findobj(Text)).replace("\n", " ")
    assert "Bands and bars: 95 % bootstrap intervals over episodes" in text

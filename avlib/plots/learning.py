"""What was learned: a table of accuracies, and losses over the steps of a training."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from avlib.plots.style import COLOURS, FOCUS, INK, OTHER, apart, canvas, colour, ink_on
from avlib.plots.tables import frame_leak, table


def accuracies(
    accuracy: Float[Tensor, "readouts labels"],
    readouts: Sequence[str],
    labels: Sequence[str],
    best: Float[Tensor, "readouts labels"],
    chance: Float[Tensor, " labels"],
    *,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """How often each readout names each label right, one row a label.

    A cell is grey where the readout is no better than chance, and has its full colour where it is
    always right. What is clearly better than `best` is framed: it must have read something that it
    may not.

    Args:
        accuracy: the shares that are right; NaN is shown as a dash.
        readouts, labels: names of its rows and columns.
        best: what each readout can reach by what it may read.
        chance: what someone reaches who reads nothing.
        title: above the picture.
        ax: where to draw; by default a new figure.
    """
    ax = canvas(ax, 1.0 * len(readouts) + 1.6, 0.5 * len(labels) + 0.9)
    found, most = accuracy.T.tolist(), best.T.tolist()
    worst = chance.tolist()

    def strength(i: int, j: int) -> float:
        share = (found[i][j] - worst[i]) / (1 - worst[i])
        return min(1.0, max(0.0, share)) ** 2 if share == share else 0.0

    def text(i: int, j: int) -> str:
        return "–" if found[i][j] != found[i][j] else f"{found[i][j]:.2f}"

    table(ax, labels, readouts, strength, text)
    for i in range(len(labels)):
        for j in range(len(readouts)):
            if found[i][j] > most[i][j] + 0.04:
                frame_leak(ax, i, j, ink_on(colour(readouts[j])))
    ax.set_title(title)
    return ax


def curves(
    lines: Mapping[str, Float[Tensor, " steps"]],
    *,
    floors: Mapping[str, float] | None = None,
    every: int = 1,
    ylabel: str = "loss",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A line for each name, which stands at its end, in its modality's colour where it has one.

    Args:
        lines: name → a value for each step, or for each so many steps.
        floors: name → the height of a dotted line.
        every: steps from one value to the next.
        ylabel, title: beside and above the picture.
        ax: where to draw; by default a new figure.
    """
    ax = canvas(ax, 7, 3.4)
    others = cycle([OTHER, FOCUS, INK, "#8F5A00"])
    styles = cycle(["-", "--", "-.", ":"])
    longest = max(len(values) for values in lines.values()) * every
    top = max(float(values.max()) for values in lines.values())
    ends = {name: float(values[-5:].mean()) for name, values in lines.items()}
    shades = {name: COLOURS.get(name) or next(others) for name in lines}
    for (name, values), style in zip(lines.items(), styles, strict=False):
        steps = np.arange(1, len(values) + 1) * every
        ax.plot(steps, values, color=shades[name], ls=style, lw=1.8)
    for name, height in (floors or {}).items():
        ax.plot([0, longest], [height, height], color=INK, lw=1.2, ls=(0, (1, 2)))
        ends[f"{name} {height:.2f}"] = height
    for name, height in apart(ends, 0.09 * top).items():
        shade = shades.get(name, INK)
        ax.text(longest * 1.02, height, name, color=shade, va="center", weight="bold")
    ax.set(xlim=(0, longest * 1.3), ylim=(0, top * 1.05), xlabel="steps")
    ax.set_xticks([step for step in ax.get_xticks() if step <= longest])
    ax.spines["bottom"].set_bounds(0, longest)
    ax.set(ylabel=ylabel, title=title)
    ax.spines[["top", "right"]].set_visible(False)
    return ax

"""What was learned: a table of accuracies, and losses over the steps of a training."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from avlib.plots.style import BROWN, COLOURS, FOCUS, INK, OTHER, apart, canvas
from avlib.plots.tables import frame, table


def accuracies(
    accuracy: Float[Tensor, "readouts labels"],
    readouts: Sequence[str],
    labels: Sequence[str],
    best: Float[Tensor, "readouts labels"],
    chance: Float[Tensor, " labels"],
    *,
    margin: float = 0.04,
    frames: bool = True,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """How often each readout names each label right, one row a label.

    A cell is grey where the readout is no better than someone must be who lacks what would tell,
    and has its full colour where it is always right. What is clearly better than `best` is framed:
    the readout must have read something that it may not.

    Args:
        accuracy: the shares that are right; NaN is shown as a dash.
        readouts, labels: names of its rows and columns.
        best: what each readout can reach by what it may read.
        chance: what someone reaches who reads nothing.
        margin: what is better than `best` by no more than this is not framed.
        frames: draw frames.
        title: above the picture.
        ax: where to draw; by default a new figure.
    """
    ax = canvas(ax, 1.0 * len(readouts) + 1.6, 0.5 * len(labels) + 0.9)
    found, most = accuracy.T.tolist(), best.T.tolist()
    blind = chance.tolist()

    def leaks(i: int, j: int) -> bool:
        return frames and found[i][j] > most[i][j] + margin

    def strength(i: int, j: int) -> float:
        least = most[i][j] if most[i][j] < 1 else blind[i]
        share = (found[i][j] - least) / (1 - least)
        return min(1.0, max(0.0, share)) ** 2 if share == share else 0.0

    def text(i: int, j: int) -> str:
        number = "–" if found[i][j] != found[i][j] else f"{found[i][j]:.2f}"
        return f"{number} LEAK" if leaks(i, j) else number

    table(ax, labels, readouts, strength, text)
    for i in range(len(labels)):
        for j in range(len(readouts)):
            if leaks(i, j):
                frame(ax, i, j)
    ax.set_title(title)
    return ax


def curves(
    lines: Mapping[str, Float[Tensor, " steps"]],
    *,
    floors: Mapping[str, float] | None = None,
    every: int = 1,
    bottom: float = 0.0,
    ylabel: str = "loss",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A line for each name, which stands at its end, in its modality's colour where it has one.

    Args:
        lines: name → a value for each step, or for each so many steps.
        floors: name → the height of a dotted line.
        every: steps from one value to the next.
        bottom: where the vertical axis begins.
        ylabel, title: beside and above the picture.
        ax: where to draw; by default a new figure.
    """
    ax = canvas(ax, 7, 3.4)
    others = cycle([OTHER, FOCUS, INK, BROWN])
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
    for name, height in apart(ends, 0.09 * (top - bottom)).items():
        shade = shades.get(name, INK)
        ax.text(longest * 1.02, height, name, color=shade, va="center", weight="bold")
    ax.set(xlim=(0, longest * 1.3), ylim=(bottom, top + 0.05 * (top - bottom)), xlabel="steps")
    ax.set_xticks([step for step in ax.get_xticks() if step <= longest])
    ax.spines["bottom"].set_bounds(0, longest)
    ax.set(ylabel=ylabel, title=title)
    ax.spines[["top", "right"]].set_visible(False)
    return ax

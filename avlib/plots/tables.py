"""Tables with a group for each column: a cell has the group's colour where something holds."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle

from avlib.plots.style import FOCUS, HIDDEN, colours, ink_on


def table(
    ax: Axes,
    rows: Sequence[str],
    columns: Sequence[str],
    strength: Callable[[int, int], float],
    text: Callable[[int, int], str] = lambda i, j: "",
) -> Axes:
    """Draw it.

    Args:
        ax: where to draw.
        rows, columns: their names; a column has its group's colour.
        strength: of the colour in row i, column j: from 0 (grey) to 1.
        text: what is written there; without it the column's letter where there is colour.
    """
    shades = colours(columns)
    for i in range(len(rows)):
        for j, name in enumerate(columns):
            face = _mix(shades[name], strength(i, j))
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fc=face, ec="white", lw=2))
            written = text(i, j) or (name[0].upper() if strength(i, j) else "")
            ink = ink_on(face)
            ax.text(j, i, written, ha="center", va="center", color=ink, weight="bold")
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def frame(ax: Axes, i: int, j: int) -> None:
    """A red frame around a cell that should be grey; the word LEAK in it needs no colour."""
    corner = j - 0.46, i - 0.44
    ax.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, ec=FOCUS, lw=4, snap=False))


def _mix(shade: str, strength: float) -> str:
    full, none = np.array(to_rgb(shade)), np.array(to_rgb(HIDDEN))
    return to_hex(none + (full - none) * strength)

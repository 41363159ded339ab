"""Masks token by token, rules group by group, and what influence was measured."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from avlib.leaks import Influence
from avlib.masks import Visibility
from avlib.plots.style import HIDDEN, INK, bare, canvas, colour, ink_on
from avlib.plots.tables import frame, table


def mask(
    visibility: Visibility,
    readers: Mapping[str, int],
    keys: Mapping[str, int] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """The mask token by token: row i reads column j where the cell has the column's colour.

    Args:
        visibility: the rules.
        readers: tokens in each reader group, top to bottom.
        keys: tokens in each key group, left to right; by default the same as the readers.
        ax: where to draw; by default a new figure.
    """
    keys = readers if keys is None else keys
    visible = visibility.dense(readers, keys).numpy()
    columns = np.concatenate([[to_rgb(colour(name))] * keys[name] for name in visibility.keys])
    cells = np.where(visible[..., None], columns[None], to_rgb(HIDDEN))
    height, width = visible.shape
    ax = canvas(ax, 4.6, 4.6 * min(2, max(0.4, height / width)))
    ax.imshow(cells, interpolation="nearest")
    if max(height, width) <= 64:
        ax.hlines(np.arange(height + 1) - 0.5, -0.5, width - 0.5, color="white", lw=1)
        ax.vlines(np.arange(width + 1) - 0.5, -0.5, height - 0.5, color="white", lw=1)
    band = max(height, width) * 0.035
    for names, sizes, along_x in (
        (visibility.keys, keys, True),
        (visibility.readers, readers, False),
    ):
        edge = -0.5
        for name in names:
            size = sizes[name]
            corner, shape = (edge, -0.5 - 1.4 * band), (size, band)
            label = (edge + size / 2, -0.5 - 1.9 * band)
            if not along_x:
                corner, shape, label = corner[::-1], shape[::-1], label[::-1]
            ax.add_patch(Rectangle(corner, *shape, color=colour(name), lw=0, clip_on=False))
            ax.text(
                *label,
                f"{name[0].upper()} {name}",
                ha="center" if along_x else "right",
                va="bottom" if along_x else "center",
            )
            edge += size
            line = ax.axvline if along_x else ax.axhline
            if edge < (width if along_x else height) - 1:
                line(edge, color=INK, lw=1.2)
    bare(ax)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    ax.set_xlabel("is read  (keys)")
    ax.set_ylabel("reads  (queries)", labelpad=70)
    return ax


def rules(visibility: Visibility, *, title: str = "", ax: Axes | None = None) -> Axes:
    """The rules group by group: a row reads the columns that are coloured and lettered."""
    readable = visibility.table()
    ax = canvas(ax, 0.9 * len(visibility.keys) + 1.2, 0.6 * len(visibility.readers) + 0.8)
    table(ax, visibility.readers, visibility.keys, lambda i, j: float(readable[i, j]))
    ax.set_title(title)
    return ax


def influence(measured: Influence, *, title: str = "", ax: Axes | None = None) -> Axes:
    """A measured table: coloured where the input moves the output, framed in red where it leaks.

    Each cell holds the largest gradient.
    """
    ax = canvas(ax, 1.2 * len(measured.inputs) + 1.4, 0.6 * len(measured.outputs) + 0.8)

    def text(i: int, j: int) -> str:
        size = measured.gradient[i, j].item()
        return "0" if size == 0 else f"{size:.0f}" if size >= 1 else f"{size:.1g}"

    moves = measured.moves
    table(ax, measured.outputs, measured.inputs, lambda i, j: float(moves[i, j]), text)
    for source, output in measured.leaks:
        j, i = measured.inputs.index(source), measured.outputs.index(output)
        frame(ax, i, j)
        ink = ink_on(colour(source))
        ax.text(j, i + 0.3, "LEAK", ha="center", va="center", color=ink, weight="bold", size=8)
    ax.set_title(title)
    return ax

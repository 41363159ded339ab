"""Masks, rules and what influence was measured: whatever says who reads whom, drawn by `draw`."""

from typing import Any

from matplotlib.axes import Axes

from avlib.leaks import Influence
from avlib.masks import Visibility
from avlib.named_tokens import Layout
from avlib.plots.cells import Cells, by_layer, cells_axes, check_drawable
from avlib.plots.style import canvas, colours, ink_on
from avlib.plots.tables import frame, table
from avlib.reach import Reach
from avlib.token_masks import as_mask


def draw(
    source: Any,
    tokens: Layout | None = None,
    keys: Layout | None = None,
    *,
    row: int | None = None,
    layers: int = 1,
    batch: int = 0,
    head: int = 0,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Who reads whom: row i reads column j where the cell has the column's colour.

    A row that reads nothing has a dashed line. A Visibility without sizes is drawn as the table of
    its rules, and what `influence` measured as its table.

    Args:
        source: whatever `as_mask` takes, a Visibility alone, or an Influence.
        tokens, keys: names with sizes or grids, see `as_mask`.
        row: draw this row in full and fade the others.
        layers: with more than one, what a token can hold something of after so many, the paler
            the later it came.
        batch, head: which mask, where there are several.
        title: above it.
        ax: where to draw; by default a new figure.

    Raises:
        ValueError: see `as_mask`; or more than 4096 tokens along a side.
    """
    if isinstance(source, Influence):
        return _influence(source, title, ax)
    if isinstance(source, Visibility) and tokens is None:
        return _rules(source, title, ax)
    mask = as_mask(source, tokens, keys)
    check_drawable("draw", len(mask.readers), len(mask.keys))
    if row is not None:
        mask.readers.group(row)
    visible = mask.dense(batch=batch, head=head)
    strength = visible if layers == 1 else by_layer(Reach(visible).first(layers))
    cells = Cells(strength, mask.readers, mask.keys)
    return cells_axes(cells, row=row, title=title, ax=ax)


def _rules(visibility: Visibility, title: str, ax: Axes | None) -> Axes:
    """The rules group by group: a row reads the columns that are coloured and lettered."""
    readable = visibility.table()
    ax = canvas(ax, 0.9 * len(visibility.keys) + 1.2, 0.6 * len(visibility.readers) + 0.8)
    table(ax, visibility.readers, visibility.keys, lambda i, j: float(readable[i, j]))
    ax.set_title(title)
    return ax


def _influence(measured: Influence, title: str, ax: Axes | None) -> Axes:
    """A measured table: coloured where the input moves the output, framed in red where it leaks.

    Each cell holds the largest gradient.
    """
    ax = canvas(ax, 1.2 * len(measured.inputs) + 1.4, 0.6 * len(measured.outputs) + 0.8)

    def text(i: int, j: int) -> str:
        size = measured.gradient[i, j].item()
        return "0" if size == 0 else f"{size:.0f}" if size >= 1 else f"{size:.1g}"

    moves, shades = measured.moves, colours(measured.inputs)
    table(ax, measured.outputs, measured.inputs, lambda i, j: float(moves[i, j]), text)
    for source, output in measured.leaks:
        j, i = measured.inputs.index(source), measured.outputs.index(output)
        frame(ax, i, j)
        ink = ink_on(shades[source])
        ax.text(j, i + 0.3, "LEAK", ha="center", va="center", color=ink, weight="bold", size=8)
    ax.set_title(title)
    return ax

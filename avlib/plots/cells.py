"""Many cells as one picture: a row reads a column as much as the cell has of the column's colour.

The picture is an array of palette numbers, which matplotlib shows, and which a slider redraws in
milliseconds. What is drawn (masks, layers, attention) comes as strengths from 0 to 1.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from avlib.named_tokens import UNNAMED, Tokens
from avlib.plots.live import pixel_axes, pixel_figure
from avlib.plots.style import FOCUS, HIDDEN, INK, bare, colours
from avlib.reach import Reach

LARGEST = 4096  # tokens along a side
SIDE = 1024  # pixels of the picture at the most
LINED = 10  # pixels of a cell from which cells are told apart by lines
SHADES = 12  # steps from hidden to full
FADED = 0.4  # of its strength is left to a row that is not the one to look at
MOST_NAMES = 8  # in the legend: there are no more colours
GUTTER = 9  # pixels for the arrow before a row

Raster = NDArray[np.uint8]


def check_drawable(where: str, readers: int, keys: int) -> None:
    """Refuse what would take minutes to draw."""
    if max(readers, keys) > LARGEST:
        raise ValueError(
            f"{where}: {readers:,} × {keys:,} tokens; up to {LARGEST:,} along a side are drawn. "
            "Give the same rules smaller groups, or draw the rules alone: draw(visibility)"
        )


# For each layer in which something can arrive: full for itself and the first, then paler and paler.
PALER = np.maximum(0.15, 0.72 ** np.maximum(0, np.arange(256) - 1)).astype(np.float32)
PALER[Reach.NEVER] = 0


def by_layer(first: UInt8[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Strengths for what `Reach.first` says, the paler the later."""
    return torch.from_numpy(PALER[first.numpy()])


def to_look_at(weights: Float[Tensor, "i j"]) -> Float[Tensor, "i j"]:
    """Strengths for attention weights: shares of each row's largest, raised so that all show."""
    return (weights / weights.amax(1, keepdim=True).clamp(min=1e-30)).sqrt()


class Cells:
    """A table of strengths as a picture, with one row in focus or none.

    Args:
        strength: from 0 (hidden) to 1, (readers, keys).
        readers, keys: whose rows and columns they are.
    """

    def __init__(
        self, strength: Float[Tensor, "i j"] | Bool[Tensor, "i j"], readers: Tokens, keys: Tokens
    ) -> None:
        self.readers, self.keys = readers, keys
        longest = max(strength.shape)
        # Tokens that share a pixel, from top to bottom and from left to right.
        self.down, self.across = (-(-count // SIDE) for count in strength.shape)
        self.width = max(1, min(40, SIDE // 2 // longest))  # pixels of a cell
        self.height = max(self.width, min(20, 120 // len(readers)))  # few rows are high rows
        shades = [*colours(tuple(keys.grids)).values()]
        self._shades = [*dict.fromkeys(shades)]  # many groups share some
        self._fade = SHADES * len(self._shades)  # from a full colour to the faded one
        values = strength.float().clamp(0, 1).numpy()
        shade = np.repeat([self._shades.index(s) for s in shades], [*keys.sizes.values()])
        steps = np.ceil(values * (SHADES - 1)).astype(np.uint16)
        empty = ~steps.any(1)
        ranked = steps * np.uint16(len(self._shades)) + shade.astype(np.uint16)
        # Of those that share a pixel the strongest is seen, in its own colour.
        rows = np.arange(0, len(readers), self.down)
        columns = np.arange(0, len(keys), self.across)
        ranked = np.maximum.reduceat(np.maximum.reduceat(ranked, rows, 0), columns, 1)
        empty = np.maximum.reduceat(empty, rows)
        steps, shade = np.divmod(ranked, len(self._shades))
        cells = (steps + SHADES * shade).astype(np.uint8)
        self._full, self._faded = (
            self._finished(cells + np.uint8(fade), empty) for fade in (0, self._fade)
        )

    @property
    def palette(self) -> Raster:
        """The colours, (number, 3) in [0, 255]: of full rows, of faded rows, then three more."""
        hidden = np.array(to_rgb(HIDDEN))
        share = np.linspace(0, 1, SHADES)[:, None]
        mixed = [
            hidden + share * fade * (np.array(to_rgb(shade)) - hidden)
            for fade in (1, FADED)
            for shade in self._shades
        ]
        more = [to_rgb(shade) for shade in ("white", INK, FOCUS)]
        return np.rint(255 * np.concatenate([*mixed, more])).astype(np.uint8)

    def raster(self, row: int | None = None) -> Raster:
        """The picture in numbers of the palette; with a row the others are faded."""
        if row is None:
            return self._full
        white, _, focus = self._specials
        at = row // self.down
        top, bottom = at * self.height, (at + 1) * self.height
        picture = self._faded.copy()
        picture[top:bottom] = self._full[top:bottom]
        if self.height < 3:  # a line that is too thin to be seen is drawn thicker
            top, bottom = max(0, top - 1), min(len(picture), bottom + 1)
            picture[top:bottom] = self._full[at * self.height]
        gutter = np.full((len(picture), GUTTER), white, np.uint8)
        middle = (top + bottom - 1) // 2
        for step in range(GUTTER - 2):
            wide = (GUTTER - 3 - step) // 2 + 1
            gutter[max(0, middle - wide + 1) : middle + wide, step] = focus
        return np.concatenate([gutter, picture], 1)

    @property
    def _specials(self) -> tuple[int, int, int]:
        return 2 * self._fade, 2 * self._fade + 1, 2 * self._fade + 2

    def _finished(self, cells: Raster, empty: NDArray[np.bool_]) -> Raster:
        """Cells at their size, lines between them and between groups, dashes in empty rows."""
        white, ink, focus = self._specials
        picture = cells.repeat(self.height, 0).repeat(self.width, 1)
        if self.width >= LINED:
            picture[self.height - 1 :: self.height] = white
            picture[:, self.width - 1 :: self.width] = white
        # A line takes a pixel of the cell before it; where that is all of it, there is no line.
        if self.height > 1:
            picture[[s.stop * self.height - 1 for s in [*self.readers.spans.values()][:-1]]] = ink
        if self.width > 1:
            picture[:, [s.stop * self.width - 1 for s in [*self.keys.spans.values()][:-1]]] = ink
        dash = np.arange(picture.shape[1]) // 4 % 2 == 0
        for row in np.flatnonzero(empty):
            picture[row * self.height + self.height // 2, dash] = focus
        return picture


def cells_axes(
    cells: Cells, *, row: int | None = None, title: str = "", ax: Axes | None = None
) -> Axes:
    """The picture with its bands, names and legend.

    Args:
        cells: what to draw.
        row: the row in focus.
        title: above it.
        ax: where to draw; by default a new figure of just the right size.
    """
    raster = cells.palette[cells.raster(row)]
    height, width = raster.shape[:2]
    gutter = 0 if row is None else GUTTER
    band, title_pad, label_pad = 0.03 * max(height, width), 30.0, 70.0
    if ax is None:
        band = min(band, 10)
        names = max(len(f"{name}") for name in cells.readers.grids)
        left, top = 50 + 8 * names + int(2 * band), 30 + int(2 * band) + 22 * bool(title)
        wide = max(width, 110 + sum(max(70, 40 + 8 * len(n)) for n in _in_legend(cells.keys)))
        figure = pixel_figure(left + wide + 20, top + height + 55)
        ax = pixel_axes(figure, left, top, width, height)
        _legend(ax, cells.keys)
        title_pad, label_pad = 0.72 * (2 * band + 22), 0.72 * (left - 22)
    # Not "nearest": on Axes of another size lines would get lost between pixels.
    ax.imshow(raster, extent=(0, width, height, 0), interpolation="antialiased")
    for tokens, along_x in ((cells.keys, True), (cells.readers, False)):
        scale = cells.width / cells.across if along_x else cells.height / cells.down
        for (name, span), shade in zip(
            tokens.spans.items(), colours(tuple(tokens.grids)).values(), strict=True
        ):
            start, size = span.start * scale, (span.stop - span.start) * scale
            corner, shape = (gutter + start, -1.4 * band), (size, band)
            label = (gutter + start + size / 2, -1.9 * band)
            if not along_x:
                corner, shape = (-1.4 * band, start), (band, size)
                label = (-1.9 * band, start + size / 2)
            ax.add_patch(Rectangle(corner, *shape, color=shade, lw=0, clip_on=False))
            words = name if name == UNNAMED else f"{tokens.letters[name]} {name}"
            if along_x and size < 7 * len(words) and len(tokens.grids) > 1:
                words = tokens.letters[name] if size >= 8 else ""
            elif size < 8 and len(tokens.grids) > MOST_NAMES:
                words = ""
            ha, va = ("center", "bottom") if along_x else ("right", "center")
            ax.text(*label, words, ha=ha, va=va, parse_math=False)
    bare(ax)
    ax.set(xlim=(0, width), ylim=(height, 0), xlabel="is read  (keys)")
    ax.set_title(title, pad=title_pad)
    ax.set_ylabel("reads  (queries)", labelpad=label_pad)
    return ax


def _legend(ax: Axes, keys: Tokens) -> None:
    shades, letters = colours(tuple(keys.grids)), keys.letters
    entries = [
        (
            Rectangle((0, 0), 1, 1, fc=shades[name]),
            name if name == UNNAMED else f"{letters[name]} {name}",
        )
        for name in _in_legend(keys)
    ]
    entries.append((Rectangle((0, 0), 1, 1, fc=HIDDEN, ec=INK, lw=0.5), "hidden"))
    handles, names = zip(*entries, strict=True)
    legend = ax.legend(
        handles,
        names,
        loc="upper left",
        bbox_to_anchor=(0, -26 / ax.bbox.height),
        ncols=len(entries),
        frameon=False,
        fontsize=9,
        borderaxespad=0,
        borderpad=0,
        handlelength=1,
        handleheight=1,
        columnspacing=1.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _in_legend(keys: Tokens) -> list[str]:
    """Names of groups; none where there are so many that the legend would be a page wide."""
    return [*keys.grids] if len(keys.grids) <= MOST_NAMES else []

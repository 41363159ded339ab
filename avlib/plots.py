"""Pictures: data in, matplotlib Axes out.

One colour for each group everywhere, and a letter with it, so that no picture needs colour alone.
"""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from torch import Tensor

from avlib.leaks import Influence
from avlib.masks import Visibility
from avlib.tokens import Pair, pair

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {"audio": "#E69F00", "video": "#0072B2", "fusion": "#009E73", "global": "#CC79A7"}
OTHER, HIDDEN, FOCUS, INK = "#56B4E9", "#F2F2F2", "#D55E00", "#333333"


def colour(group: str) -> str:
    """The colour of a group of tokens; groups beyond the known ones share one."""
    return COLOURS.get(group, OTHER)


def canvas(ax: Axes | None, width: float, height: float) -> Axes:
    """`ax` itself, or the Axes of a new figure of this size in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def _ink(face: str) -> str:
    """White or dark, whichever reads better on a colour (WCAG's relative luminance)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(face)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if luminance > 0.3 else "white"


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


# Clips


def film_strip(
    video: Float[Tensor, "c t y x"],
    fps: float | None = None,
    *,
    frames: int = 8,
    grid: Pair | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Some frames side by side, evenly spaced, with their times.

    Args:
        video: RGB in [0, 1].
        fps: frames a second, for the times below the frames.
        frames: how many frames to show.
        grid: draw the edges of patches of this size over each frame.
        ax: where to draw; by default a new figure.
    """
    count, height, width = video.shape[1:]
    shown = torch.linspace(0, count - 1, min(frames, count)).round().int().tolist()
    gap = max(1, width // 16)
    strip = np.ones((height, len(shown) * (width + gap) - gap, 3))
    for i, frame in enumerate(shown):
        left = i * (width + gap)
        strip[:, left : left + width] = rearrange(video[:, frame], "c y x -> y x c").clamp(0, 1)
    ax = canvas(ax, 1.5 * len(shown), 1.5 * height / width + 0.4)
    ax.imshow(strip, interpolation="nearest")
    centres = [i * (width + gap) + width / 2 - 0.5 for i in range(len(shown))]
    _bare(ax)
    labels = [f"{frame / fps:.2f} s" if fps else f"frame {frame}" for frame in shown]
    ax.set_xticks(centres, labels)
    ax.tick_params(length=0)
    for i in range(len(shown)):
        _grid(ax, (height, width), grid, left=i * (width + gap))
    return ax


def picture(
    image: Float[Tensor, "c y x"],
    *,
    grid: Pair | None = None,
    numbers: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """One frame, with the edges of its patches and their numbers in token order.

    Args:
        image: RGB in [0, 1].
        grid: patch size, a number or (height, width).
        numbers: write each patch's place in the sequence on it.
        ax: where to draw; by default a new figure.
    """
    ax = canvas(ax, 3, 3)
    ax.imshow(rearrange(image, "c y x -> y x c").clamp(0, 1), interpolation="nearest")
    _bare(ax)
    _grid(ax, image.shape[1:], grid, numbers)
    return ax


def _grid(
    ax: Axes, shape: Sequence[int], grid: Pair | None, numbers: bool = False, left: int = 0
) -> None:
    """The edges of patches over a picture that begins at `left`; nothing where there is no grid."""
    if grid is None:
        return
    (height, width), (rows, columns) = shape, pair(grid, "grid")
    ax.hlines(
        np.arange(0, height + 1, rows) - 0.5, left - 0.5, left + width - 0.5, color="white", lw=1
    )
    ax.vlines(
        np.arange(0, width + 1, columns) + left - 0.5, -0.5, height - 0.5, color="white", lw=1
    )
    across = width // columns
    for number in range(height // rows * across if numbers else 0):
        ax.text(
            (number % across + 0.5) * columns - 0.5,
            (number // across + 0.5) * rows - 0.5,
            str(number),
            color="white",
            ha="center",
            va="center",
            fontsize=8,
            bbox={"facecolor": INK, "alpha": 0.6, "pad": 1, "lw": 0},
        )


def waveform(audio: Float[Tensor, " samples"], sample_rate: int, *, ax: Axes | None = None) -> Axes:
    """The loudness of a sound over time: the largest and smallest sample in each thin column."""
    ax = canvas(ax, 12, 1.5)
    columns = min(1000, len(audio))
    parts = np.array_split(audio.numpy(), columns)
    time = np.linspace(0, len(audio) / sample_rate, columns)
    low, high = [part.min() for part in parts], [part.max() for part in parts]
    ax.fill_between(time, low, high, color=COLOURS["audio"], lw=0.5)
    ax.set(xlim=(0, time[-1]), ylim=(-1, 1), yticks=[-1, 0, 1], xlabel="seconds")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def spectrogram(
    values: Float[Tensor, "f t"],
    *,
    grid: Pair | None = None,
    numbers: bool = False,
    columns_per_second: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A spectrogram, low frequencies at the bottom, bright where it is loud.

    Args:
        values: log power, (bins, columns).
        grid: draw the edges of patches of this size, a number or (bins, columns).
        numbers: write each patch's place in the sequence on it.
        columns_per_second: for a time axis in seconds.
        ax: where to draw; by default a new figure.
    """
    ax = canvas(ax, 12, 2.5)
    ax.imshow(values, origin="lower", aspect="auto", cmap="magma", interpolation="nearest")
    ax.set(ylabel="mel bin (low → high)", yticks=[])
    ax.spines[:].set_visible(False)
    if columns_per_second:
        seconds = np.arange(0, values.shape[1] / columns_per_second + 1e-6)
        ax.set_xticks(seconds * columns_per_second - 0.5, [f"{s:.0f}" for s in seconds])
        ax.set_xlabel("seconds")
        ax.set_xlim(-0.5, values.shape[1] - 0.5)
    _grid(ax, values.shape, grid, numbers)
    return ax


# Masks


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
    _bare(ax)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    ax.set_xlabel("is read  (keys)")
    ax.set_ylabel("reads  (queries)", labelpad=70)
    return ax


def rules(visibility: Visibility, *, title: str = "", ax: Axes | None = None) -> Axes:
    """The rules group by group: a row reads the columns that are coloured and lettered."""
    table = visibility.table()
    ax = canvas(ax, 0.9 * len(visibility.keys) + 1.2, 0.6 * len(visibility.readers) + 0.8)
    _table(ax, visibility.readers, visibility.keys, lambda i, j: bool(table[i, j]))
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
    _table(ax, measured.outputs, measured.inputs, lambda i, j: bool(moves[i, j]), text)
    for source, output in measured.leaks:
        j, i = measured.inputs.index(source), measured.outputs.index(output)
        ax.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, ec=FOCUS, lw=4))
        ink = _ink(colour(source))
        ax.text(j, i + 0.3, "LEAK", ha="center", va="center", color=ink, weight="bold", size=7)
    ax.set_title(title)
    return ax


# Reversible blocks


def couplings(
    steps: Sequence[tuple[str, Sequence[str], str]],
    streams: Mapping[str, str],
    *,
    current: int | None = None,
    sign: str = "+",
    values: Mapping[str, object] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A block as wires from left to right: dots are read, ⊕ is added to.

    Args:
        steps: (target, reads, name of the function) for each coupling, in order.
        streams: stream → the group whose colour it has, top to bottom.
        current: draw this step in orange-red and those after it faded; by default all alike.
        sign: what stands in the circles on the targets.
        values: what to write at the right end of each wire.
        title: above the picture.
        ax: where to draw; by default a new figure.
    """
    ax = canvas(ax, 1.1 * len(steps) + 1.6, 0.75 * len(streams) + 0.5)
    height = {name: -row for row, name in enumerate(streams)}
    right = len(steps) + 0.1
    for name, group in streams.items():
        y = height[name]
        ax.plot([-0.35, right], [y, y], color=colour(group), lw=3, zorder=1)
        ax.text(-0.45, y, name, ha="right", va="center", color=colour(group), weight="bold")
        if values is not None:
            ax.text(
                right + 0.1, y, str(values[name]), va="center", weight="bold", family="monospace"
            )
    for i, (target, reads, name) in enumerate(steps):
        alpha = 0.2 if current is not None and i > current else 1.0
        edge = FOCUS if i == current else INK
        x, top = i + 0.1, height[target]
        box = top - 0.5
        for read in reads:
            ax.plot([x, x], [height[read], box], color=edge, lw=1.5, alpha=alpha, zorder=2)
            ax.plot(x, height[read], "o", color=colour(streams[read]), mec=edge, ms=8, alpha=alpha)
        plus = x + 0.4
        ax.plot([x, plus, plus], [box, box, top], color=edge, lw=1.5, alpha=alpha, zorder=2)
        ax.plot(plus, top, "o", color="white", mec=edge, mew=1.5, ms=15, alpha=alpha, zorder=4)
        ax.text(
            plus, top, sign, ha="center", va="center_baseline", color=INK, alpha=alpha, zorder=5
        )
        face = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": edge, "lw": 1.5, "alpha": alpha}
        ax.text(x + 0.13, box, name, ha="center", va="center", color=INK, bbox=face, zorder=3)
    _bare(ax)
    ax.set(xlim=(-0.9, right + (0.7 if values is not None else 0.1)))
    ax.set(ylim=(-len(streams) + 0.3, 0.45), title=title)
    return ax


def _table(
    ax: Axes,
    rows: Sequence[str],
    columns: Sequence[str],
    visible: Callable[[int, int], bool],
    text: Callable[[int, int], str] = lambda i, j: "",
) -> None:
    for i in range(len(rows)):
        for j, name in enumerate(columns):
            face = colour(name) if visible(i, j) else HIDDEN
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fc=face, ec="white", lw=2))
            written = text(i, j) or (name[0].upper() if visible(i, j) else "")
            ink = _ink(face)
            ax.text(j, i, written, ha="center", va="center", color=ink, weight="bold")
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)

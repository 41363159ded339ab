"""Film strips, frames, waveforms and spectrograms, with the edges of their patches."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from avlib.plots.style import COLOURS, INK, bare, canvas
from avlib.tokens import Pair, pair


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
    bare(ax)
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
    bare(ax)
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

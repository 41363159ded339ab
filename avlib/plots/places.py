"""What one token reads, at the places of the tokens: frames of patches, rows of tones, lines.

A flat mask of patches looks like texture. Here each group of keys is laid out as its grid, on the
clip itself where there is one, and what the token reads is lit.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from torch import Tensor

from avlib.named_tokens import Tokens
from avlib.plots.live import pixel_axes, pixel_figure
from avlib.plots.style import FOCUS, HIDDEN, INK, bare, colours

WIDTH = 860  # pixels for the widest strip
HEIGHT = 600  # pixels for the highest
LARGEST, SMALLEST = 36, 6  # pixels along a patch
BETWEEN = 8  # pixels between frames
NOWHERE = -1

Pixels = NDArray[np.float32]


class _Strip(NamedTuple):
    """Some frames side by side: for each pixel the number of its token, and its colour."""

    group: str
    first: int  # of its frames
    token: NDArray[np.int64]  # in the group; NOWHERE between frames
    edge: NDArray[np.bool_]  # between patches
    colour: Pixels


class Places:
    """All groups of keys as strips of pixels, lit by what a token reads.

    Args:
        readers, keys: the tokens of the mask.
        pictures: group → what its tokens were cut from: a video (c, t, y, x) in [0, 1] or a
            spectrogram (bins, columns). Other groups are drawn as plain cells.

    Raises:
        ValueError: a picture of no group, or one that does not fit its grid.
    """

    def __init__(
        self, readers: Tokens, keys: Tokens, pictures: Mapping[str, Tensor] | None = None
    ) -> None:
        self.readers, self.keys, self.pictures = readers, keys, pictures or {}
        for name in self.pictures:
            if name not in keys.grids:
                raise ValueError(
                    f"Places: got a picture for {name!r}, the keys are {list(keys.grids)}; leave "
                    "it out or name its tokens"
                )
        self._shades = {
            n: np.array(to_rgb(c), np.float32) for n, c in colours(tuple(keys.grids)).items()
        }
        self._strips = [strip for name in keys.grids for strip in self._lay_out(name)]

    def _lay_out(self, name: str) -> list[_Strip]:
        """A group's grid in as many strips as it takes to see the patches."""
        grid, count = self.keys.grids[name], self.keys.sizes[name]
        frames, rows, columns = (1,) * (3 - len(grid)) + tuple(grid)
        if len(grid) == 1:  # a line, folded where it is long
            columns = min(columns, WIDTH // SMALLEST)
            rows = -(-count // columns)
        across = frames
        while (side := (WIDTH - BETWEEN * (across - 1)) // (across * columns)) < SMALLEST:
            if across == 1:
                break
            across = -(-across // 2)
        side = max(1, min(LARGEST, side, HEIGHT // rows))
        height, width = rows * side, columns * side
        token = np.arange(frames * rows * columns)
        token[count:] = NOWHERE
        token = token.reshape(frames, rows, columns).repeat(side, 1).repeat(side, 2)
        picture = self.pictures.get(name)
        colour = np.broadcast_to(self._shades[name], (frames, height, width, 3))
        if picture is not None:
            colour = _pixels(name, picture, grid, (height, width))
        if name == "audio" and len(grid) == 2:  # low tones at the bottom, as in a spectrogram
            token, colour = token[:, ::-1], colour[:, ::-1]
        line = np.arange(max(height, width)) % side == 0
        edge = (line[:height, None] | line[:width]) & (side >= SMALLEST)
        edge = np.broadcast_to(edge, token.shape)
        strips = []
        for first in range(0, frames, across):
            some = slice(first, first + across)
            joined = (
                _side_by_side(part[some], empty)
                for part, empty in ((token, NOWHERE), (edge, False), (colour, 1.0))
            )
            strips.append(_Strip(name, first, *joined))
        return strips

    def rasters(
        self, row: Float[Tensor, " j"] | Bool[Tensor, " j"], query: int
    ) -> list[NDArray[np.uint8]]:
        """The pixels of each strip in [0, 255], lit where the row is not 0.

        Args:
            row: strengths from 0 to 1.
            query: whose row it is; where it is a key too, it is framed.
        """
        values = row.float().clamp(0, 1).numpy()
        reader, number = self.readers.group(query)
        hidden = np.array(to_rgb(HIDDEN), np.float32)
        rasters = []
        for strip in self._strips:
            name, shade = strip.group, self._shades[strip.group]
            here = np.append(values[self.keys.spans[name]], 0)  # the last is NOWHERE's
            strength = here[strip.token][..., None]
            if name in self.pictures:
                grey = strip.colour.mean(-1, keepdims=True) * 0.25 + 0.7
                out = grey + strength * (strip.colour - grey)
                lines = strip.edge[..., None] & (strength > 0)
                out = np.where(lines, hidden + strength * (shade - hidden), out)
            else:
                out = hidden + strength * (shade - hidden)
                out[strip.edge] = 1
            out[strip.token == NOWHERE] = 1
            if name == reader and self.readers.grids[name] == self.keys.grids[name]:
                out[_border(strip.token == number)] = to_rgb(FOCUS)
            rasters.append(np.rint(255 * out).astype(np.uint8))
        return rasters

    def axes(self, row: Float[Tensor, " j"] | Bool[Tensor, " j"], query: int) -> list[Axes]:
        """A figure with an Axes for each strip, at the size of its pixels."""
        rasters = self.rasters(row, query)
        left = 40 + 8 * max(map(len, self.keys.grids))
        height = sum(raster.shape[0] + 22 for raster in rasters) + 10
        widest = max(raster.shape[1] for raster in rasters)
        figure = pixel_figure(left + max(400, widest) + 20, height)
        top, made = 10, []
        for strip, raster in zip(self._strips, rasters, strict=True):
            height, width = raster.shape[:2]
            ax = pixel_axes(figure, left, top, width, height)
            ax.imshow(raster, extent=(0, width, height, 0), interpolation="nearest")
            bare(ax)
            ax.set(xlim=(0, width), ylim=(height, 0))
            label = f"{self.keys.letters[strip.group]} {strip.group}"
            if strip.first == 0:
                ax.text(-8, height / 2, label, ha="right", va="center", color=INK, parse_math=False)
            if len(self.keys.grids[strip.group]) == 3:
                starts = np.flatnonzero(np.diff(strip.token[0] != NOWHERE, prepend=False))[::2]
                for number, start in enumerate(starts.tolist(), strip.first):
                    words = f"frame {number}" if number == 0 else str(number)
                    ax.text(start, height + 3, words, va="top", fontsize=8, color=INK)
            made.append(ax)
            top += height + 22
        return made


def _side_by_side(frames: NDArray[Any], empty: Any) -> NDArray[Any]:
    """(frames, height, width, …) → (height, all widths and what is between them, …)."""
    wide = np.full((*frames.shape[:2], frames.shape[2] + BETWEEN, *frames.shape[3:]), empty)
    wide[:, :, : frames.shape[2]] = frames
    return np.concatenate([*wide], 1)[:, :-BETWEEN].astype(frames.dtype)


def _border(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The outermost two pixels of a patch."""
    around = np.pad(inside, 2)
    core = around[:-4, 2:-2] & around[4:, 2:-2] & around[2:-2, :-4] & around[2:-2, 4:]
    return inside & ~core


def _pixels(name: str, picture: Tensor, grid: tuple[int, ...], shape: tuple[int, int]) -> Pixels:
    """A clip at the size of the strip: (frames, height, width, colours)."""
    if picture.ndim not in (2, 4) or len(grid) != (2 if picture.ndim == 2 else 3):
        raise ValueError(
            f"Places: the picture of {name!r} has shape {tuple(picture.shape)} and its grid is "
            f"{grid}; wanted a spectrogram (bins, columns) for two axes, or a video (c, t, y, x) "
            "for three: give the group such a grid, or leave the picture out"
        )
    picture = picture.detach().float().cpu().nan_to_num(0)
    if picture.ndim == 2:
        low, high = picture.min(), picture.max()
        # A sound that does not fill its last patch is padded with silence, as a model pads it.
        picture = F.pad(picture, (0, -picture.shape[1] % grid[1]), value=float(low))
        scaled = ((picture - low) / (high - low).clamp(min=1e-9)).numpy()
        frames = rearrange(
            torch.from_numpy(colormaps["magma"](scaled)[..., :3]), "f t c -> 1 c f t"
        )
    else:
        if picture.shape[1] < grid[0]:
            raise ValueError(
                f"Places: {name!r} has {picture.shape[1]} frames for {grid[0]} in its grid; give "
                "at least as many"
            )
        first = torch.arange(grid[0]) * picture.shape[1] // grid[0]  # of the frames in a patch
        frames = rearrange(picture[:, first], "c t y x -> t c y x")
        # Of other channels than red, green and blue the first is shown, in grey.
        frames = frames[:, :3] if frames.shape[1] >= 3 else frames[:, :1].expand(-1, 3, -1, -1)
    sized = F.interpolate(frames.float(), shape, mode="nearest-exact")
    return rearrange(sized, "t c y x -> t y x c").clamp(0, 1).numpy()

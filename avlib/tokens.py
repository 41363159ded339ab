"""From a waveform and a film strip to tokens, and back.

A patch is a small rectangle of a picture, or a small box of a video. Cutting is a reshape: no
number is changed and none is dropped, so every `patchify_*` has an exact `unpatchify_*`.
"""

import math
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from avlib.checks import check_counts, is_whole

Pair = int | tuple[int, int]


class TokenType(IntEnum):
    """The four kinds of token; the numbers are those of `zorro-pytorch`."""

    AUDIO = 0
    VIDEO = 1
    FUSION = 2
    GLOBAL = 3


TokenTypes = TokenType


def pair(value: Pair, name: str) -> tuple[int, int]:
    """Read a patch or picture size: `16` means `(16, 16)`.

    Raises:
        ValueError: the value is no positive whole number and no pair of two.
    """
    both = whole(value if isinstance(value, tuple | list) else (value, value))
    if len(both) != 2:
        raise ValueError(f"{name}: got {value!r}; give a positive whole number or a pair of two")
    return both


def triple(value: tuple[int, int, int], name: str) -> tuple[int, int, int]:
    """Read the size of a box, (frames, height, width).

    Raises:
        ValueError: it is not three positive whole numbers.
    """
    three = whole(value if isinstance(value, tuple | list) else (value,))
    if len(three) != 3:
        raise ValueError(
            f"{name}: got {value!r}; give (frames, height, width), three positive whole numbers"
        )
    return three


def whole(values: Sequence[Any]) -> tuple[int, ...]:
    """The values as positive whole numbers, NumPy's too; nothing if one is something else."""
    good = all(is_whole(n) and int(n) > 0 for n in values)
    return tuple(int(n) for n in values) if good else ()


# Cutting


def _check_whole_patches(where: str, axis: str, size: int, patch: int) -> None:
    if size > 0 and size % patch == 0:
        return
    whole = size // patch * patch
    divisors = [n for n in range(2, size + 1) if size % n == 0]
    near = sorted(sorted(divisors, key=lambda n: abs(n - patch))[:3])
    ways = [f"crop to {whole}" if whole else f"pad to {patch}"]
    if near:
        ways.append(
            "use " + ", ".join(map(str, near[:-1])) + " or " * (len(near) > 1) + str(near[-1])
        )
    raise ValueError(
        f"{where}: {axis} {size} is not divisible by patch {patch}; {' or '.join(ways)}"
    )


def patchify_audio(spectrogram: Float[Tensor, "b f t"], patch_size: Pair) -> Float[Tensor, "b n d"]:
    """Cut a spectrogram into patches, low frequencies first, each row from left to right.

    Args:
        spectrogram: any real values, (batch, frequency bins, time frames).
        patch_size: a number, or (bins, frames).

    Returns:
        (batch, patches, bins·frames); patch number f·T + t lies in row f and column t of the grid.

    Raises:
        ValueError: the bins or frames are no multiple of the patch.
    """
    bins, frames = pair(patch_size, "patchify_audio")
    if spectrogram.ndim != 3:
        raise ValueError(
            f"patchify_audio: got shape {tuple(spectrogram.shape)}, wanted (batch, bins, frames); "
            "a single spectrogram needs spectrogram[None]"
        )
    _check_whole_patches("patchify_audio", "bins", spectrogram.shape[1], bins)
    _check_whole_patches("patchify_audio", "frames", spectrogram.shape[2], frames)
    return rearrange(spectrogram, "b (f pf) (t pt) -> b (f t) (pf pt)", pf=bins, pt=frames)


def unpatchify_audio(
    patches: Float[Tensor, "b n d"], patch_size: Pair, grid: tuple[int, int]
) -> Float[Tensor, "b f t"]:
    """Undo `patchify_audio` exactly.

    Args:
        patches: (batch, patches, bins·frames).
        patch_size: a number, or (bins, frames).
        grid: patches along (frequency, time).

    Raises:
        ValueError: the patches do not fill the grid.
    """
    bins, frames = pair(patch_size, "unpatchify_audio")
    _check_grid("unpatchify_audio", patches, grid, (bins, frames))
    return rearrange(
        patches, "b (f t) (pf pt) -> b (f pf) (t pt)", f=grid[0], t=grid[1], pf=bins, pt=frames
    )


def patchify_video(
    video: Float[Tensor, "b c t y x"], patch_size: tuple[int, int, int]
) -> Float[Tensor, "b n d"]:
    """Cut a video into boxes ("tubelets"): first frames first, then rows, then columns.

    Args:
        video: (batch, channels, frames, height, width).
        patch_size: (frames, height, width).

    Returns:
        (batch, patches, channels·frames·height·width).

    Raises:
        ValueError: frames, height or width are no multiple of the patch.
    """
    if video.ndim != 5:
        raise ValueError(
            f"patchify_video: got shape {tuple(video.shape)}, wanted (batch, channels, frames, "
            "height, width); a single video needs video[None]"
        )
    frames, height, width = patch_size = triple(patch_size, "patchify_video")
    for axis, size, patch in zip(
        ("frames", "height", "width"), video.shape[2:], patch_size, strict=True
    ):
        _check_whole_patches("patchify_video", axis, size, patch)
    return rearrange(
        video,
        "b c (t pt) (y py) (x px) -> b (t y x) (c pt py px)",
        pt=frames,
        py=height,
        px=width,
    )


def unpatchify_video(
    patches: Float[Tensor, "b n d"],
    patch_size: tuple[int, int, int],
    grid: tuple[int, int, int],
    channels: int = 3,
) -> Float[Tensor, "b c t y x"]:
    """Undo `patchify_video` exactly.

    Args:
        patches: (batch, patches, channels·frames·height·width).
        patch_size: (frames, height, width).
        grid: patches along (time, height, width).
        channels: of the video.

    Raises:
        ValueError: the patches do not fill the grid.
    """
    frames, height, width = triple(patch_size, "unpatchify_video")
    _check_grid("unpatchify_video", patches, grid, (frames, height, width), channels)
    return rearrange(
        patches,
        "b (t y x) (c pt py px) -> b c (t pt) (y py) (x px)",
        t=grid[0],
        y=grid[1],
        x=grid[2],
        c=channels,
        pt=frames,
        py=height,
        px=width,
    )


def _check_grid(
    where: str, patches: Tensor, grid: tuple[int, ...], patch: tuple[int, ...], channels: int = 1
) -> None:
    if len(whole(grid if isinstance(grid, tuple | list) else ())) != len(patch):
        raise ValueError(f"{where}: grid is {grid!r}; give {len(patch)} positive whole numbers")
    wanted = (math.prod(grid), channels * math.prod(patch))
    if patches.ndim != 3 or tuple(patches.shape[1:]) != wanted:
        raise ValueError(
            f"{where}: got patches of shape {tuple(patches.shape)}, wanted (batch, {wanted[0]}, "
            f"{wanted[1]}) for grid {tuple(grid)}; give the grid and patch size of the cutting"
        )


# Positions


class FactorisedPositions(nn.Module):
    """Learned positions: a table for each axis, and a token's position is the sum of its entries.

    Without them a transformer sees a bag of patches. Tables per axis, not per token, so that eight
    rows and sixty-four columns need 72 vectors instead of 512.

    Args:
        dim: features of a token.
        limits: for each axis, the keyword that sets its limit (named in errors) and the patches
            it allows.
    """

    def __init__(self, dim: int, limits: Mapping[str, int]) -> None:
        super().__init__()
        if not limits:
            raise ValueError("FactorisedPositions: limits is empty; name at least one axis")
        check_counts("FactorisedPositions", dim=dim, **limits)
        self.tables = nn.ParameterDict()
        # Tokens come from a norm, with numbers of size 1: beside them 0.02, as in ViT, is lost. In
        # `avlib.world` nobody had learned after 500 steps when it flashed.
        for name, limit in limits.items():  # one by one: given a dict it would sort the axes
            self.tables[name] = nn.Parameter(torch.randn(limit, dim) * 0.2)

    def forward(self, *grid: int) -> Float[Tensor, "n d"]:
        """Positions for a grid of patches, in the order in which `patchify_*` lists them.

        Raises:
            ValueError: the grid exceeds a table.
        """
        if len(grid) != len(self.tables) or len(whole(grid)) != len(grid):
            raise ValueError(
                f"positions: grid is {grid}; give a positive number of patches for each of "
                f"{list(self.tables)}"
            )
        total: Tensor | None = None
        for (name, table), size in zip(self.tables.items(), grid, strict=True):
            if size > len(table):
                raise ValueError(
                    f"positions: {size} patches along an axis where {name} allows {len(table)}; "
                    f"give a smaller input or raise {name}"
                )
            rows = table[:size]
            total = rows if total is None else (total[:, None] + rows).flatten(0, 1)
        assert total is not None
        return total

"""Masks of the literature, each a `Mask` over tokens of your own sizes.

They combine: a Longformer is `sliding_window(n, 2) | global_tokens(n, 1)`, a decoder over padded
text `causal(n) & padding(real)`. `tokens` is a number, or names with sizes or grids, see `Tokens`.
"""

from functools import reduce
from math import prod
from operator import or_
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from avlib.checks import check_counts
from avlib.masks import zorro_trunk
from avlib.named_tokens import Layout, Tokens
from avlib.token_masks import Mask, as_mask
from avlib.tokens import whole

# How far a token looks along an axis: an odd number centred on it, (before, after), or None: all.
Extent = int | tuple[int, int] | None


def full(tokens: Layout, keys: Layout | None = None) -> Mask:
    """Every token reads every token (Vaswani et al. 2017, arXiv:1706.03762).

    >>> print(full(3))
         T T T
    T 0  T T T
    T 1  T T T
    T 2  T T T
    """
    return Mask(lambda b, h, i, j: i.new_ones((), dtype=torch.bool), tokens, keys)


def causal(tokens: Layout) -> Mask:
    """Each token reads itself and those before (Vaswani et al. 2017, section 3.2.3).

    >>> print(causal(4))
         T T T T
    T 0  T · · ·
    T 1  T T · ·
    T 2  T T T ·
    T 3  T T T T
    """
    return Mask(lambda b, h, i, j: j <= i, tokens)


def sliding_window(tokens: Layout, before: int, after: int | None = None) -> Mask:
    """Each token reads its neighbours (Longformer: Beltagy et al. 2020, arXiv:2004.05150, fig. 2b).

    >>> print(sliding_window(5, 1))
         T T T T T
    T 0  T T · · ·
    T 1  T T T · ·
    T 2  · T T T ·
    T 3  · · T T T
    T 4  · · · T T

    Args:
        tokens: see the module.
        before: how many tokens before it.
        after: how many after it; as many as before by default, 0 in a causal model.
    """
    after = before if after is None else after
    check_counts("sliding_window", least=0, before=before, after=after)
    return Mask(lambda b, h, i, j: (i - j <= before) & (j - i <= after), tokens)


def prefix(tokens: Layout, length: int) -> Mask:
    """All read the prefix, what follows is causal (T5: Raffel et al. 2020, arXiv:1910.10683, §3.2).

    >>> print(prefix(5, 3))
         T T T T T
    T 0  T T T · ·
    T 1  T T T · ·
    T 2  T T T · ·
    T 3  T T T T ·
    T 4  T T T T T

    Args:
        tokens: see the module.
        length: tokens in the prefix.
    """
    check_counts("prefix", least=0, length=length)
    return Mask(lambda b, h, i, j: (j < length) | (j <= i), tokens)


def global_tokens(tokens: Layout, count: int) -> Mask:
    """The first tokens read all and are read by all (Longformer, fig. 2d, without its window).

    >>> print(global_tokens(4, 1))
         T T T T
    T 0  T T T T
    T 1  T · · ·
    T 2  T · · ·
    T 3  T · · ·

    Args:
        tokens: see the module.
        count: how many are global.
    """
    check_counts("global_tokens", least=0, count=count)
    return Mask(lambda b, h, i, j: (i < count) | (j < count), tokens)


def strided(tokens: Layout, stride: int) -> Mask:
    """Each token reads every so many (Child et al. 2019, arXiv:1904.10509, §4.2).

    A Sparse Transformer is `causal(n) & (sliding_window(n, stride) | strided(n, stride))`.

    >>> print(strided(4, 2))
         T T T T
    T 0  T · T ·
    T 1  · T · T
    T 2  T · T ·
    T 3  · T · T

    Args:
        tokens: see the module.
        stride: from one to the next.
    """
    check_counts("strided", stride=stride)
    return Mask(lambda b, h, i, j: (i - j) % stride == 0, tokens)


def zorro(tokens: Layout) -> Mask:
    """Modalities read themselves, fusion reads all (Zorro: Recasens et al. 2023, arXiv:2301.09595).

    >>> print(zorro({"audio": 2, "video": 2, "fusion": 1}))
         A A V V F
    A 0  A A · · ·
    A 1  A A · · ·
    V 0  · · V V ·
    V 1  · · V V ·
    F 0  A A V V F

    Args:
        tokens: any modalities, and "fusion".

    Raises:
        ValueError: there is no group "fusion".
    """
    tokens = Tokens.of(tokens)
    if "fusion" not in tokens.grids:
        raise ValueError(f"zorro: got {tokens}, wanted modalities and a group 'fusion'")
    modalities = [name for name in tokens.grids if name != "fusion"]
    return as_mask(zorro_trunk(*modalities), tokens)


def bottleneck(tokens: Layout) -> Mask:
    """Modalities exchange through few tokens (MBT: Nagrani et al. 2021, arXiv:2107.00135, §3.2).

    >>> print(bottleneck({"audio": 2, "video": 2, "fusion": 1}))
         A A V V F
    A 0  A A · · F
    A 1  A A · · F
    V 0  · · V V F
    V 1  · · V V F
    F 0  A A V V F

    Args:
        tokens: any modalities, and "fusion".
    """
    mask = zorro(tokens)
    fusion = mask.keys.spans["fusion"]
    return mask | Mask(lambda b, h, i, j: (j >= fusion.start) & (j < fusion.stop), mask.readers)


def nearby(
    tokens: Layout,
    window: Extent | list[Extent],
    *,
    causal: bool = False,
    dilation: int | list[int] = 1,
) -> Mask:
    """Each token reads those near it in its grid (3DNA in NÜWA: Wu et al. 2021, arXiv:2111.12417).

    One axis is a sliding window; two are sound (steps, tokens of a step); three are film (frames,
    rows, columns). With several groups each reads only itself.

    >>> print(nearby({"video": (3, 1, 3)}, 3, causal=True))
         V V V V V V V V V
    V 0  V · · · · · · · ·
    V 1  V V · · · · · · ·
    V 2  · V V · · · · · ·
    V 3  V V · V · · · · ·
    V 4  V V V V V · · · ·
    V 5  · V V · V V · · ·
    V 6  · · · V V · V · ·
    V 7  · · · V V V V V ·
    V 8  · · · · V V · V V

    Args:
        tokens: grids of one to three axes.
        window: along each axis an odd number of tokens centred on the reader, a pair (before,
            after), or None for the whole axis; a list has one for each axis, else it is the same
            for all. `nuwa-pytorch` 0.7.8 places a causal window of k as (k - 1, 0).
        causal: read only what comes no later in the order of the tokens.
        dilation: read every so many tokens of the neighbourhood, whose sides grow by as much; a
            list has one for each axis.

    Raises:
        ValueError: a window that is even or negative, or a list that is not one for each axis.
    """
    tokens = Tokens.of(tokens)
    mask = reduce(or_, [_near(tokens, name, window, dilation) for name in tokens.grids])
    return mask & Mask(lambda b, h, i, j: j <= i, tokens) if causal else mask


def _near(
    tokens: Tokens, name: str, window: Extent | list[Extent], dilation: int | list[int]
) -> Mask:
    """The neighbourhoods of one group."""
    span, grid = tokens.spans[name], tokens.grids[name]
    axes = []
    for axis, extent in enumerate(_each("window", window, grid)):
        step = _each("dilation", dilation, grid)[axis]
        check_counts("nearby", dilation=step)
        before, after = _reach(extent, grid[axis])
        axes.append((prod(grid[axis + 1 :]), grid[axis], before * step, after * step, step))

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        i, j = q_idx - span.start, kv_idx - span.start
        count = span.stop - span.start
        visible = (i >= 0) & (i < count) & (j >= 0) & (j < count)
        for stride, size, before, after, step in axes:
            away = j // stride % size - i // stride % size
            visible = visible & (away >= -before) & (away <= after) & (away % step == 0)
        return visible

    return Mask(mask_mod, tokens)


def _each(what: str, value: Any, grid: tuple[int, ...]) -> list[Any]:
    """The value for each axis."""
    if not isinstance(value, list):
        return [value] * len(grid)
    if len(value) != len(grid):
        raise ValueError(
            f"nearby: {what} is {value!r} and a grid is {grid}; give one for each axis, or one "
            "that is no list for all"
        )
    return value


def _reach(extent: Any, size: int) -> tuple[int, int]:
    """How many tokens before and after are read."""
    if extent is None:
        return size - 1, size - 1
    odd = whole((extent,))
    if odd and odd[0] % 2:
        return odd[0] // 2, odd[0] // 2
    if isinstance(extent, tuple) and len(extent) == 2:
        check_counts("nearby", least=0, before=extent[0], after=extent[1])
        return int(extent[0]), int(extent[1])
    raise ValueError(
        f"nearby: window {extent!r} is no odd number of tokens, no pair (before, after) and not "
        "None, the whole axis; for each axis its own give a list"
    )


def frame_chunks(readers: Layout, keys: Layout, *, lag: int = 0, null: bool = False) -> Mask:
    """One modality reads another, frame by frame (cf. `nuwa-pytorch`'s NUWAVideoAudio).

    The first axis of every grid is time. A token of frame t reads frames up to t - lag: with lag 0
    sound reads the film up to its own frame, with lag 1 film reads the sound before its own.

    >>> print(frame_chunks({"video": (3, 1, 2)}, {"audio": (3, 1)}, lag=1, null=True))
         N A A A
    V 0  N · · ·
    V 1  N · · ·
    V 2  N A · ·
    V 3  N A · ·
    V 4  N A A ·
    V 5  N A A ·

    Args:
        readers, keys: tokens, see the module.
        lag: how many frames the last one read lies back.
        null: put a key before all others that everybody reads (a learned one in the model), so
            that no frame is without any.

    Raises:
        ValueError: lag is no whole number from 0 on, or null=True and a group has that name.
    """
    check_counts("frame_chunks", least=0, lag=lag)
    readers, keys = Tokens.of(readers), Tokens.of(keys)
    read_at, written_at = _frames(readers), _frames(keys)
    if null and "null" in keys.grids:
        raise ValueError(f"frame_chunks: got {keys} and null=True; give 'null' another name")
    if null:
        keys = Tokens({"null": 1, **keys.grids})
        written_at = torch.cat([torch.tensor([-lag]), written_at])

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        read, written = read_at.to(q_idx.device), written_at.to(q_idx.device)
        return written[kv_idx] <= read[q_idx] - lag

    return Mask(mask_mod, readers, keys)


def _frames(tokens: Tokens) -> Tensor:
    """The frame of each token."""
    return torch.cat(
        [
            torch.arange(grid[0]).repeat_interleave(tokens.sizes[name] // grid[0])
            for name, grid in tokens.grids.items()
        ]
    )


def padding(real: Bool[Tensor, "b m"], tokens: Layout | None = None) -> Mask:
    """All read the real tokens of their clip; a mask for each clip of a batch.

    >>> print(padding(torch.tensor([[True, True, False]])))
         T T T
    T 0  T T ·
    T 1  T T ·
    T 2  T T ·

    Args:
        real: True marks a real token, False padding.
        tokens: as many names; by default none.

    Raises:
        ValueError: `real` is not boolean or has another rank.
    """
    if (
        not isinstance(real, Tensor)
        or real.dtype != torch.bool
        or real.ndim != 2
        or 0 in real.shape
    ):
        got = type(real).__name__
        if isinstance(real, Tensor):
            got = f"{real.dtype} of shape {tuple(real.shape)}"
        raise ValueError(
            f"padding: got {got}, wanted a tensor of booleans (batch, tokens); True marks a real "
            "token"
        )
    real = real.detach().cpu().clone()
    batch, size = real.shape
    by_clip = Mask(lambda b, h, i, j: real.to(j.device)[b, j], size, batch=batch)
    return as_mask(by_clip, tokens)

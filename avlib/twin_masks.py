"""Who reads whom in the twin decoder: each tower nearby in itself, and frame by frame in the other.

The sequence of a tower is, frame by frame, a start token and then the frame's tokens in the order
in which they are written. A start token holds nothing that was written: the first token of its
frame is predicted from it. So each place in the sequence belongs to one frame, whether it is read
or predicts, and "sound of frame t reads film up to frame t" needs no shift.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avlib.checks import check_counts
from avlib.gallery import Extent, nearby
from avlib.named_tokens import Tokens
from avlib.token_masks import Mask

Grid = tuple[int, int, int]  # steps of a frame, rows, columns


def nearby_in_tower(
    name: str,
    frames: int,
    grid: Grid,
    window: list[Extent],
    dilation: list[int] | int = 1,
) -> Mask:
    """Causal nearby attention in one tower, with a start token before each frame (cf. NÜWA, §3.2).

    A token reads its neighbourhood, as in `gallery.nearby`, and the start token of its frame. A
    start token reads itself and, of the steps before, all that lies in its window of time: so what
    the windows of single tokens leave out is not out of reach.

    >>> print(nearby_in_tower("video", 3, (1, 1, 2), [(1, 0), 1, 1]))
         V V V V V V V V V
    V 0  V · · · · · · · ·
    V 1  V V · · · · · · ·
    V 2  V · V · · · · · ·
    V 3  · V V V · · · · ·
    V 4  · V · V V · · · ·
    V 5  · · V V · V · · ·
    V 6  · · · · V V V · ·
    V 7  · · · · V · V V ·
    V 8  · · · · · V V · V

    Args:
        name: of the tower.
        frames: how many.
        grid: of one frame; a film has one step in it, sound may have several.
        window, dilation: along time (all steps of all frames), rows and columns, see
            `gallery.nearby`. `nuwa-pytorch` 0.7.8 has [(k - 1, 0)] * 3 for kernels of k.

    Returns:
        A mask over {name: (frames, 1, 1 + tokens of a frame)}.
    """
    check_counts("nearby_in_tower", frames=frames)
    steps, rows, columns = grid
    count = steps * rows * columns
    times = frames * steps
    inside = nearby({name: (times, rows, columns)}, window, causal=True, dilation=dilation).mask_mod
    # dilation for time alone
    along = dilation[0] if isinstance(dilation, list) else dilation
    in_time = nearby({name: times}, [window[0]], dilation=along).mask_mod

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        (i, i_frame, i_starts), (j, j_frame, j_starts) = map(place, (q_idx, kv_idx))
        from_token = torch.where(j_starts, i_frame == j_frame, inside(b, h, i, j))
        step = j // (rows * columns)
        before = in_time(b, h, i_frame * steps, step) & (step < i_frame * steps)
        from_start = torch.where(j_starts, i_frame == j_frame, before)
        return torch.where(i_starts, from_start, from_token)

    def place(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Its number among the tokens, its frame, and whether it starts it."""
        frame, token = index // (1 + count), index % (1 + count) - 1
        return frame * count + token, frame, token < 0

    return Mask(mask_mod, Tokens({name: (frames, 1, 1 + count)}))


def for_axes(name: str, given: Sequence[Any], axes: int) -> list[Any]:
    """What is given for each axis; refuse another number of them."""
    if not isinstance(given, tuple | list) or len(given) != axes:
        raise ValueError(
            f"TwinDecoder: {name} is {given!r}; give a list with one for each of {axes} axes"
        )
    return [*given]


def in_turn(name: str, dilations: Sequence[int | list[int]], axes: int) -> list[Any]:
    """The dilations that layers take in turn, for the three axes of a grid."""
    if not isinstance(dilations, tuple | list) or not dilations:
        raise ValueError(
            f"TwinDecoder: {name} is {dilations!r}; give one or more, which layers take in turn, "
            "such as (1, 2)"
        )
    return [
        for_axes(name, each, axes) + [1] * (3 - axes) if isinstance(each, list) else each
        for each in dilations
    ]

"""Who reads whom in a tower: the published neighbourhoods, in causal order, and start tokens."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nuwa_keys import keys_of_nuwa, keys_of_nuwa_sound

from avlib.twin_masks import nearby_in_tower

extents = st.sampled_from([1, 3, 5]) | st.tuples(*[st.integers(0, 2)] * 2) | st.none()
odds = st.sampled_from([1, 3, 5])
steps = st.integers(1, 3)


def contents(mask):
    """Which codes each code reads, the start tokens left out."""
    ((frames, _, places),) = mask.readers.grids.values()
    dense = mask.dense().view(frames, places, frames, places)
    return dense[:, 1:, :, 1:].flatten(2).flatten(0, 1)


def reach(extent, size):
    if extent is None:
        return size, size
    return (extent // 2, extent // 2) if isinstance(extent, int) else extent


def near(one, other, window, dilation, sizes):
    """Whether `other` lies in the neighbourhood of `one`, axis by axis."""
    for i, j, extent, step, size in zip(one, other, window, dilation, sizes, strict=True):
        before, after = reach(extent, size)
        if j not in range(i - before * step, i + after * step + 1, step):
            return False
    return True


@given(data=st.data())
def test_every_row_is_what_a_slow_loop_finds(data):
    frames, count, *rest = [data.draw(st.integers(1, 3)) for _ in range(4)]
    window = [data.draw(extents) for _ in range(3)]
    dilation = data.draw(steps | st.tuples(*[steps] * 3).map(list))
    mask = nearby_in_tower("film", frames, (count, *rest), window, dilation)

    each = dilation if isinstance(dilation, list) else [dilation] * 3
    sizes = [frames * count, *rest]
    tokens = []  # (frame, None) or (frame, (time, row, column))
    for frame in range(frames):
        tokens.append((frame, None))
        inside = product(range(frame * count, (frame + 1) * count), *map(range, rest))
        tokens += [(frame, place) for place in inside]

    def reads(i, j):
        (frame, place), (other_frame, other) = tokens[i], tokens[j]
        if other is None:
            return frame == other_frame
        if place is None:
            start = frame * count
            return other[0] < start and near([start], other[:1], window[:1], each[:1], sizes[:1])
        return j <= i and near(place, other, window, each, sizes)

    expected = [[reads(i, j) for j in range(len(tokens))] for i in range(len(tokens))]
    assert mask.dense().tolist() == expected
    assert mask.readers.grids == {"film": (frames, 1, len(tokens) // frames)}


@given(data=st.data())
def test_nobody_reads_what_comes_later_and_everybody_reads_themselves(data):
    frames, *grid = (data.draw(st.integers(1, 3)) for _ in range(4))
    window = [data.draw(extents) for _ in range(3)]
    dense = nearby_in_tower("film", frames, tuple(grid), window, data.draw(steps)).dense()
    assert not dense.triu(1).any()
    assert dense.diagonal().all()


@given(
    frames=st.integers(1, 3), side=st.integers(2, 3), kernel=st.tuples(odds, odds, odds),
    dilation=st.tuples(steps, steps, steps),
)  # fmt: skip
def test_film_reads_what_nuwa_pytorch_reads(frames, side, kernel, dilation):
    window = [(size - 1, 0) for size in kernel]
    mask = nearby_in_tower("video", frames, (1, side, side), window, list(dilation))
    read, _ = keys_of_nuwa(frames, side, kernel, dilation, causal=True)
    assert torch.equal(contents(mask), read)


# The published layer cannot be made with a kernel of one token.
@given(
    frames=st.integers(1, 3), count=st.integers(1, 3), kernel=st.sampled_from([3, 5]),
    dilation=steps,
)  # fmt: skip
def test_sound_reads_what_nuwa_pytorch_reads(frames, count, kernel, dilation):
    mask = nearby_in_tower("audio", frames, (count, 1, 1), [(kernel - 1, 0), None, 1], dilation)
    assert torch.equal(contents(mask), keys_of_nuwa_sound(frames * count, 1, kernel, dilation))


@given(
    frames=st.integers(1, 2), count=st.integers(1, 3), height=st.integers(2, 3), kernel=odds,
    dilation=steps,
)  # fmt: skip
def test_with_several_codes_a_step_those_that_nuwa_pytorch_reads_too_early_are_not_read(
    frames, count, height, kernel, dilation
):
    window = [(kernel - 1, 0), None, 1]
    mask = nearby_in_tower("audio", frames, (count, height, 1), window, [dilation, 1, 1])
    published = keys_of_nuwa_sound(frames * count, height, kernel, dilation)
    assert published.triu(1).any()  # a code reads those of its own step that are still to come
    assert torch.equal(contents(mask), published.tril())


@pytest.mark.parametrize("frames", [0, 1.5, True])
def test_frames_that_are_none_are_refused(no_shape_checks, frames):
    with pytest.raises(ValueError, match=r"nearby_in_tower: frames is .*; give a positive whole"):
        nearby_in_tower("video", frames, (1, 2, 2), [3, 3, 3])


@pytest.mark.parametrize(
    ("window", "dilation", "message"),
    [
        ([3, 3], 1, r"window is \[3, 3\] and a grid is \(2, 2, 2\); give one for each axis"),
        ([3, 2, 3], 1, "window 2 is no odd number of tokens"),
        ([3, 3, 3], 0, "dilation is 0; give a positive whole number"),
        ([3, 3, 3], [1, 2], r"dilation is \[1, 2\] and a grid is \(2, 2, 2\)"),
    ],
)
def test_windows_that_fit_no_grid_are_refused(no_shape_checks, window, dilation, message):
    with pytest.raises(ValueError, match=f"nearby: {message}"):
        nearby_in_tower("video", 2, (1, 2, 2), window, dilation)

import sys
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nuwa_keys import keys_of_nuwa

from avlib.gallery import (
    bottleneck,
    causal,
    frame_chunks,
    full,
    global_tokens,
    nearby,
    padding,
    prefix,
    sliding_window,
    strided,
    zorro,
)
from avlib.named_tokens import Tokens

sizes = st.integers(1, 9)
few = st.integers(0, 10)


def loop(rule, n, m=None):
    """The mask of a rule for numbers i and j, pair by pair."""
    return torch.tensor([[rule(i, j) for j in range(n if m is None else m)] for i in range(n)])


def named(sizes):
    return [name for name, size in sizes.items() for _ in range(size)]


# Lines


@given(n=sizes, m=sizes)
def test_all_read_all(n, m):
    assert torch.equal(full(n).dense(), loop(lambda i, j: True, n))
    assert torch.equal(full(n, m).dense(), loop(lambda i, j: True, n, m))


@given(n=sizes)
def test_causal_is_the_lower_triangle(n):
    assert torch.equal(causal({"text": n}).dense(), torch.ones(n, n).tril().bool())


@given(n=sizes, before=few, after=st.none() | few)
def test_a_sliding_window_is_the_tokens_at_so_many_steps(n, before, after):
    reach = range(-before, (before if after is None else after) + 1)
    mask = sliding_window(n, before, after)
    assert torch.equal(mask.dense(), loop(lambda i, j: j - i in reach, n))


@given(n=sizes, length=few)
def test_the_prefix_is_read_by_all_and_the_rest_by_those_that_follow(n, length):
    expected = loop(lambda i, j: j in range(length) or j in range(i + 1), n)
    assert torch.equal(prefix(n, length).dense(), expected)


@given(n=sizes, count=few)
def test_global_tokens_are_a_cross(n, count):
    expected = torch.zeros(n, n, dtype=torch.bool)
    expected[:count], expected[:, :count] = True, True
    assert torch.equal(global_tokens(n, count).dense(), expected)


@given(n=sizes, stride=st.integers(1, 10))
def test_a_stride_joins_tokens_that_are_whole_steps_apart(n, stride):
    expected = loop(lambda i, j: j in {*range(i, -1, -stride), *range(i, n, stride)}, n)
    assert torch.equal(strided(n, stride).dense(), expected)


def test_longformer_and_the_sparse_transformer_are_put_together():
    longformer = (sliding_window(8, 1) | global_tokens(8, 2)).dense()
    assert torch.equal(longformer, loop(lambda i, j: abs(i - j) < 2 or min(i, j) < 2, 8))
    sparse = (causal(9) & (sliding_window(9, 3) | strided(9, 3))).dense()
    # Child et al. 2019, §4.2: A1 = {max(0, i − l), …, i}, A2 = {j: (i − j) mod l = 0}.
    rule = [
        {*range(max(0, i - 3), i + 1), *(j for j in range(i + 1) if (i - j) % 3 == 0)}
        for i in range(9)
    ]
    assert torch.equal(sparse, loop(lambda i, j: j in rule[i], 9))


def test_windows_without_end_read_all():
    for wide in (
        sliding_window(5, sys.maxsize),
        prefix(5, sys.maxsize),
        global_tokens(5, sys.maxsize),
        nearby(5, (sys.maxsize, sys.maxsize)),
        nearby({"film": (5, 1)}, 2**62 + 1),
    ):
        assert wide.dense().all()


# Groups


@given(
    sizes=st.dictionaries(st.sampled_from(["audio", "video", "text"]), st.integers(1, 4)),
    place=st.integers(0, 3),
    fusion=st.integers(1, 3),
)
def test_zorro_and_bottleneck_keep_modalities_apart_wherever_fusion_stands(sizes, place, fusion):
    names = [*sizes]
    names.insert(place, "fusion")
    sizes = {name: {**sizes, "fusion": fusion}[name] for name in names}
    group, n = named(sizes), sum(sizes.values())
    own = loop(lambda i, j: group[i] == group[j] or group[i] == "fusion", n)
    assert torch.equal(zorro(sizes).dense(), own)
    through = loop(lambda i, j: group[i] == group[j] or "fusion" in (group[i], group[j]), n)
    assert torch.equal(bottleneck(sizes).dense(), through)
    assert zorro(sizes).keys == bottleneck(sizes).readers == Tokens(sizes)


# Grids


def axis_window(axis):
    """A window and what it reaches before and after, along an axis of so many tokens."""
    odd = st.integers(0, 3).map(lambda half: (2 * half + 1, (half, half)))
    pair = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(lambda pair: (pair, pair))
    return odd | pair | st.just((None, (axis - 1, axis - 1)))


grids = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@given(data=st.data(), grid=grids, ordered=st.booleans())
def test_nearby_is_a_box_around_each_token(data, grid, ordered):
    windows, reaches = zip(*[data.draw(axis_window(axis)) for axis in grid], strict=True)
    steps = [data.draw(st.integers(1, 3)) for _ in grid]
    boxes = []
    places = [*product(*map(range, grid))]
    for place in places:
        box = product(
            *(
                range(at - before * step, at + after * step + 1, step)
                for at, (before, after), step in zip(place, reaches, steps, strict=True)
            )
        )
        boxes.append({other for other in box if other in places})
    expected = loop(lambda i, j: places[j] in boxes[i] and (j <= i or not ordered), len(places))
    mask = nearby({"film": grid}, [*windows], causal=ordered, dilation=steps)
    assert torch.equal(mask.dense(), expected)


def test_one_window_and_dilation_serve_all_axes_and_groups():
    one = nearby({"a": (2, 3), "b": 4}, (1, 2), dilation=2).dense()
    assert torch.equal(one[:6, :6], nearby({"film": (2, 3)}, [(1, 2)] * 2, dilation=[2, 2]).dense())
    assert torch.equal(one[6:, 6:], nearby(4, (1, 2), dilation=2).dense())
    assert not one[:6, 6:].any()
    assert not one[6:, :6].any()


def test_nearby_on_a_line_is_a_sliding_window():
    assert torch.equal(nearby(7, 5).dense(), sliding_window(7, 2).dense())
    assert torch.equal(nearby(7, (3, 1), causal=True).dense(), sliding_window(7, 3, 0).dense())


odds = st.lists(st.sampled_from([1, 3, 5]), min_size=3, max_size=3)
steps = st.lists(st.integers(1, 3), min_size=3, max_size=3)


@given(frames=st.integers(1, 3), side=st.integers(2, 3), kernel=odds, dilation=steps)
def test_nearby_centred_is_the_neighbourhood_of_nuwa_pytorch(frames, side, kernel, dilation):
    grid = (frames, side, side)
    read, hidden = keys_of_nuwa(frames, side, kernel, dilation, causal=False)
    ours = nearby({"film": grid}, kernel, dilation=dilation).dense()
    assert torch.equal(ours, read)
    assert torch.equal(ours.sum(1), (~hidden).sum(1))  # as many as it does not mask


@given(frames=st.integers(1, 3), side=st.integers(2, 3), kernel=odds, dilation=steps)
def test_nearby_behind_is_the_causal_neighbourhood_of_nuwa_pytorch(frames, side, kernel, dilation):
    grid = (frames, side, side)
    read, hidden = keys_of_nuwa(frames, side, kernel, dilation, causal=True)
    mask = nearby({"film": grid}, [(size - 1, 0) for size in kernel], dilation=dilation)
    assert torch.equal(mask.dense(), read)
    assert torch.equal(mask.dense().sum(1), (~hidden).sum(1))


# Frames


@given(
    frames=st.integers(1, 4), rest=st.lists(st.integers(1, 2), max_size=2), step=st.integers(1, 3),
    lag=st.integers(0, 5), null=st.booleans(),
)  # fmt: skip
def test_frames_are_read_up_to_a_lag(frames, rest, step, lag, null):
    film = [t for t in range(frames) for _ in range(torch.Size(rest).numel())]
    sound = [t for t in range(frames + 1) for _ in range(step)]
    mask = frame_chunks(
        {"video": (frames, *rest)}, {"audio": (frames + 1, step)}, lag=lag, null=null
    )
    expected = [[s + lag <= t for s in sound] for t in film]
    assert mask.dense().tolist() == [[True] * null + row for row in expected]
    assert mask.keys == Tokens({**({"null": 1} if null else {}), "audio": (frames + 1, step)})


def test_every_group_has_frames_of_its_own():
    mask = frame_chunks({"sound": 3, "film": (3, 2)}, {"film": (2, 2), "word": 2})
    times = [0, 1, 2, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 0, 1]
    assert mask.dense().tolist() == [[s <= t for s in times[1]] for t in times[0]]


# Padding


@given(data=st.data(), batch=st.integers(1, 3), n=st.integers(1, 5))
def test_padding_hides_columns_clip_by_clip(data, batch, n):
    row = st.lists(st.booleans(), min_size=n, max_size=n)
    real = torch.tensor(data.draw(st.lists(row, min_size=batch, max_size=batch)))
    mask = padding(real)
    assert (mask.batch, mask.heads) == (batch, 1)
    for clip in range(batch):
        assert torch.equal(mask.dense(batch=clip), loop(lambda i, j, clip=clip: real[clip, j], n))


# Wrong calls


def test_numbers_of_numpy_count_too(no_shape_checks):
    one, two, three = (np.int8(number) for number in (1, 2, 3))
    for mask, same in (
        (sliding_window(5, one, two), sliding_window(5, 1, 2)),
        (prefix(5, two), prefix(5, 2)),
        (global_tokens(5, one), global_tokens(5, 1)),
        (strided(5, two), strided(5, 2)),
        (
            nearby({"film": (2, 3)}, [(one, 0), three], dilation=two),
            nearby({"film": (2, 3)}, [(1, 0), 3], dilation=2),
        ),
        (frame_chunks(4, 4, lag=one), frame_chunks(4, 4, lag=1)),
    ):
        assert torch.equal(mask.dense(), same.dense())


@pytest.mark.parametrize("bad", [-1, True, 1.0, "1", None, torch.tensor(1)])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda bad: sliding_window(5, bad), "sliding_window: before"),
        (lambda bad: sliding_window(5, 1, -1 if bad is None else bad), "sliding_window: after"),
        (lambda bad: prefix(5, bad), "prefix: length"),
        (lambda bad: global_tokens(5, bad), "global_tokens: count"),
        (lambda bad: strided(5, bad), "strided: stride"),
        (lambda bad: nearby(5, (bad, 0)), "nearby: before"),
        (lambda bad: nearby(5, (0, bad)), "nearby: after"),
        (lambda bad: nearby(5, 3, dilation=bad), "nearby: dilation"),
        (lambda bad: frame_chunks(5, 5, lag=bad), "frame_chunks: lag"),
    ],
)
def test_numbers_that_are_not_whole_are_refused(no_shape_checks, call, name, bad):
    with pytest.raises(ValueError, match=rf"{name} is .*; give a (positive )?whole number"):
        call(bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: strided(5, 0), "stride is 0; give a positive whole number"),
        (lambda: nearby(5, 3, dilation=0), "dilation is 0; give a positive whole number"),
        (lambda: nearby(5, 4), "window 4 is no odd number of tokens, .* for each axis .* a list"),
        (lambda: nearby(5, 0), "window 0 is no odd number"),
        (lambda: nearby(5, -3), "window -3 is no odd number"),
        (lambda: nearby(5, True), "window True is no odd number"),
        (lambda: nearby(5, "all"), "window 'all' is no odd number"),
        (
            lambda: nearby({"film": (2, 2, 2)}, (3, 3, 3)),
            r"window \(3, 3, 3\) is no odd .* give a list",
        ),
        (lambda: nearby({"film": (2, 2)}, [[1, 0], 3]), r"window \[1, 0\] is no odd number"),
        (
            lambda: nearby({"film": (2, 2)}, [3]),
            r"window is \[3\] and a grid is \(2, 2\); give one for each",
        ),
        (lambda: nearby(4, 3, dilation=[1, 2]), r"dilation is \[1, 2\] and a grid is \(4,\)"),
        (lambda: nearby({"a": 4, "b": (2, 2)}, [3, 3]), r"window is \[3, 3\] and a grid is \(4,\)"),
        (lambda: zorro(5), "got Tokens.*, wanted modalities and a group 'fusion'"),
        (lambda: bottleneck({"audio": 2}), "wanted modalities and a group 'fusion'"),
        (lambda: zorro({"global": 2, "fusion": 1}), "other than fusion and global"),
        (lambda: zorro({"all": 2, "fusion": 1}), "'all' cannot name a group"),
        (lambda: frame_chunks(2, {"null": 2}, null=True), "null=True; give 'null' another name"),
        (
            lambda: padding(torch.ones(2, 3)),
            r"got torch.float32 of shape \(2, 3\), wanted a tensor",
        ),
        (lambda: padding(torch.ones(3).bool()), r"of shape \(3,\), wanted a tensor of booleans"),
        (lambda: padding(torch.ones(0, 3).bool()), r"of shape \(0, 3\), wanted"),
        (lambda: padding([[True]]), "got list, wanted a tensor of booleans"),
        (lambda: padding(torch.ones(2, 3).bool(), {"a": 2}), "has 3 rows, .* are 2"),
        (lambda: causal("text"), "Tokens: got 'tokens': 'text', wanted"),
    ],
)
def test_masks_that_make_no_sense_are_refused(no_shape_checks, call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Attention by runs is attention under the dense mask, and costs what the mask lets through."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from avlib import neighbours
from avlib.memory import peak_bytes
from avlib.neighbours import Neighbours
from avlib.twin_masks import nearby_in_tower

# frames, grid of a frame, window, dilation, queries in a run
CASES = {
    "film": (6, (1, 4, 4), [(2, 0), 3, 3], 1, 32),
    "several runs": (5, (1, 4, 4), [(1, 0), 3, 3], 1, 4),
    "runs that do not divide the places": (5, (1, 3, 5), [(1, 0), 3, 3], 1, 4),
    "runs of one token": (4, (1, 2, 3), [(1, 0), 3, 3], 1, 1),
    "dilated": (6, (1, 3, 3), [(2, 0), 3, 3], [1, 2, 1], 3),
    "dilated in time": (7, (1, 2, 2), [(1, 0), 3, 3], [2, 1, 1], 3),
    "the whole frame": (9, (1, 2, 2), [(1, 0), None, None], 1, 32),
    "sound": (8, (2, 3, 1), [(3, 0), None, 1], 1, 2),
    "one code a frame": (40, (1, 1, 1), [(3, 0), None, 1], 1, 32),
}
DENSE = {
    "short": (2, (1, 2, 2), [(2, 0), 3, 3], 1, 32),
    "everything": (4, (1, 2, 2), [None, None, None], 1, 2),
}


@pytest.fixture(params=[*CASES, *DENSE])
def case(request, monkeypatch):
    """A mask, and attention under it."""
    frames, grid, window, dilation, run = {**CASES, **DENSE}[request.param]
    monkeypatch.setattr(neighbours, "RUN", run)
    mask = nearby_in_tower("film", frames, grid, window, dilation)
    made = Neighbours(mask)
    assert (made.dense is not None) == (request.param in DENSE)
    return mask, made


def drawn(size, *, heads=2, dim=4, dtype=torch.float64):
    return [
        torch.randn(2, heads, size, dim, dtype=dtype, requires_grad=True) for _ in ("q", "k", "v")
    ]


def test_it_is_attention_under_the_dense_mask_at_every_length(case):
    mask, made = case
    ((frames, _, places),) = mask.readers.grids.values()
    for length in sorted({1, 2, frames - 1, frames}):
        size = length * places
        inputs = drawn(size)
        found = made(*inputs)
        wanted = F.scaled_dot_product_attention(*inputs, mask.dense()[:size, :size])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        weights = torch.randn_like(found)
        gradients = [torch.autograd.grad((out * weights).sum(), inputs) for out in (found, wanted)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_each_token_is_told_what_its_row_says(case):
    mask, made = case
    for token, row in enumerate(mask.dense()):
        assert made.read_by(token).tolist() == row.nonzero()[:, 0].tolist()


def test_what_is_hidden_is_multiplied_by_zero(case):
    mask, made = case
    query, key, value = (tensor.detach() for tensor in drawn(len(mask.readers)))
    moved = key.clone(), value.clone()
    last = mask.dense().any(0).nonzero()[-1, 0]
    for part in moved:
        part[:, :, last] = 1e6
    unread = ~mask.dense()[:, last]
    assert unread.any()
    found, other = made(query, key, value), made(query, *moved)
    assert torch.equal(found[:, :, unread], other[:, :, unread])
    assert not torch.equal(found, other)


def test_dropout_drops(case):
    mask, made = case
    inputs = drawn(len(mask.readers))
    assert torch.equal(made(*inputs, 1.0), torch.zeros_like(inputs[0]))
    assert not torch.allclose(made(*inputs, 0.5), made(*inputs))


def film(frames):
    return Neighbours(nearby_in_tower("film", frames, (1, 4, 4), [(1, 0), 3, 3]))


def test_scores_grow_with_the_neighbourhood_and_not_with_the_square():
    scores = [sum(runs.seen.numel() for runs in film(frames).groups) for frames in (8, 16, 32)]
    assert scores[1] == 2 * scores[0]
    assert scores[2] == 4 * scores[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_grows_with_the_neighbourhood_and_not_with_the_square(dtype):
    peaks = []
    for frames in (8, 16):
        made, inputs = film(frames), drawn(frames * 17, dtype=dtype)
        for tensor in inputs:
            tensor.grad = torch.zeros_like(tensor)
        peaks.append(peak_bytes(lambda m=made, i=inputs: m(*i).sum().backward()))
    assert 1.9 < peaks[1] / peaks[0] < 2.1


def test_it_has_no_weights_and_nothing_in_a_checkpoint():
    made = film(8)
    assert not made.state_dict()
    inputs = drawn(8 * 17)
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(copied(*inputs), made(*inputs))

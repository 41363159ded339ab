"""Exact mode: the inverse returns the very bits, and says so when it cannot."""

import itertools

import pytest
import torch
from torch import nn
from towers import DIM, TYPES, gradients, loss_of, make_inputs, make_towers, worst

from avlib import Coupling, ReversibleSequence
from avlib.grid import Grid

AUTOCAST = pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16 autocast"])


def in_autocast(enabled):
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def deep(exact, depth=32):
    """32 × 3 = 96 blocks, with a gain of 3 on the attentions."""
    return make_towers(TYPES * depth, exact=exact, gain=3.0, dtype=torch.float32)


def there_and_back(sequence, inputs):
    halves = sequence.streams(**inputs)
    sides = {name: inputs[name] for name in inputs if name not in ("video", "audio")}
    return halves, sequence.inverse(*halves, **sides)


def snapped(tensor):
    return (tensor.detach() * 4096).round() / 4096


@AUTOCAST
@pytest.mark.parametrize("train", [True, False])
def test_96_blocks_give_their_snapped_inputs_back_bit_for_bit(autocast, train):
    inputs = make_inputs(torch.float32, grad=False)
    wanted = [snapped(inputs[name]) for name in ("video", "video", "audio", "audio")]
    with torch.no_grad(), in_autocast(autocast):
        after, back = there_and_back(deep(exact=True).train(train), inputs)
        _, drifted = there_and_back(deep(exact=False), inputs)
    for one, other in zip(back, wanted, strict=True):
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))
    assert not torch.equal(after[0], wanted[0])
    assert not torch.equal(drifted[0], inputs["video"])


@AUTOCAST
def test_gradients_are_those_of_autograd_through_the_same_rounding(autocast):
    sequence, inputs = deep(exact=True), make_inputs(torch.float32)
    with in_autocast(autocast):
        found = gradients(sequence, inputs, reverse=True)
    sequence.check()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
        wanted = gradients(sequence, inputs, reverse=False)
    for name in ("video out", "audio out"):
        assert torch.equal(found[name], wanted[name])
    assert worst(found, wanted) < (1e-6 if autocast else 1e-5)
    norms = [(found[n] - wanted[n]).norm() / wanted[n].norm() for n in wanted]
    assert max(norms) < 1e-6


@pytest.mark.parametrize(
    ("frozen", "only"), [(True, "context"), (True, "video"), (True, None), (False, None)]
)
def test_gradients_where_only_one_thing_needs_them(frozen, only):
    sequence = make_towers(exact=True, dtype=torch.float32).requires_grad_(not frozen)
    inputs = make_inputs(torch.float32, grad=False)
    if only:
        inputs[only].requires_grad_()
    elif frozen:
        assert not sequence(**inputs)[0].requires_grad
        return
    wanted = gradients(sequence, inputs, reverse=False)
    assert worst(gradients(sequence, inputs, reverse=True), wanted) < 1e-5
    assert (only in wanted) == bool(only)


def test_the_rounding_is_the_identity_to_the_gradient():
    values = torch.randn(100, requires_grad=True)
    rounded = Grid().round(values)
    assert torch.equal(rounded, snapped(values))
    assert (rounded - values).abs().max() <= 2**-13
    weights = torch.randn(100)
    assert torch.equal(torch.autograd.grad((rounded * weights).sum(), values)[0], weights)


def test_minus_zero_does_not_survive_the_grid():
    bits = Grid().round(torch.tensor([-0.0, -1e-6, 0.0])).view(torch.int32)
    assert bits.tolist() == [0, 0, 0]


def test_gradients_are_exactly_those_of_ordinary_autograd_with_dropout():
    sequence = make_towers(TYPES * 4, exact=True, dropout=0.3, dtype=torch.float32)
    inputs, results = make_inputs(torch.float32), []
    for reverse in (False, True):
        torch.manual_seed(3)
        results.append(gradients(sequence, inputs, reverse=reverse))
    sequence.check()
    assert worst(results[1], results[0]) < 1e-6


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("make", [SelfAttention, nn.TransformerEncoderLayer])
def test_modules_with_a_fast_path_without_gradients_are_exact_too(make, frozen):
    torch.manual_seed(0)
    layers = [make(16, 2, batch_first=True) for _ in range(8)]
    sequence = ReversibleSequence(
        [[Coupling(*("ab" if i % 2 else "ba"), layer)] for i, layer in enumerate(layers)],
        exact=True,
    )
    sequence.eval().requires_grad_(not frozen)
    streams = {name: 10 * torch.randn(2, 6, 16) for name in "ab"}
    wanted = {name: snapped(stream) for name, stream in streams.items()}
    modes = (torch.enable_grad, torch.no_grad, torch.inference_mode)
    for first, second, grad in itertools.product(modes, modes, (True, False)):
        with first():
            given = {name: stream.clone().requires_grad_(grad) for name, stream in streams.items()}
            after = sequence(given)
            assert after["a"].requires_grad == (first == torch.enable_grad and (grad or not frozen))
        with second():
            back = sequence.inverse({name: stream.detach() for name, stream in after.items()})
        for name in "ab":
            assert torch.equal(back[name], wanted[name])


@pytest.mark.parametrize("make", [SelfAttention, nn.TransformerEncoderLayer])
def test_exact_where_the_stream_that_is_read_needs_no_gradient(make):
    torch.manual_seed(0)
    layers = [make(16, 2, batch_first=True) for _ in range(48)]
    sequence = ReversibleSequence([[Coupling("b", "a", layer) for layer in layers]], exact=True)
    sequence.eval().requires_grad_(False)
    streams = {name: 10 * torch.randn(4, 12, 16) for name in "ab"}
    streams["b"].requires_grad_()
    after = sequence(streams)
    back = sequence.inverse({name: stream.detach() for name, stream in after.items()})
    assert torch.equal(back["b"], snapped(streams["b"]))


def test_the_range_ends_at_4096_and_empty_streams_are_within():
    for value in (4096.0, -4096.0):
        grid = Grid()
        grid.watch(torch.tensor([0.0, value]))
        with pytest.raises(RuntimeError, match="range"):
            grid.check()
    grid.watch(torch.tensor([4095.9, -4095.9]))
    grid.watch(torch.zeros(0))
    grid.check()


def test_one_stream_that_differs_is_enough():
    grid, same, other = Grid(), torch.zeros(3), torch.ones(3)
    grid.compare(grid.fingerprint({"a": same, "b": same}, "ab"), {"a": same, "b": other}, "ab")
    with pytest.raises(RuntimeError, match="answered otherwise"):
        grid.check()


def test_the_fingerprint_sees_places_and_signs():
    grid = Grid()
    tiny = 2.0**-12
    for one, other in (
        ([0.0, 0.0], [2.0, -2.0]),
        ([1.0, 2.0], [2.0, 1.0]),
        ([1.0], [-1.0]),
        ([1.0, 1.0], [-1.0, -1.0]),
        ([3000.0, 3000.0], [3000 + 3 * tiny, 3000 - tiny]),
        ([1.5] * 4, [1.5 + tiny, 1.5 - tiny, 1.5 - tiny, 1.5 + tiny]),
    ):
        prints = [grid.fingerprint({"a": torch.tensor(t)}, ["a"]) for t in (one, other)]
        assert not torch.equal(*prints)


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("value", [4096.0, -5000.0, torch.inf, torch.nan])
def test_what_leaves_the_grid_is_reported_once(value, reverse):
    sequence = make_towers(TYPES[:1], exact=True, dtype=torch.float32)
    inputs = {"video": torch.randn(2, 5, DIM), "audio": torch.randn(2, 3, DIM)}
    sequence(**inputs, reverse=reverse)
    sequence.check()
    with torch.no_grad():
        sequence.sequence.blocks[0][1].fn[4].bias[3] = value
    halves = sequence.streams(**inputs, reverse=reverse)
    with pytest.raises(
        RuntimeError, match=r"left the grid's range of ±4096 or is not finite.*norm"
    ):
        sequence.check()
    sequence.check()
    with pytest.raises(RuntimeError, match=r"left the grid's range"):
        sequence.inverse(*halves)
    inputs["audio"][0, 0, 0] = value
    sequence.check()
    sequence.streams(**inputs)
    with pytest.raises(RuntimeError, match=r"left the grid's range"):
        sequence.check()


def test_the_forward_pass_flags_a_stream_that_only_passes_through_the_range():
    far, back = (lambda x, sign=sign: sign * (8000 + 0 * x) for sign in (1, -1))
    sequence = ReversibleSequence([[Coupling("a", "b", far), Coupling("a", "b", back)]], exact=True)
    out = sequence({"a": torch.zeros(3), "b": torch.zeros(3)})
    assert torch.equal(out["a"], torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"left the grid's range"):
        sequence.check()


def test_a_function_that_answers_otherwise_the_second_time_is_noticed():
    class Wavering(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = nn.Linear(DIM, DIM), 0

        def forward(self, x):
            self.calls += 1
            out = self.linear(x).clone()
            out[0, 0] += 2.0**-12 * self.calls
            return out

    for fn, noticed in ((Wavering(), True), (nn.Linear(DIM, DIM), False)):
        streams = {n: torch.randn(3, DIM, requires_grad=True) for n in "ab"}
        sequence = ReversibleSequence([[Coupling("a", "b", fn)]] * 2, exact=True)
        loss_of(sequence(streams).values()).backward()
        if noticed:
            with pytest.raises(RuntimeError, match=r"answered otherwise the second time"):
                sequence.check()
        sequence.check()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_stream_dtypes_than_float32_are_refused(dtype):
    sequence = make_towers(exact=True, dtype=dtype)
    with pytest.raises(
        ValueError, match=r"'x1' is torch.*, wanted torch.float32; .*torch.autocast"
    ):
        sequence(**make_inputs(dtype))


def test_without_exact_check_has_nothing_to_say():
    sequence = make_towers(TYPES[:1], dtype=torch.float32)
    sequence.streams(torch.full((1, 2, DIM), torch.nan), torch.zeros(1, 2, DIM))
    sequence.check()


def test_one_table_of_weights_serves_streams_of_all_lengths():
    grid = Grid()
    short = {"a": torch.randn(3, 5)}
    before = grid.fingerprint(short, "a")
    grid.fingerprint({"a": torch.randn(4000)}, "a")
    grid.compare(before, short, "a")
    grid.check()  # taken with a shorter table, compared with a longer one
    for length in range(1, 4000, 371):
        grid.fingerprint({"a": torch.randn(length)}, "a")
    assert [len(weights) for weights in grid._weights.values()] == [4000]

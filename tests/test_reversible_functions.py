"""Reversible sequences of other people's functions: shared, odd, with buffers, copied, threaded."""

import copy
import pickle
from threading import Thread

import pytest
import torch
from torch import nn
from towers import (
    DIM,
    EXACT,
    Feed,
    both_ways,
    chain,
    gradients,
    loss_of,
    make_inputs,
    make_towers,
    pair_of,
    worst,
)

from avlib import Coupling, ReversibleSequence


def test_a_module_in_two_places_learns_and_stays_whole():
    linear = nn.Linear(DIM, DIM)
    sequence = chain(nn.Sequential(linear, nn.Tanh(), linear), nn.Linear(DIM, DIM), linear)
    wanted, found = both_ways(sequence, steps=3)
    assert worst(found, wanted) < EXACT
    assert all(isinstance(weight, nn.Parameter) for weight in sequence.parameters())


class Twice(nn.Module):
    """One parameter and one buffer under two names, and a layer that is not used."""

    def __init__(self):
        super().__init__()
        self.weight = self.again = nn.Parameter(torch.randn(DIM))
        self.register_buffer("scale", torch.ones(DIM))
        self.register_buffer("once_more", self.scale)
        self.unused = nn.Linear(DIM, DIM)

    def forward(self, x):
        return x * self.weight * self.again * self.scale * self.once_more


class Late(nn.Linear):
    """A buffer that is made at the first call."""

    def __init__(self):
        super().__init__(DIM, DIM)
        self.register_buffer("table", None)

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(DIM).to(x)
        return super().forward(x) + self.table


class Nested(nn.Module):
    """A sequence inside a callable."""

    def __init__(self):
        super().__init__()
        self.inner = chain(nn.Linear(DIM, DIM), nn.Linear(DIM, DIM))

    def forward(self, x):
        return sum(self.inner({"a": x, "b": x}).values())


def waves(x):
    for _ in range(60):  # 2⁶⁰ paths through the graph
        x = x.sin() + x.cos()
    return x


ODD = {
    "constant": ("a", "b", torch.ones_like),
    "detached": ("a", "b", torch.Tensor.detach),
    "identity": ("a", "b", nn.Identity()),
    "half constant": (("a", "b"), "c", lambda c: [2 * c, torch.ones_like(c)]),
    "reads nothing": ("a", (), lambda: torch.ones(6, DIM)),
    "ignores a read": ("a", ("b", "c"), lambda b, c: 2 * c),
    "many paths": ("a", "b", waves),
    "expanded": ("a", "b", lambda b: b.mean(1, keepdim=True).expand(-1, DIM)),
    "two names": ("a", "b", Twice()),
    "late buffer": ("a", "b", Late()),
    "nested": ("a", ("b"), Nested()),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_functions(name):
    targets, reads, fn = ODD[name]
    sequence = ReversibleSequence([[Coupling(targets, reads, fn)] * 2]).double()
    streams = {n: torch.randn(6, DIM, dtype=torch.float64, requires_grad=True) for n in "abc"}
    leaves = [*streams.values(), *sequence.parameters()]
    wanted, found = (
        torch.autograd.grad(
            loss_of(sequence(streams, reverse=reverse).values()), leaves, allow_unused=True
        )
        for reverse in (False, True)
    )
    assert [grad is None for grad in found] == [grad is None for grad in wanted]
    given = [(one, two) for one, two in zip(found, wanted, strict=True) if one is not None]
    torch.testing.assert_close(*zip(*given, strict=True), rtol=1e-10, atol=1e-10)


def test_a_function_in_another_precision_than_its_stream():
    streams = {name: torch.randn(2, 3, dtype=torch.bfloat16) for name in "ab"}
    assert pair_of(torch.Tensor.float, nn.Identity())(streams)["a"].dtype == torch.bfloat16


def test_statistics_are_counted_once():
    sequence = chain(nn.BatchNorm1d(DIM), nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM))
    wanted, found = both_ways(sequence)
    counted = [value.item() for name, value in found.items() if "num_batches" in name]
    assert counted == [2, 2]
    assert worst({n: t.double() for n, t in found.items()}, wanted) < EXACT


def test_buffers_that_change_in_training_are_those_of_the_forward_pass():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(DIM, DIM)
            self.register_buffer("mean", torch.zeros(DIM))

        def forward(self, x):
            x = self.linear(x)
            self.mean = 0.9 * self.mean + x.detach().mean(0)
            return x * self.mean

    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(DIM, DIM))
    wanted, found = both_ways(chain(Centred(), spectral, Centred()), steps=3)
    assert worst(found, wanted) < EXACT


def test_a_buffer_that_changes_before_backward_is_refused():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.ones(DIM))

        def forward(self, x):
            return x * self.mask

    sequence = chain(Masked())
    streams = {n: torch.randn(6, DIM, dtype=torch.float64, requires_grad=True) for n in "ab"}
    loss = loss_of(sequence(streams).values())
    sequence.blocks[0][0].fn.mask.mul_(3)
    with pytest.raises(RuntimeError, match=r"a buffer.* changed in place"):
        loss.backward()


def test_what_gets_no_gradient_stays_without():
    class Root(nn.Module):
        def forward(self, x, c):
            return (x + c).sqrt()

    sequence = ReversibleSequence(
        [
            [Coupling("a", "b", lambda x, c: x + c, {"c": "c"})],
            [Coupling("m", "n", Root(), {"c": "c"}), Coupling("m", "n", nn.Linear(3, 3))],
        ]
    )
    streams = {name: torch.zeros(3) for name in "abmn"}
    c = torch.zeros(3, requires_grad=True)
    out = sequence(streams, {"c": c})
    leaves = (c, *sequence.parameters())
    found = torch.autograd.grad(out["a"].sum(), leaves, allow_unused=True)
    assert found[0].tolist() == [1, 1, 1]  # the root's slope at 0, times no gradient, is not NaN
    assert found[1:] == (None, None)


def test_threads_that_train_one_model_do_not_mix():
    sequence, inputs = make_towers(dropout=0.3).eval(), make_inputs()
    leaves = [inputs["video"], *sequence.parameters()]
    wanted = torch.autograd.grad(loss_of(sequence(**inputs, reverse=False)), leaves)
    found = []

    def work():
        for _ in range(10):
            found.append(torch.autograd.grad(loss_of(sequence(**inputs)), leaves))

    threads = [Thread(target=work) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(found) == 30
    for grads in found:
        torch.testing.assert_close(grads, wanted, rtol=EXACT, atol=EXACT)


def test_inference_mode():
    sequence, inputs = make_towers(), make_inputs()
    wanted = sequence(**inputs)[0]
    with torch.inference_mode():
        for reverse in (True, False):
            torch.testing.assert_close(sequence(**inputs, reverse=reverse)[0], wanted.detach())


def test_copies_and_pickles_and_replaced_modules():
    sequence, inputs = make_towers(), make_inputs()
    wanted = gradients(sequence, inputs, reverse=True)
    for copied in (copy.deepcopy(sequence), pickle.loads(pickle.dumps(sequence))):
        assert worst(gradients(copied, inputs, reverse=True), wanted) == 0
    sequence.sequence.blocks[0][1].fn = Feed().double()
    wanted = gradients(sequence, inputs, reverse=False)
    assert worst(gradients(sequence, inputs, reverse=True), wanted) < EXACT

"""Reversible sequences are right, or give an error that says what to do."""

import pytest
import torch
from torch import nn
from towers import (
    DIM,
    TYPES,
    gradients,
    loss_of,
    make_blocks,
    make_inputs,
    make_towers,
    pair_of,
    worst,
)

from avlib import Coupling, DualModalityReversibleSequence, ReversibleSequence


def test_a_second_derivative_is_refused():
    loss = loss_of(make_towers()(**make_inputs()))
    with pytest.raises(RuntimeError, match=r"second derivative .* reverse=False"):
        loss.backward(create_graph=True)


def test_backward_twice_is_right_with_retain_graph_and_refused_without():
    sequence, inputs = make_towers(), make_inputs()
    wanted = gradients(sequence, inputs, reverse=True)

    def twice(loss):
        loss.backward(retain_graph=True)
        for tensor in (*inputs.values(), *sequence.parameters()):
            tensor.grad = None
        loss.backward()
        with pytest.raises(RuntimeError, match=r"retain_graph=True"):
            loss.backward()

    found = gradients(sequence, inputs, reverse=True, backward=twice)
    assert worst(found, wanted) == 0


def test_a_second_backward_pass_is_not_taken_for_a_change_in_place():
    loss = sum(half.sum() for half in make_towers().streams(**make_inputs()))
    loss.backward()
    with pytest.raises(RuntimeError, match=r"^Trying to backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("what", ["parameter", "context", "output", "optimizer"])
def test_an_in_place_change_before_backward_is_refused(what):
    sequence, inputs = make_towers(), make_inputs()
    inputs["context"] = inputs["context"] * 1
    halves = sequence.streams(**inputs)
    loss = sum(half.sum() for half in halves)
    if what == "optimizer":
        for weight in sequence.parameters():
            weight.grad = torch.ones_like(weight)
        torch.optim.SGD(sequence.parameters(), 0.1).step()
    with torch.no_grad():
        if what == "parameter":
            next(sequence.parameters()).add_(1)
        elif what == "context":
            inputs["context"].add_(1)
        elif what == "output":
            halves[0].add_(1)
    with pytest.raises(RuntimeError, match=r"in place .* call backward first"):
        loss.backward()


@pytest.mark.parametrize("part", ["all", "fn", "dropout"])
def test_a_switch_between_train_and_eval_before_backward_is_refused(part):
    sequence = make_towers(dropout=0.5)
    loss = loss_of(sequence(**make_inputs()))
    fn = sequence.sequence.blocks[1][0].fn
    {"all": sequence, "fn": fn, "dropout": fn.dropout}[part].eval()
    with pytest.raises(RuntimeError, match=r"switched between \.train\(\) and \.eval\(\)"):
        loss.backward()


def test_a_closure_over_a_tensor_that_needs_a_gradient_is_refused():
    linear, weight = nn.Linear(DIM, DIM), torch.ones(DIM, requires_grad=True)
    a, b = torch.randn(2, 3, DIM), torch.randn(2, 3, DIM, requires_grad=True)

    class Hiding(nn.Module):
        def forward(self, x):
            return x * weight

    for fn in (
        lambda x: linear(x),
        linear.forward,
        lambda x: x * (2 * weight),
        lambda x: weight.expand_as(x),
        Hiding(),
    ):
        with pytest.raises(ValueError, match=r"a \+= .*depends on a tensor that needs a gradient"):
            pair_of(fn, nn.Identity())({"a": a, "b": b})
        stored = pair_of(fn, nn.Identity())({"a": a, "b": b}, reverse=False)
        assert stored["a"].requires_grad
    itself = ReversibleSequence([[Coupling("a", (), lambda: weight)]])
    with pytest.raises(ValueError, match=r"depends on a tensor that needs a gradient"):
        itself({"a": torch.ones(DIM, requires_grad=True)})


def test_what_is_computed_on_the_way_cannot_be_differentiated_from_outside():
    class WithPenalty(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            self.penalty = out.square().sum()
            return out

    fn = WithPenalty(DIM, DIM)
    streams = {n: torch.randn(2, DIM, requires_grad=True) for n in "ab"}
    out = ReversibleSequence([[Coupling("a", "b", fn)]])(streams)
    with pytest.raises(RuntimeError, match=r"return it to a stream of its own, or use reverse"):
        (out["a"].sum() + fn.penalty).backward()


def test_a_weight_kept_from_the_forward_pass_is_refused():
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(DIM, DIM))
    streams = {n: torch.randn(2, DIM, requires_grad=True) for n in "ab"}
    with nn.utils.parametrize.cached():
        out = ReversibleSequence([[Coupling("a", "b", linear)]])(streams)
        with pytest.raises(ValueError, match=r"depends on a tensor that needs a gradient"):
            out["a"].sum().backward()


@pytest.mark.parametrize("whole", [True, False])
def test_a_backward_pass_within_another_is_refused(whole):
    sequence, inputs = make_towers(TYPES * 2), make_inputs()
    loss, blocks = loss_of(sequence(**inputs)), sequence.sequence.blocks
    leaf = inputs["video"] if whole else blocks[-1][-1].fn[1].weight
    blocks[3][1].fn[1].weight.register_hook(
        lambda _: torch.autograd.grad(loss, leaf, retain_graph=True) and None
    )
    with pytest.raises(RuntimeError, match=r"two backward passes .* one after the other"):
        loss.backward(retain_graph=True)


def test_functions_without_weights_may_be_plain():
    a, b = (torch.randn(2, 3, DIM, requires_grad=True) for _ in range(2))
    results = [
        torch.autograd.grad(
            loss_of(pair_of(torch.sin, lambda x: 2 * x)({"a": a, "b": b}, reverse=r).values()),
            (a, b),
        )
        for r in (True, False)
    ]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("grad", [True, False])
def test_a_function_that_changes_a_mask_is_refused(grad):
    streams = {"a": torch.randn(3), "b": torch.randn(3, requires_grad=grad)}
    coupling = Coupling("a", "b", lambda x, mask: x * mask.mul_(2), {"mask": "mask"})
    with pytest.raises(ValueError, match=r"fn changed what it was given; compute without"):
        ReversibleSequence([[coupling]])(streams, {"mask": torch.ones(3)})


@pytest.mark.parametrize("grad", [True, False])
def test_a_function_that_changes_what_it_reads_is_refused(grad):
    streams = {"a": torch.randn(3), "b": torch.randn(3, requires_grad=grad)}
    with pytest.raises((ValueError, RuntimeError), match=r"in-place"):
        pair_of(nn.ReLU(inplace=True), nn.Identity())(streams)


@pytest.mark.usefixtures("no_shape_checks")
def test_what_cannot_be_a_coupling_is_refused():
    for targets, reads, message in (
        ("a", "a", "'a' is target and read"),
        (("a", "b"), ("c", "b"), "'b' is target and read"),
        ((), "a", r"targets are \[\]"),
        (("a", "a"), "b", "name each stream once"),
    ):
        with pytest.raises(ValueError, match=message):
            Coupling(targets, reads, nn.Identity())
    with pytest.raises(TypeError, match=r"fn is int, wanted something to call; pass a Module"):
        Coupling("a", "b", 3)


@pytest.mark.parametrize("reverse", [True, False])
def test_what_cannot_be_added_is_refused(reverse):
    streams = {"a": torch.randn(2, 3), "b": torch.randn(2, 3, requires_grad=True)}
    for fn, error, message in (
        (
            lambda x: x[:, :1],
            ValueError,
            r"a \+= fn\(b\): fn returned .*\(2, 1\), wanted .*\(2, 3\)",
        ),
        (lambda x: x.sum(), ValueError, r"of shape \(\), wanted floating point of shape \(2, 3\)"),
        (lambda x: x.int(), ValueError, r"fn returned torch.int32 of shape"),
        (
            lambda x: None,
            TypeError,
            r"fn returned \['NoneType'\], wanted 1 tensor; return one for each",
        ),
        (lambda x: (x, x), TypeError, r"fn returned \['Tensor', 'Tensor'\], wanted 1 tensor"),
    ):
        with pytest.raises(error, match=message):
            pair_of(fn, nn.Identity())(streams, reverse=reverse)
    several = ReversibleSequence([[Coupling(("a", "b"), (), lambda: torch.ones(2, 3))]])
    with pytest.raises(TypeError, match="wanted 2 tensors"):
        several(streams, reverse=reverse)


@pytest.mark.usefixtures("no_shape_checks")
def test_streams_and_inputs_that_are_missing_or_no_floats_are_refused():
    sequence = ReversibleSequence([[Coupling("a", "b", nn.Identity(), {"mask": "video_mask"})]])
    a = torch.randn(3)
    with pytest.raises(ValueError, match=r"stream 'b' is missing, there are \['a'\]"):
        sequence({"a": a}, {"video_mask": None})
    with pytest.raises(ValueError, match=r"input 'video_mask' is missing.*None if there is none"):
        sequence({"a": a, "b": a})
    with pytest.raises(TypeError, match=r"stream 'b' is torch.int64, wanted a floating-point"):
        sequence({"a": a, "b": torch.arange(3)}, {"video_mask": None})
    with pytest.raises(TypeError, match=r"stream 'b' is list, wanted a floating-point"):
        sequence({"a": a, "b": [1.0]}, {"video_mask": None})
    with pytest.raises(
        TypeError, match=r"streams is Tensor, wanted a dictionary; give each tensor"
    ):
        sequence(a)
    with pytest.raises(TypeError, match=r"inputs is Tensor, wanted a dictionary"):
        sequence({"a": a, "b": a}, a)
    with pytest.raises(
        TypeError, match=r"a block holds a Linear, wanted couplings; write Coupling"
    ):
        ReversibleSequence([[nn.Linear(3, 3)]])


def test_blocks_and_types_that_do_not_fit_are_refused():
    blocks = make_blocks(TYPES)
    with pytest.raises(ValueError, match=r"got 3 blocks and 2 block_types; give one type for each"):
        DualModalityReversibleSequence(blocks, TYPES[:2])
    with pytest.raises(ValueError, match=r"block 1 has type 'cross'; wanted one of \['intra_mod"):
        DualModalityReversibleSequence(blocks, (TYPES[0], "cross", TYPES[1]))
    with pytest.raises(ValueError, match=r"block 2 has 3 callables, wanted four: f, g, j, k"):
        DualModalityReversibleSequence([*blocks[:2], blocks[2][:3]], TYPES)


def test_context_may_be_left_out_only_where_no_block_reads_it():
    inputs = make_inputs(masks=False)
    inputs.pop("context")
    make_towers(TYPES[::2])(**inputs)
    for call in (make_towers(TYPES), make_towers(TYPES).streams):
        with pytest.raises(
            ValueError, match=r"context is None and block 1 .*reads it; give context"
        ):
            call(**inputs)


def test_halves_of_unequal_shape_are_refused():
    sequence, inputs = make_towers(TYPES[:1]), make_inputs(masks=False)
    inputs.pop("context")
    x1, x2, m1, m2 = sequence.streams(**inputs)
    with pytest.raises(ValueError, match=r"x1 and x2 have shapes \(2, 5, 8\) and \(2, 3, 8\)"):
        sequence.inverse(x1, m1, x2, m2)
    with pytest.raises(ValueError, match=r"m1 and m2 have shapes .*halves of one tower"):
        sequence.inverse(x1, x2, m1, m2[:, :2])

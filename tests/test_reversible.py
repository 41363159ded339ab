"""Reversible sequences: the gradients of ordinary autograd, an inverse, and flat memory."""

import copy
import gc
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from towers import (
    DIM,
    TYPES,
    Attend,
    Feed,
    gradients,
    loss_of,
    make_blocks,
    make_inputs,
    make_towers,
    worst,
)

from avlib import Coupling, DualModalityReversibleSequence, ReversibleSequence
from avlib.memory import peak_bytes

EXACT = 1e-12


def pair_of(first, second):
    """One block over the streams a and b."""
    return ReversibleSequence([[Coupling("a", "b", first), Coupling("b", "a", second)]])


# The same gradients as ordinary autograd


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("types", [*((kind,) for kind in TYPES), TYPES * 2], ids=len)
def test_gradients_are_those_of_autograd(types, masks):
    sequence, inputs = make_towers(types), make_inputs(masks=masks)
    if "intra_modality_cross_attn" not in types:
        inputs.pop("context")
    wanted = gradients(sequence, inputs, reverse=False)
    found = gradients(sequence, inputs, reverse=True)
    assert worst(found, wanted) < EXACT
    assert len(wanted) > 4 * len(types)


def test_the_gradients_compared_are_not_zero():
    wanted = gradients(make_towers(), make_inputs(), reverse=False)
    small = [name for name, tensor in wanted.items() if tensor.abs().max() < 1e-3]
    assert not [name for name in small if "to_kv" not in name and "to_q" not in name]
    assert {"video", "audio", "context"} <= wanted.keys()


def test_gradcheck_with_context():
    sequence = make_towers()
    inputs = make_inputs(batch=1, video=2, audio=3, text=2, masks=False)
    video, audio, context = (inputs[name] for name in ("video", "audio", "context"))
    assert torch.autograd.gradcheck(
        lambda v, a, c: sequence(v, a, context=c), (video, audio, context)
    )


def test_an_encoder_in_front_of_the_context_is_back_propagated_once():
    sequence, inputs = make_towers(TYPES * 2), make_inputs()
    encoder, text = nn.Linear(DIM, DIM).double(), inputs.pop("context")
    passes = []
    encoder.register_full_backward_hook(lambda *_: passes.append(1))
    wanted = {}
    for reverse in (False, True):
        encoder.zero_grad()
        found = gradients(sequence, {**inputs, "context": encoder(text)}, reverse=reverse)
        found["encoder"] = encoder.weight.grad
        assert worst(found, wanted or found) < EXACT
        wanted = found
    assert len(passes) == 2


def test_autograd_grad_leaves_grad_alone():
    sequence, inputs = make_towers(), make_inputs()
    leaves = [inputs["video"], inputs["context"], *sequence.parameters()]
    wanted = torch.autograd.grad(loss_of(sequence(**inputs, reverse=False)), leaves)
    found = torch.autograd.grad(loss_of(sequence(**inputs)), leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT)
    assert all(leaf.grad is None for leaf in leaves)


def test_a_single_late_parameter_needs_only_the_last_block():
    sequence, inputs = make_towers(TYPES * 2), make_inputs()
    calls = []
    sequence.sequence.blocks[0][0].fn.register_forward_hook(lambda *_: calls.append(1))
    last = sequence.sequence.blocks[-1][-1].fn[1].weight
    torch.autograd.grad(loss_of(sequence(**inputs)), last)
    assert len(calls) == 1  # the forward pass, and no recomputation


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_a_loss_on_one_half_alone(which):
    sequence, inputs = make_towers(TYPES * 2), make_inputs()
    leaves = [inputs["video"], inputs["audio"], *sequence.parameters()]
    wanted, found = (
        torch.autograd.grad(
            sequence.streams(**inputs, reverse=reverse)[which].square().sum(),
            leaves,
            allow_unused=True,
        )
        for reverse in (False, True)
    )
    for one, other in zip(found, wanted, strict=True):
        other = torch.zeros(()) if other is None else other
        one = torch.zeros(()) if one is None else one
        torch.testing.assert_close(one.sum(), other.sum(), check_dtype=False, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("train", [True, False])
def test_dropout_and_two_forwards_before_one_backward(train):
    sequence, inputs = make_towers(dropout=0.3).train(train), make_inputs()
    results = {}
    for reverse in (False, True):
        torch.manual_seed(3)
        sequence.zero_grad()
        one = loss_of(sequence(**inputs, reverse=reverse))
        other = loss_of(sequence(**inputs, reverse=reverse))
        state = torch.get_rng_state()
        torch.rand(7)  # whatever is drawn in between changes nothing
        between = torch.get_rng_state()
        one.backward()
        other.backward()
        assert torch.equal(torch.get_rng_state(), between)
        results[reverse] = dict(sequence.named_parameters())
        results[reverse] = {n: p.grad.clone() for n, p in results[reverse].items()}
        results[reverse]["state"] = state.double()
        assert torch.equal(one, other) != train
    assert worst(results[True], results[False]) < EXACT


def test_a_failing_recomputation_leaves_the_random_state_alone():
    class Failing(nn.Dropout):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 2:
                super().forward(x)
                raise ValueError("the second time")
            return super().forward(x)

    loss = pair_of(Failing(), nn.Identity())({n: torch.ones(3, requires_grad=True) for n in "ab"})
    torch.rand(7)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="the second time"):
        loss["a"].sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_on_the_meta_device_and_with_random_numbers_of_another_device():
    class Drawing(nn.Linear):
        def forward(self, x):
            torch.rand(1, device="cpu")
            return super().forward(x)

    with torch.device("meta"):
        sequence = pair_of(nn.Linear(8, 8), Drawing(8, 8))
        out = sequence({n: torch.zeros(2, 8, requires_grad=True) for n in "ab"})
    assert out["b"].grad_fn.call.random_state
    out["b"].sum().backward()
    assert all(weight.grad.is_meta for weight in sequence.parameters())


def test_random_states_are_kept_only_where_numbers_were_drawn():
    for dropout in (0.0, 0.3):
        sequence, inputs = make_towers(dropout=dropout), make_inputs()
        node = sequence.streams(**inputs)[0].grad_fn
        assert type(node).__name__ == "_RecomputedBackward"
        assert bool(node.call.random_state) == bool(dropout)


@pytest.mark.parametrize("only", ["video", "audio", "context", None])
def test_inputs_without_gradient(only):
    sequence, inputs = make_towers(), make_inputs(grad=False)
    if only:
        inputs[only].requires_grad_()
    wanted = gradients(sequence, inputs, reverse=False)
    assert worst(gradients(sequence, inputs, reverse=True), wanted) < EXACT
    assert ("video" in wanted) == (only == "video")


@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1), (2,), (0, 1, 2)])
def test_frozen_blocks(frozen):
    sequence, inputs = make_towers(), make_inputs()
    for index in frozen:
        sequence.sequence.blocks[index].requires_grad_(False)
    wanted = gradients(sequence, inputs, reverse=False)
    assert worst(gradients(sequence, inputs, reverse=True), wanted) < EXACT


def test_frozen_leading_blocks_are_not_computed_again():
    sequence, inputs = make_towers(TYPES * 2), make_inputs(grad=False)
    calls = []
    for index, block in enumerate(sequence.sequence.blocks):
        block[0].fn.register_forward_hook(lambda *_, index=index: calls.append(index))
        block.requires_grad_(index >= 3)
    loss_of(sequence(**inputs)).backward()
    assert calls == [0, 1, 2, 3, 4, 5, 5, 4, 3]


def test_tied_weights_within_a_callable_and_across_blocks():
    f, g, j, k = make_blocks(TYPES[:1])[0]
    g[4].weight = nn.Parameter(torch.randn(DIM, 12))
    g[1].weight = nn.Parameter(torch.randn(12, DIM))
    within = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, DIM))
    within[2].weight = within[0].weight
    blocks = [(f, g, j, within), (f, k, f, within), (j, g, f, k)]
    sequence = DualModalityReversibleSequence(blocks, TYPES[:1] * 3).double()
    inputs = make_inputs()
    inputs.pop("context"), inputs.pop("context_mask")
    wanted = gradients(sequence, inputs, reverse=False)
    assert worst(gradients(sequence, inputs, reverse=True), wanted) < EXACT


def test_a_weight_that_is_used_outside_too():
    sequence, inputs = make_towers(), make_inputs()
    head = sequence.sequence.blocks[1][1].fn[4]
    results = []
    for reverse in (False, True):
        sequence.zero_grad()
        video, audio = sequence(**inputs, reverse=reverse)
        outside = F.linear(video, head.weight.T).sum() + head.bias.square().sum()
        (loss_of((video, audio)) + outside).backward()
        results.append({"weight": head.weight.grad, "bias": head.bias.grad})
        results[-1] = {name: grad.clone() for name, grad in results[-1].items()}
    assert worst(results[1], results[0]) < EXACT


def test_gradient_accumulation():
    sequence, results = make_towers(), []
    for reverse in (False, True):
        sequence.zero_grad()
        for batch in (1, 2, 3):
            loss_of(sequence(**make_inputs(batch=batch), reverse=reverse)).backward()
        results.append({n: p.grad.clone() for n, p in sequence.named_parameters()})
    assert worst(results[1], results[0]) < EXACT


@pytest.mark.parametrize("inside", [True, False])
def test_bf16_autocast_with_the_backward_pass_inside_or_outside(inside):
    sequence, inputs = make_towers(TYPES * 2, dtype=torch.float32), make_inputs(torch.float32)
    leaves = [inputs["video"], inputs["audio"], inputs["context"], *sequence.parameters()]

    def found(reverse, **settings):
        with torch.autocast("cpu", torch.bfloat16, **settings):
            loss = loss_of(sequence(**inputs, reverse=reverse))
            if inside:
                return dict(enumerate(torch.autograd.grad(loss, leaves)))
        return dict(enumerate(torch.autograd.grad(loss, leaves)))

    # With its cache, autocast adds the context's gradients of several blocks in bfloat16.
    wanted = found(reverse=False, cache_enabled=False)
    assert worst(found(reverse=True), wanted) < 1e-6
    assert worst(found(reverse=True, enabled=False), wanted) > 1e-3


def test_a_backward_pass_inside_autocast_of_a_forward_pass_without():
    sequence, inputs = make_towers(dtype=torch.float32), make_inputs(torch.float32)
    leaves, results = [inputs["video"], *sequence.parameters()], []
    for reverse in (False, True):
        loss = loss_of(sequence(**inputs, reverse=reverse))
        with torch.autocast("cpu", torch.bfloat16):
            results.append(dict(enumerate(torch.autograd.grad(loss, leaves))))
    assert worst(results[1], results[0]) < 1e-5


def test_autocast_keeps_no_copies_of_the_leaves():
    sequence = make_towers(dtype=torch.float32)
    inputs = make_inputs(torch.float32, masks=False)
    loss_of(sequence(**inputs)).backward()

    def steps(count):
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(count):
                loss_of(sequence(**inputs)).backward()

    assert peak_bytes(lambda: steps(6)) == peak_bytes(lambda: steps(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_about_as_good_as_its_ordinary_peer(dtype):
    truth = gradients(make_towers(), make_inputs(), reverse=False)
    results = []
    for reverse in (False, True):
        found = gradients(make_towers(dtype=dtype), make_inputs(dtype), reverse=reverse)
        assert {tensor.dtype for tensor in found.values()} == {dtype}
        errors = [(found[n].double() - truth[n]).norm() / truth[n].norm() for n in truth]
        results.append(torch.stack(errors).median())
    assert results[1] < 1.5 * results[0]


def test_functional_call_gives_its_tensors_their_gradients():
    sequence, inputs = make_towers(), make_inputs()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    found = []
    for reverse in (False, True):
        weights = {name: weight.detach() * scale for name, weight in sequence.named_parameters()}
        outputs = functional_call(sequence, weights, (), {**inputs, "reverse": reverse})
        found.append(torch.autograd.grad(loss_of(outputs), (scale, inputs["context"])))
    torch.testing.assert_close(found[1], found[0], rtol=EXACT, atol=EXACT)
    assert found[0][0].abs() > 0.1


def test_inside_checkpoint():
    sequence, inputs = make_towers(TYPES * 2, dropout=0.2), make_inputs()
    torch.manual_seed(3)
    wanted = gradients(sequence, inputs, reverse=False)
    torch.manual_seed(3)
    masks = {name: value for name, value in inputs.items() if "mask" in name}

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = sequence

        def forward(self, video, audio, context, reverse, **_):
            def run(v, a, c):
                return sequence(v, a, context=c, **masks)

            return checkpoint(run, video, audio, context, use_reentrant=False)

    found = gradients(Checkpointed(), inputs, reverse=True)
    found = {name.removeprefix("inner."): tensor for name, tensor in found.items()}
    assert worst(found, wanted) < EXACT


def test_checkpoint_inside_a_callable():
    class Frugal(Feed):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    blocks = [(Attend(), Frugal(), Attend(), Frugal())]
    sequence = DualModalityReversibleSequence(blocks, TYPES[:1]).double()
    inputs = make_inputs()
    inputs.pop("context"), inputs.pop("context_mask")
    wanted = gradients(sequence, inputs, reverse=False)
    assert worst(gradients(sequence, inputs, reverse=True), wanted) < EXACT


def test_hooks_see_what_they_see_under_autograd():
    sequence, inputs = make_towers(), make_inputs()
    fn = sequence.sequence.blocks[1][0].fn
    seen = []
    fn.register_full_backward_hook(lambda _, __, grads: seen.append(("module", grads[0])))
    fn.to_q.weight.register_hook(lambda grad: seen.append(("parameter", grad)))
    fn.to_q.weight.register_post_accumulate_grad_hook(
        lambda weight: seen.append(("accumulated", weight.grad))
    )
    results = []
    for reverse in (False, True):
        seen.clear()
        gradients(sequence, inputs, reverse=reverse)
        results.append(list(seen))
    results = [sorted(result, key=lambda kind_and_grad: kind_and_grad[0]) for result in results]
    assert [kind for kind, _ in results[1]] == ["accumulated", "module", "parameter"]
    for (kind, grad), (other_kind, other) in zip(*results, strict=True):
        assert kind == other_kind
        torch.testing.assert_close(grad, other, rtol=EXACT, atol=EXACT)


def test_a_parametrised_weight():
    sequence, inputs = make_towers(), make_inputs()
    for block in sequence.sequence.blocks:
        nn.utils.parametrizations.weight_norm(block[1].fn[1])
    wanted = gradients(sequence, inputs, reverse=False)
    assert any("parametrizations" in name for name in wanted)
    assert worst(gradients(sequence, inputs, reverse=True), wanted) < EXACT


def chain(*callables):
    """Float64 couplings that alternate between the streams a and b."""
    couplings = [Coupling(*("ab" if i % 2 == 0 else "ba"), f) for i, f in enumerate(callables)]
    return ReversibleSequence([couplings]).double()


def both_ways(sequence, *, steps=2):
    """Gradients of parameters and inputs by reverse=False on a copy, and by reverse=True."""
    results = []
    for reverse, model in ((False, copy.deepcopy(sequence)), (True, sequence)):
        torch.manual_seed(3)
        streams = {n: torch.randn(6, DIM, dtype=torch.float64, requires_grad=True) for n in "ab"}
        for _ in range(steps):
            loss_of(model(streams, reverse=reverse).values()).backward()
        found = {name: weight.grad for name, weight in model.named_parameters()}
        found |= {name: buffer.clone() for name, buffer in model.named_buffers()}
        results.append({**found, **{name: stream.grad for name, stream in streams.items()}})
    return results


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


# Right, or an error that says what to do


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


# The inverse, and what else the sequence promises


@pytest.mark.parametrize("types", [*((kind,) for kind in TYPES), TYPES * 4], ids=len)
def test_the_inverse_gives_the_inputs_back(types):
    sequence, inputs = make_towers(types), make_inputs()
    sides = {name: inputs[name] for name in inputs if name not in ("video", "audio")}
    with torch.no_grad():
        halves = sequence.streams(**inputs)
        back = sequence.inverse(*halves, **sides)
    wanted = [inputs[name] for name in ("video", "video", "audio", "audio")]
    for one, other, after in zip(back, wanted, halves, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
        assert (after - other).abs().max() > 0.1


def test_the_outputs_are_the_means_of_the_halves():
    sequence, inputs = make_towers(), make_inputs()
    x1, x2, m1, m2 = sequence.streams(**inputs)
    video, audio = sequence(**inputs)
    assert torch.equal(video, (x1 + x2) / 2)
    assert torch.equal(audio, (m1 + m2) / 2)
    assert not torch.equal(x1, x2)


def test_the_inverse_keeps_the_halves_apart():
    sequence = make_towers(TYPES[::2])
    halves = [torch.randn(2, n, DIM, dtype=torch.float64) for n in (5, 5, 3, 3)]
    with torch.no_grad():
        before = dict(zip(("x1", "x2", "m1", "m2"), sequence.inverse(*halves), strict=True))
        after = sequence.sequence(before, dict.fromkeys(("video_mask", "audio_mask")))
    torch.testing.assert_close(list(after.values()), halves, rtol=0, atol=1e-12)


def test_an_inverse_through_dropout_is_refused():
    sequence, inputs = make_towers(dropout=0.5), make_inputs()
    halves = sequence.streams(**inputs)
    sides = {name: inputs[name] for name in inputs if name not in ("video", "audio")}
    with pytest.raises(ValueError, match=r"draws random numbers.* turn dropout off with \.eval"):
        sequence.inverse(*halves, **sides)


def test_several_targets_streams_that_pass_by_and_empty_sequences():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(DIM, 2 * DIM)

        def forward(self, c, *, scale):
            return tuple((self.linear(c) * scale).chunk(2, -1))

    sequence = ReversibleSequence(
        [
            [Coupling(("a", "b"), "c", Both(), {"scale": "gain"})],
            [],
            [Coupling("c", ("b", "a"), nn.Bilinear(DIM, DIM, DIM))],
        ]
    ).double()
    streams = {n: torch.randn(2, DIM, dtype=torch.float64, requires_grad=True) for n in "abcd"}
    gain = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    leaves = [*streams.values(), gain, *sequence.parameters()]
    results = []
    for reverse in (False, True):
        out = sequence(streams, {"gain": gain}, reverse=reverse)
        assert torch.equal(out["d"], streams["d"])
        results.append(torch.autograd.grad(loss_of(out.values()), leaves))
    torch.testing.assert_close(*results, rtol=EXACT, atol=EXACT)
    with torch.no_grad():
        back = sequence.inverse(out, {"gain": gain})
    torch.testing.assert_close(back, {n: s.detach() for n, s in streams.items()})
    assert torch.equal(ReversibleSequence([])(streams)["a"], streams["a"])


def test_streams_without_tokens():
    sequence, inputs = make_towers(), make_inputs(masks=False, audio=0)
    wanted = gradients(sequence, inputs, reverse=False)
    found = gradients(sequence, inputs, reverse=True)
    assert (
        worst(
            {**found, "audio": 0 * found["video"], "audio out": found["video"]},
            {**wanted, "audio": 0 * wanted["video"], "audio out": wanted["video"]},
        )
        < EXACT
    )


# Memory


def step_bytes(depth, reverse, exact=False):
    sequence = make_towers(TYPES * depth, exact=exact, dtype=torch.float32)
    inputs = make_inputs(torch.float32, masks=False, video=32, audio=16)
    for tensor in (*inputs.values(), *sequence.parameters()):
        tensor.grad = torch.zeros_like(tensor)
    return peak_bytes(lambda: loss_of(sequence(**inputs, reverse=reverse)).backward())


@pytest.mark.parametrize("exact", [False, True])
def test_memory_does_not_grow_with_depth(exact):
    ordinary = step_bytes(12, False, exact) - step_bytes(4, False, exact)
    ours = step_bytes(12, True, exact) - step_bytes(4, True, exact)
    assert ordinary > 1_000_000
    assert ours <= 0.01 * ordinary


@pytest.mark.parametrize("frozen", [True, False])
def test_where_nothing_is_learned_nothing_more_is_kept_than_without(frozen):
    sequence = make_towers().requires_grad_(not frozen)
    inputs = make_inputs(grad=False, masks=False, video=32)
    with torch.set_grad_enabled(frozen):
        counts = [peak_bytes(lambda r=r: sequence(**inputs, reverse=r)) for r in (True, False)]
    assert counts[0] == counts[1]


def test_the_tape_is_empty_after_the_first_block_that_learns():
    sequence = make_towers(TYPES * 2)
    sequence.sequence.blocks[:2].requires_grad_(False)
    halves = sequence.streams(**make_inputs(grad=False))
    tape = halves[0].grad_fn.call.tape
    loss_of(halves).backward()
    assert tape._left is None


@pytest.mark.parametrize("backward", [True, False])
def test_nothing_stays_alive_without_help_from_the_garbage_collector(backward):
    sequence, inputs = make_towers(), make_inputs()
    gc.collect()
    gc.disable()
    try:
        kept = []
        for block in sequence.sequence.blocks:
            block[0].register_forward_hook(
                lambda _, __, out: kept.append(weakref.ref(out["x1"].untyped_storage()))
            )
        outputs = sequence.streams(**inputs)
        kept.append(weakref.ref(outputs[0].grad_fn.call))
        assert kept[-1]() is not None
        tape = kept[-1]().tape
        if backward:
            loss_of(outputs).backward()
            assert tape._left is None
        del outputs
        assert [alive() for alive in kept] == [None] * len(kept)
    finally:
        gc.enable()


# In processes of their own: compilers cannot trace the shape checks of the tests


def run_script(name, *arguments):
    script = str(Path(__file__).with_name(name))
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_compiled_callables():
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        assert not os.environ.get("CI"), "no C++ compiler"
        pytest.skip("no C++ compiler")
    run_script("reversible_compiled.py")


@pytest.mark.parametrize("mode", ["default", "static_graph", "find_unused_parameters"])
def test_data_parallel_on_two_processes(mode):
    run_script("reversible_ddp.py", mode)

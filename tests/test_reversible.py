"""Reversible sequences: gradients are those of ordinary autograd, however they are asked for."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from towers import (
    DIM,
    EXACT,
    TYPES,
    Attend,
    Feed,
    gradients,
    loss_of,
    make_blocks,
    make_inputs,
    make_towers,
    pair_of,
    worst,
)

from avlib import DualModalityReversibleSequence
from avlib.memory import peak_bytes


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

"""What must hold on every device. Where there is no GPU, its half of these tests is skipped."""

import warnings
from contextlib import contextmanager, suppress
from functools import partial

import batches
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from towers import TYPES, gradients, loss_of, make_inputs, make_towers, worst

from avlib import Objective, ReversibleSequence, SpecAugment, World, train
from avlib.memory import KINDS, make_step, measure
from avlib.recompute import random_state

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
)
HEADS = ("audio", "video", "fusion", "global")
AUTOCAST = pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16 autocast"])


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    return torch.device(request.param)


@pytest.fixture(params=[False, True], ids=["stored", "reversible"])
def zorro(request, device, make_zorro):
    """Makes ordinary models on this device, then reversible ones."""
    return lambda *args, **changes: make_zorro(*args, reversible=request.param, **changes).to(
        device
    )


def clips(device, **sizes):
    """Drawn on the CPU, so that every device gets the same."""
    return {name: tensor.to(device) for name, tensor in batches.clips(**sizes).items()}


def tower_inputs(device, *args, **changes):
    return {
        name: tensor.detach().to(device).requires_grad_(tensor.requires_grad)
        for name, tensor in make_inputs(*args, **changes).items()
    }


def in_autocast(device, enabled=True, **settings):
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, **settings)


# Isolation


@AUTOCAST
@pytest.mark.parametrize("modality", ["audio", "video"])
def test_pure_readouts_ignore_every_bit_of_the_other_modality(zorro, device, modality, autocast):
    model, inputs = zorro(3), clips(device)
    index, other = HEADS.index(modality), {"audio": "video", "video": "audio"}[modality]
    given = inputs[other]
    with torch.no_grad(), in_autocast(device, autocast):
        before = model(**inputs)
        assert before.isfinite().all()
        for changed in (
            torch.rand_like(given),
            torch.zeros_like(given),
            1e30 * given,
            torch.full_like(given, torch.nan),
            torch.full_like(given, torch.inf),
            clips(device, samples=2500, frames=6, height=12, width=12)[other],
        ):
            after = model(**{**inputs, other: changed})
            assert torch.equal(after[:, index], before[:, index])
            for reads_both in (2, 3):
                assert not torch.equal(after[:, reads_both], before[:, reads_both])
        alone = model(**{modality: inputs[modality]}, return_token_indices=(index,))
    assert torch.equal(alone[:, 0], before[:, index])


def test_streams_fused_late_give_the_joint_pass(zorro, device):
    model = zorro(3).double()
    inputs = {name: tensor.double() for name, tensor in clips(device).items()}
    audio, video = (model.encode(**{name: clip}) for name, clip in inputs.items())
    joint = model(**inputs)
    torch.testing.assert_close(model.fuse(audio, video), joint, rtol=0, atol=1e-9)
    pairs = model.fuse_pairs(audio, video, pairs_at_once=2, progress=False)
    torch.testing.assert_close(pairs[[0, 1], [0, 1]], joint, rtol=0, atol=1e-9)


@AUTOCAST
@pytest.mark.parametrize("train", [False, True])
def test_no_gradient_crosses_into_a_pure_readout(zorro, device, autocast, train):
    model = zorro(3, dropout=0.2, spec_augment=SpecAugment()).train(train)
    inputs = {name: tensor.requires_grad_() for name, tensor in clips(device).items()}
    for index, modality in enumerate(inputs):
        with in_autocast(device, autocast):
            out = model(**inputs)[:, index]
        grads = torch.autograd.grad((out * torch.randn_like(out)).sum(), tuple(inputs.values()))
        for name, grad in zip(inputs, grads, strict=True):
            assert grad.isfinite().all()
            assert bool(grad.any()) == (name == modality)


# Gradients


@pytest.mark.parametrize("masks", [False, True])
def test_reversible_gradients_are_those_of_autograd(device, masks):
    sequence, inputs = make_towers(TYPES * 2).to(device), tower_inputs(device, masks=masks)
    wanted = gradients(sequence, inputs, reverse=False)
    found = gradients(sequence, inputs, reverse=True)
    assert {"video", "audio", "context"} <= found.keys()
    assert all(tensor.device.type == device.type for tensor in found.values())
    assert worst(found, wanted) < 1e-12


def zorro_gradients(model, inputs):
    """Of all inputs and parameters; the random numbers are the same in each call."""
    leaves = {**inputs, **dict(model.named_parameters())}
    torch.manual_seed(3)
    grads = torch.autograd.grad(loss_of([model(**inputs)]), leaves.values())
    return dict(zip(leaves, grads, strict=True))


# In float64 attention is computed in steps; in float32 a GPU does it in one, with its own dropout.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_reversible_zorro_has_the_gradients_of_its_stored_peer(
    device, make_zorro, monkeypatch, dtype, limit, dropout
):
    model = make_zorro(3, reversible=True, dropout=dropout).train().to(device, dtype)
    inputs = {name: tensor.to(dtype).requires_grad_() for name, tensor in clips(device).items()}
    found = zorro_gradients(model, inputs)
    monkeypatch.setattr(
        "avlib.zorro.ReversibleSequence",
        lambda blocks: partial(ReversibleSequence(blocks), reverse=False),
    )
    assert worst(found, zorro_gradients(model, inputs)) < limit


# Random numbers


@pytest.mark.parametrize("train", [True, False])
def test_random_numbers_are_replayed_and_the_generator_is_left_as_by_autograd(device, train):
    sequence = make_towers(TYPES * 2, dropout=0.3).to(device).train(train)
    inputs, results = tower_inputs(device), {}
    for reverse in (False, True):
        torch.manual_seed(3)
        sequence.zero_grad()
        (start,) = random_state([device]).values()
        one = loss_of(sequence(**inputs, reverse=reverse))
        other = loss_of(sequence(**inputs, reverse=reverse))
        (state,) = random_state([device]).values()
        torch.rand(7, device=device)  # whatever is drawn in between changes nothing
        (between,) = random_state([device]).values()
        one.backward()
        other.backward()
        (end,) = random_state([device]).values()
        assert torch.equal(end, between)
        assert torch.equal(state, start) != train
        assert torch.equal(one, other) != train
        grads = {name: weight.grad for name, weight in sequence.named_parameters()}
        results[reverse] = {**grads, "state": state.double()}
    assert torch.equal(results[True].pop("state"), results[False].pop("state"))
    assert worst(results[True], results[False]) < 1e-12


def test_dropout_within_attention_is_replayed_bit_for_bit(device, make_zorro):
    model = make_zorro(4, dropout=0.3).train().to(device)
    names = ("audio", "video", "fusion")
    sequence = ReversibleSequence(
        [
            layer.couplings(visibility)
            for layer, visibility in zip(model.layers, model.trunk, strict=True)
        ],
        exact=True,
    )
    halves = {
        f"{name} {half}": torch.randn(2, 6, 24).to(device).requires_grad_()
        for name in names
        for half in (1, 2)
    }
    leaves, results = (*halves.values(), *sequence.parameters()), []
    for reverse in (False, True):
        torch.manual_seed(3)
        with in_autocast(device, cache_enabled=False):
            out = sequence(halves, reverse=reverse)
        results.append((*out.values(), *torch.autograd.grad(loss_of(out.values()), leaves)))
        sequence.check()  # what was computed again was the same
    for wanted, found in zip(*results, strict=True):
        # The backward pass of fused attention adds in an order of its own on a GPU.
        assert (found - wanted).norm() <= (1e-2 if device.type == "cuda" else 1e-6) * wanted.norm()
    for wanted, found in zip(*(result[:6] for result in results), strict=True):
        assert torch.equal(found, wanted)


# Exact mode


@AUTOCAST
def test_24_exact_blocks_give_their_snapped_inputs_back_bit_for_bit(device, autocast):
    inputs = tower_inputs(device, torch.float32, grad=False)
    sides = {name: inputs[name] for name in inputs if name not in ("video", "audio")}
    wanted = [(inputs[n] * 4096).round() / 4096 for n in ("video", "video", "audio", "audio")]
    backs = {}
    for exact in (True, False):
        sequence = make_towers(TYPES * 8, exact=exact, gain=3.0, dtype=torch.float32).to(device)
        with torch.no_grad(), in_autocast(device, autocast):
            halves = sequence.streams(**inputs)
            backs[exact] = sequence.inverse(*halves, **sides)
        assert not torch.equal(halves[0], wanted[0])
    for back, given in zip(backs[True], wanted, strict=True):
        assert torch.equal(back.view(torch.int32), given.view(torch.int32))
    assert not torch.equal(backs[False][0], inputs["video"])


@AUTOCAST
def test_exact_gradients_are_those_of_autograd_through_the_same_rounding(device, autocast):
    sequence = make_towers(TYPES * 8, exact=True, gain=3.0, dtype=torch.float32).to(device)
    inputs, results = tower_inputs(device, torch.float32), {}
    for reverse in (False, True):
        # With its cache, autocast adds the context's gradients of several blocks in bfloat16.
        with in_autocast(device, autocast, cache_enabled=False):
            results[reverse] = gradients(sequence, inputs, reverse=reverse)
    sequence.check()
    for name, wanted in results[False].items():
        assert (results[True][name] - wanted).norm() <= 1e-6 * wanted.norm()
        assert torch.equal(results[True][name], wanted) or "out" not in name


# Memory


def test_measured_parameters_gradients_state_and_inputs_are_those_counted_by_hand(zorro, device):
    model, inputs = zorro(2), clips(device)
    # Adam would keep its counts of steps on the CPU, and so count otherwise on a GPU.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    use = measure(
        make_step(model, inputs, optimizer=optimizer), model=model, optimizer=optimizer, warmups=2
    )
    weights, buffers, given = (
        sum(tensor.untyped_storage().nbytes() for tensor in tensors)
        for tensors in (model.parameters(), model.buffers(), inputs.values())
    )
    after = {kind: int(use.timeline[kind][-1]) for kind in KINDS}
    assert after["parameters"] == weights + buffers
    assert after["gradients"] == after["optimizer"] == weights
    assert after["inputs"] == given
    assert use.timeline["activations"].any()
    if device.type == "cuda":
        assert use.allocator["reserved"] >= use.allocator["allocated"]
        assert use.allocator["allocated"] >= use.allocator["requested"] >= use.peak
    else:
        assert use.allocator is None


# The CPU runs ahead of the GPU, and waits where it asks for a number or copies its own memory.


class Waits(TorchDispatchMode):
    """Notes what would make the CPU wait, if the fake tensors were real ones on a GPU.

    An operation between CPU and GPU is a copy, or may hide one. A question about the numbers in a
    tensor is answered with no; one for their count, as in `nonzero`, fake tensors refuse.
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        try:
            out = func(*args, **kwargs)
        except DataDependentOutputException:
            self.found.append(str(func))
            return False
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if torch.is_tensor(leaf)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.found.append(str(func))
        return out


class FakeGpu:
    """Tensors with a device and no numbers: a forward pass on them needs no driver."""

    def __init__(self, device="cuda"):
        self.device = device
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def put(self, tensors):
        with self.mode:
            return {
                name: torch.empty_like(t, device=self.device).requires_grad_(t.requires_grad)
                for name, t in tensors.items()
            }

    @contextmanager
    def watched(self):
        with self.mode, Waits() as waits:
            yield waits.found


class RealGpu:
    def put(self, tensors):
        return {
            name: t.detach().to("cuda").requires_grad_(t.requires_grad)
            for name, t in tensors.items()
        }

    @contextmanager
    def watched(self):
        found = []
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found += [
            f"{warning.filename}:{warning.lineno}"
            for warning in told
            if "called a synchronizing" in str(warning.message)
        ]


@pytest.fixture
def no_generators(monkeypatch):
    """Asking a GPU's generator for its state needs a driver, and waits for nothing."""
    monkeypatch.setattr("avlib.recompute.random_state", lambda devices: {})


@pytest.fixture(params=["fake", CUDA])
def gpu(request):
    if request.param == "cuda":
        return RealGpu()
    request.getfixturevalue("no_generators")
    return FakeGpu()


@pytest.fixture(params=["zorro", "reversible zorro", "towers", "exact towers"])
def model_and_inputs(request, make_zorro):
    """Models that train, with all that they may hold."""
    if "zorro" in request.param:
        reversible = "reversible" in request.param
        changes = {"spec_augment": SpecAugment(), "num_classes": 5, "dropout": 0.2}
        return make_zorro(reversible=reversible, **changes).train(), clips("cpu")
    exact = "exact" in request.param
    towers = make_towers(TYPES, dropout=0.2, exact=exact, dtype=torch.float32)
    return towers, make_inputs(torch.float32)


def second_run(gpu, model, inputs, then=tree_leaves):
    """What it gave and where it waited. Tables, plans and tests of kernels belong to the first."""
    weights = gpu.put({**dict(model.named_parameters()), **dict(model.named_buffers())})
    inputs = gpu.put(inputs)
    for _ in range(2):
        with gpu.watched() as waits:
            found = then(functional_call(model, weights, (), inputs))
    return found, waits


def test_the_forward_pass_does_not_wait_for_the_gpu(model_and_inputs, gpu):
    outputs, waits = second_run(gpu, *model_and_inputs)
    assert not waits
    assert {tensor.device.type for tensor in outputs} == {"cuda"}


def test_the_backward_pass_asks_for_no_number(model_and_inputs, no_generators):
    _, waits = second_run(
        FakeGpu("cpu"),  # on "cuda" a backward pass needs a driver
        *model_and_inputs,
        then=lambda outputs: loss_of(tree_leaves(outputs)).backward(),
    )
    assert not waits


@pytest.mark.parametrize("model_and_inputs", ["zorro", "reversible zorro"], indirect=True)
def test_lengths_cost_a_look_at_each_and_no_more(model_and_inputs, gpu):
    model, inputs = model_and_inputs
    lengths = {"audio_lengths": torch.tensor([1300, 500]), "video_lengths": torch.tensor([2, 4])}
    _, waits = second_run(gpu, model, {**inputs, **lengths})
    # Is one below 0? Above the size? And for the video: is one no whole number of patches?
    assert len(waits) == 5


@pytest.mark.parametrize(
    "offence",
    [
        lambda tensor: tensor[0].item(),
        lambda tensor: bool(tensor.isnan().any()),
        lambda tensor: tensor[[0, 2]],
        lambda tensor: torch.tensor([1.0, 2.0], device=tensor.device),
        lambda tensor: tensor.cpu(),
        lambda tensor: torch.ones(3).to(tensor.device),
        lambda tensor: torch.equal(tensor, tensor + 1),
    ],
)
def test_waiting_is_noticed(gpu, offence):
    tensor = gpu.put({"": torch.ones(3)})[""]
    # The fake GPU cannot use an index that it has copied: that needs a driver.
    with gpu.watched() as waits, suppress(RuntimeError):
        offence(tensor)
    assert waits


# Training


class Interrupted(World):
    """A world in which somebody presses Ctrl-C while the sixth batch is made."""

    batches = 0

    def __getitems__(self, clips):
        self.batches += 1
        if self.batches == 6:
            raise KeyboardInterrupt
        return super().__getitems__(clips)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_training_ends_as_if_it_had_not_been(zorro, device, tmp_path, precision):
    objective = Objective({"tone": 2, "flash": 4}, [("audio", "video")], features=4)

    def trained(data, checkpoint=None):
        model = zorro(1, num_classes=objective.num_outputs, dropout=0.1)
        with suppress(KeyboardInterrupt):
            train(
                model,
                data,
                objective,
                steps=8,
                batch_size=4,
                modality_dropout=0.3,
                precision=precision,
                checkpoint=checkpoint,
                checkpoint_every=2,
                progress=False,
            )
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    file = tmp_path / "run.safetensors"
    whole, stopped = trained(World(20)), trained(Interrupted(20), file)
    assert not torch.equal(stopped, whole)
    ended = trained(World(20), file)
    # The backward pass of a GPU may add in another order each time.
    torch.testing.assert_close(ended, whole, rtol=0, atol=0 if device.type == "cpu" else 1e-3)

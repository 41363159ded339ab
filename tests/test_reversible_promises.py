"""Reversible sequences: the inverse, flat memory, nothing left behind, compiled and in parallel."""

import gc
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from towers import (
    DIM,
    EXACT,
    TYPES,
    gradients,
    loss_of,
    make_inputs,
    make_towers,
    worst,
)

from avlib import Coupling, ReversibleSequence
from avlib.memory import peak_bytes


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

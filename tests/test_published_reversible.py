"""Parity with `nuwa-pytorch` 0.7.8's DualModalityReversibleSequence: the same callables."""

import pytest
import torch
from nuwa_pytorch.reversible_video_audio import DualModalityReversibleSequence as Published
from towers import TYPES, gradients, make_blocks, make_inputs, worst

from avlib import DualModalityReversibleSequence


def both(types):
    torch.manual_seed(0)
    blocks = make_blocks(types)
    theirs = Published(blocks, types).double()
    return DualModalityReversibleSequence(blocks, types).double(), theirs, blocks


def of_the_callables(found, sequence, blocks):
    """Gradients by place in the blocks: the two packages name their parameters differently."""
    names = {id(weight): name for name, weight in sequence.named_parameters()}
    named = {name: found[name] for name in found if "." not in name}
    for index, block in enumerate(blocks):
        for letter, fn in zip("fgjk", block, strict=True):
            for name, weight in fn.named_parameters():
                named[index, letter, name] = found[names[id(weight)]]
    return named


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("types", [TYPES, TYPES[::-1] * 2], ids=len)
def test_outputs_and_gradients_are_those_of_the_published_sequence(types, reverse, masks):
    ours, theirs, blocks = both(types)
    inputs = make_inputs(masks=masks)
    found = of_the_callables(gradients(ours, inputs, reverse=reverse), ours, blocks)
    wanted = of_the_callables(gradients(theirs, inputs, reverse=reverse), theirs, blocks)
    assert worst(found, wanted) < 1e-12
    assert len(wanted) == 5 + sum(len(list(fn.parameters())) for block in blocks for fn in block)


def test_the_masks_of_the_parity_test_hide_something():
    ours, _, _ = both(TYPES)
    inputs = make_inputs()
    video, audio = ours(**inputs)
    for name in ("video_mask", "audio_mask", "context_mask"):
        assert not inputs[name].all()
        without = ours(**{**inputs, name: None})
        assert not torch.allclose(without[0], video) or not torch.allclose(without[1], audio)


def test_the_published_sequence_loses_what_ours_keeps():
    ours, theirs, blocks = both(TYPES)
    inputs = make_inputs(grad=False)
    assert all(weight.grad is None for weight in theirs.parameters())
    video, _ = theirs(**inputs)
    assert not video.requires_grad  # inputs without gradient: no parameter learns
    assert ours(**inputs)[0].requires_grad
    assert len(blocks) == 3

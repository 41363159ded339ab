"""Small towers for the tests of reversible sequences, with the published keyword signature."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from avlib import Coupling, DualModalityReversibleSequence, ReversibleSequence

EXACT = 1e-12
TYPES = (
    "intra_modality_self_attn",
    "intra_modality_cross_attn",
    "inter_modality_cross_attn",
)
DIM = 8


class Attend(nn.Module):
    """Pre-norm attention to itself, or to a context; both masks hide for real."""

    def __init__(self, dim=DIM, dropout=0.0, gain=1.0):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.to_q, self.to_kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.to_out, self.dropout, self.gain = nn.Linear(dim, dim), nn.Dropout(dropout), gain

    def forward(self, x, context=None, *, context_mask=None, mask=None):
        x = self.norm(x)
        hidden = mask if context is None else context_mask
        hidden = None if hidden is None else hidden[:, None]
        key, value = self.to_kv(x if context is None else context).chunk(2, -1)
        read = F.scaled_dot_product_attention(self.to_q(x), key, value, hidden)
        read = self.gain * self.dropout(self.to_out(read))
        return read if mask is None else read * mask[..., None]


class Feed(nn.Sequential):
    """Pre-norm feed-forward."""

    def __init__(self, dim=DIM, dropout=0.0):
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, 12),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(12, dim),
        )


def make_blocks(types, dropout=0.0, gain=1.0):
    """Four callables for each type."""
    return [
        tuple(
            part
            for _ in range(2)
            for part in (Attend(dropout=dropout, gain=gain), Feed(dropout=dropout))
        )
        for _ in types
    ]


def make_towers(types=TYPES, *, dropout=0.0, gain=1.0, exact=False, dtype=torch.float64):
    """A seeded sequence of toy blocks."""
    torch.manual_seed(0)
    blocks = make_blocks(types, dropout, gain)
    return DualModalityReversibleSequence(blocks, types, exact=exact).to(dtype)


def make_inputs(dtype=torch.float64, *, grad=True, masks=True, batch=2, video=5, audio=3, text=4):
    """Video, audio and context of different lengths, and masks with real False entries."""
    generator = torch.Generator().manual_seed(1)
    inputs = {
        name: torch.randn(batch, count, DIM, generator=generator, dtype=torch.float64).to(dtype)
        for name, count in (("video", video), ("audio", audio), ("context", text))
    }
    inputs = {name: tensor.requires_grad_(grad) for name, tensor in inputs.items()}
    if masks:
        for name, count in (("video", video), ("audio", audio), ("context", text)):
            mask = torch.ones(batch, count, dtype=torch.bool)
            mask[0, -1] = mask[-1, 1] = False
            inputs[f"{name}_mask"] = mask
    return inputs


def loss_of(outputs):
    """A scalar that weighs every entry of every output differently."""
    weights = [torch.linspace(-1, 1, o.numel(), dtype=o.dtype, device=o.device) for o in outputs]
    return sum(
        (out.flatten() * weight).sum() + out.square().mean()
        for out, weight in zip(outputs, weights, strict=True)
    )


def gradients(sequence, inputs, *, reverse, backward=torch.autograd.backward):
    """Outputs, and the gradients of all inputs and parameters that have one, by name."""
    named = {
        **{name: t for name, t in inputs.items() if t.requires_grad and t.is_leaf},
        **dict(sequence.named_parameters()),
    }
    for tensor in named.values():
        tensor.grad = None
    outputs = sequence(**inputs, reverse=reverse)
    backward(loss_of(outputs))
    found = {name: tensor.grad for name, tensor in named.items() if tensor.grad is not None}
    return {**found, "video out": outputs[0].detach(), "audio out": outputs[1].detach()}


def worst(found, wanted):
    """The largest relative difference over all tensors, which must have the same names."""
    assert found.keys() == wanted.keys()
    return max(
        ((found[name] - wanted[name]).abs().max() / wanted[name].abs().max().clamp(min=1e-9)).item()
        for name in wanted
    )


def pair_of(first, second):
    """One block over the streams a and b."""
    return ReversibleSequence([[Coupling("a", "b", first), Coupling("b", "a", second)]])


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

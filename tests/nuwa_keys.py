"""Which tokens the attention layers of `nuwa-pytorch` read, asked by their gradients alone."""

import torch
from nuwa_pytorch.nuwa_pytorch import Sparse3DNA, SparseCausal2DNA


def moved_by(layer, count):
    """Which of so many tokens move each output but the first, which everybody reads, left out."""
    tokens = torch.randn(1, 1 + count, 4)
    moved = torch.autograd.functional.jacobian(lambda x: layer(x)[0, 1:].sum(-1), tokens)
    return moved[:, 0, 1:].abs().amax(-1) > 0


def keys_of_nuwa(frames, side, kernel, dilation, *, causal):
    """The keys of a layer over film, and what its own mask hides."""
    torch.manual_seed(0)
    kernel, dilation = tuple(kernel), tuple(dilation)
    layer = Sparse3DNA(
        4, (frames, side, side), kernel, dilation, heads=1, dim_head=4, causal=causal
    )
    return moved_by(layer, frames * side * side), layer.mask[:, 1:]


def keys_of_nuwa_sound(steps, height, kernel, dilation):
    """The keys of a layer over sound, of so many codes a step; its windows go along time."""
    torch.manual_seed(0)
    layer = SparseCausal2DNA(
        dim=4, height=height, heads=1, dim_head=4, kernel_size=kernel, dilation=dilation
    )
    return moved_by(layer, steps * height)

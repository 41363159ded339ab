"""Batches of clips for small models: waveforms and films, drawn anew at each call."""

import torch


def clips(samples=1300, frames=4, height=8, width=8, batch=2):
    return {
        "audio": torch.randn(batch, samples),
        "video": torch.rand(batch, 3, frames, height, width),
    }

"""What training will need, asked before anything is allocated: notebook 04's planner.

It also holds what `benchmarks/memory.py` measured, and the three ways that both set side by side.
"""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from avlib import plots
from avlib.predict import ByDepth, predict_by_depth
from avlib.widgets import PictureSliders
from avlib.zorro import Zorro

WAYS: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "checkpointed": {"checkpoint": True},
    "reversible": {"reversible": True},
}


def zorro(depth: int, way: str, *, width: int = 768) -> Zorro:
    """A Zorro with the paper's patches: one of `WAYS` to keep, or not to keep, activations."""
    return Zorro(
        dim=width,
        depth=depth,
        heads=width // 64,
        num_fusion_tokens=8,
        video_temporal_patch_size=1,
        **WAYS[way],
    )


def clips(batch: int, *, frames: int = 8) -> dict[str, Tensor]:
    """Clips without numbers, for predictions: at 8 frames the paper's 320 + 1568 tokens."""
    return {
        "audio": torch.empty(batch, 12_800 * frames, device="meta"),
        "video": torch.empty(batch, 3, frames, 224, 224, device="meta"),
    }


# The planner

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "AdamW": torch.optim.AdamW,
    "AdamW, fused": partial(torch.optim.AdamW, fused=True),
}


@cache
def forecast(
    way: str, width: int, batch: int, frames: int, precision: str, optimizer: str
) -> ByDepth:
    """What training a `zorro` on a GPU will need, at any depth from 4 up."""
    return predict_by_depth(
        lambda depth: zorro(depth, way, width=width),
        clips(batch, frames=frames),
        device="cuda",
        autocast=PRECISIONS[precision],
        optimizer=OPTIMIZERS[optimizer],
    )


def planner() -> PictureSliders:
    """Sliders for all that decides what a training step needs."""
    controls: dict[str, list[Any]] = {
        "layers": [4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256],
        "width": [256, 384, 512, 768, 1024, 1536, 2048],
        "clips": [1, 2, 4, 8, 16, 32, 64],
        "frames": [2, 4, 8],
        "precision": list(PRECISIONS),
        "optimizer": list(OPTIMIZERS),
    }
    start = {"layers": 24, "width": 768, "clips": 8, "frames": 8, "optimizer": "AdamW, fused"}
    return PictureSliders(controls, plan, start)


def plan(
    depth: int, width: int, batch: int, frames: int, precision: str, optimizer: str
) -> tuple[Figure, str]:
    """A budget picture; for each way the bytes and the smallest card on which the step fits."""
    settings = (width, batch, frames, precision, optimizer)
    uses = {way: forecast(way, *settings).at(depth) for way in WAYS}
    fits = {
        way: next((f"{card} GB" for card in plots.CARDS if use.peak <= card * plots.GB), "no card")
        for way, use in uses.items()
    }
    weights = uses["ordinary"].at_peak["parameters"] / 4e6
    # Two settings may need the same: the name says that the slider did move.
    sentence = f"{weights:.0f} million weights, {optimizer}. At the peak: " + ", ".join(
        f"{way} {use.peak / plots.GB:.2f} GB (fits {fits[way]})" for way, use in uses.items()
    )
    title = f"{depth} layers of width {width}, {batch} clips of {frames} frames, "
    figure, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
    plots.legend(plots.budget(uses, title=f"{title}{precision}, {optimizer}", ax=ax))
    return figure, sentence + "."


# What benchmarks/memory.py measured

MEASUREMENTS = Path(__file__).with_name("memory.json")


def measurements() -> dict[str, Any]:
    """Peaks and times over depth, as `benchmarks/memory.py` wrote them, with the machine's name."""
    return json.loads(MEASUREMENTS.read_text(encoding="utf-8"))


def curves_of(
    found: dict[str, Any], *, model: str, precision: str
) -> dict[str, dict[int, int | None]]:
    """Way → depth → bytes at the peak, None where memory ran out."""
    curves: dict[str, dict[int, int | None]] = {way: {} for way in WAYS}
    for row in found["by_depth"]:
        if (row["model"], row["precision"]) == (model, precision):
            curves[row["way"]][row["depth"]] = row["peak"]
    return curves

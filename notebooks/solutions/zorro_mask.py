"""Solutions to notebook 02. A teacher may delete this folder: nothing needs it but its tests."""

import torch

from avlib import Visibility


def mask_from_kinds(kinds):
    return torch.tensor([[i == j or i == "fusion" for j in kinds] for i in kinds])


def reach(reads, layers):
    itself = torch.eye(len(reads), dtype=torch.bool)
    held = itself
    for _ in range(layers):
        held = (reads | itself).float() @ held.float() > 0
    return held


def find_the_slips():
    # A: one row leaks, and fusion comes along. B: two rows leak. C: one row leaks, video alone.
    # D: fusion lost its video. E: fusion lost its video and itself.
    return {"A": 2, "B": 5, "C": 1, "D": 4, "E": 6}


def slow_bridge():
    return Visibility(
        {
            "audio": ["audio"],
            "one": ["one", "audio"],
            "two": ["two", "one"],
            "video": ["video", "two"],
        }
    )


def third_modality():
    return Visibility(
        {
            "audio": ["audio"],
            "video": ["video"],
            "touch": ["touch"],
            "sight and sound": ["audio", "video", "sight and sound"],
            "fusion": "all",
        }
    )

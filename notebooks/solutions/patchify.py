"""Solutions to notebook 01. A teacher may delete this folder: nothing needs it but its tests."""

import torch
from einops import rearrange


def cut_image(image, patch):
    return rearrange(image, "c (y p) (x q) -> (y x) (c p q)", p=patch, q=patch)


def place_of(index, grid):
    _, height, width = grid
    x = index % width
    y = index // width % height
    t = index // (width * height)
    return t, y, x


def sum_positions(rows, columns):
    return (rows[:, None] + columns[None]).flatten(0, 1)


def pattern_detective():
    # A: patches in place, each flipped inside. B: the frame small and repeated. C: patches swapped
    # across the diagonal. D: grey stripes. E: columns torn apart.
    return {"A": 4, "B": 2, "C": 3, "D": 5, "E": 6}


def tell_apart():
    # The first mark fails for the film with rows and columns exchanged (its light starts in the
    # same corner), the second for the mirrored film. Together they tell all four apart.
    positions = torch.zeros(4, 3, 3, 8)
    positions[0, 0, 0] = 1
    positions[1, 0, 1] = 1
    return positions.reshape(36, 8)

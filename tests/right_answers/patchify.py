"""Notebook 01, solved in other ways."""

import itertools
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat

from avlib import patchify_video


def cut_image__two_patterns(image, patch):
    rows = rearrange(image, "c (y p) w -> y c p w", p=patch)
    return rearrange(rows, "y c p (x q) -> (y x) (c p q)", q=patch)


def cut_image__reshape(image, patch):
    c, h, w = image.shape
    split = image.reshape(c, h // patch, patch, w // patch, patch)
    return split.permute(1, 3, 0, 2, 4).reshape(-1, c * patch * patch)


def cut_image__tensor_unfold(image, patch):
    return (
        image.unfold(1, patch, patch)
        .unfold(2, patch, patch)
        .permute(1, 2, 0, 3, 4)
        .flatten(2)
        .flatten(0, 1)
    )


def cut_image__unfold_in_floats(image, patch):
    return F.unfold(image[None].float(), patch, stride=patch)[0].T


def cut_image__loops(image, patch):
    _, height, width = image.shape
    found = []
    for y in range(0, height, patch):
        for x in range(0, width, patch):
            found.append(image[:, y : y + patch, x : x + patch].flatten())
    return torch.stack(found)


def cut_image__filled_in(image, patch):
    c, h, w = image.shape
    result = torch.zeros((h // patch) * (w // patch), c * patch**2)
    for n in range(len(result)):
        y, x = patch * (n // (w // patch)), patch * (n % (w // patch))
        result[n] = image[:, y : y + patch, x : x + patch].reshape(-1)
    return result


def cut_image__split(image, patch):
    rows = [row.split(patch, dim=2) for row in image.split(patch, dim=1)]
    return torch.stack([piece.reshape(-1) for row in rows for piece in row])


def cut_image__numpy(image, patch):
    return rearrange(image.numpy(), "c (y p) (x q) -> (y x) (c p q)", p=patch, q=patch)


def cut_image__as_a_film(image, patch):
    return patchify_video(image[None, :, None], (1, patch, patch)).flatten(0, -2)


def place_of__divmod(index, grid):
    rows, x = divmod(index, grid[2])
    t, y = divmod(rows, grid[1])
    return t, y, x


def place_of__taking_away(index, grid):
    t = y = 0
    while index >= grid[1] * grid[2]:
        index -= grid[1] * grid[2]
        t += 1
    while index >= grid[2]:
        index -= grid[2]
        y += 1
    return [t, y, index]


def place_of__numpy(index, grid):
    return np.unravel_index(index, grid)


def place_of__torch(index, grid):
    return torch.unravel_index(torch.tensor(index), grid)


def place_of__search(index, grid):
    numbers = torch.arange(grid[0] * grid[1] * grid[2]).reshape(grid)
    return (numbers == index).nonzero()[0]


def place_of__all_places(index, grid):
    return list(itertools.product(*map(range, grid)))[index]


def place_of__recursion(index, grid):
    if len(grid) == 1:
        return (index,)
    return (*place_of__recursion(index // grid[-1], grid[:-1]), index % grid[-1])


def sum_positions__loops(rows, columns):
    result = torch.empty(len(rows) * len(columns), rows.shape[1])
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            result[y * len(columns) + x] = row + column
    return result


def sum_positions__repeated(rows, columns):
    return rows.repeat_interleave(len(columns), dim=0) + columns.repeat(len(rows), 1)


def sum_positions__einops(rows, columns):
    tall = repeat(rows, "y d -> (y x) d", x=len(columns))
    return tall + repeat(columns, "x d -> (y x) d", y=len(rows))


def sum_positions__by_number(rows, columns):
    token = torch.arange(len(rows) * len(columns))
    return rows[token // len(columns)] + columns[token % len(columns)]


def sum_positions__numpy_in_doubles(rows, columns):
    grid = np.add(rows.double().numpy()[:, None], columns.double().numpy())
    return grid.reshape(-1, rows.shape[1])


def sum_positions__one_hot(rows, columns):
    y, x = len(rows), len(columns)
    which = torch.cat([torch.kron(torch.eye(y), torch.ones(x, 1)), torch.eye(x).repeat(y, 1)], 1)
    return which @ torch.cat([rows, columns])


def pattern_detective__backwards():
    return dict(zip("EDCBA", (6, 5, 3, 2, 4), strict=True))


def pattern_detective__numpy():
    return dict(zip("ABCDE", np.array([4, 2, 3, 5, 6]), strict=True))


def pattern_detective__torch():
    return dict(zip("ABCDE", torch.tensor([4, 2, 3, 5, 6]), strict=True))


def pattern_detective__one_by_one():
    found = dict.fromkeys("ABCDE", 0)
    found["A"], found["B"], found["C"], found["D"], found["E"] = 4, 2, 3, 5, 6
    return MappingProxyType(found)


def tell_apart__later_marks():
    positions = torch.zeros(4, 3, 3, 8)
    for place in [(1, 0, 1), (2, 1, 1), (0, 0, 0)]:
        positions[place] = 1
    return rearrange(positions, "t y x d -> (t y x) d")


def tell_apart__whole_numbers():
    positions = torch.zeros(36, 8, dtype=torch.long)
    positions[[0, 9 + 1]] = 1
    return positions


def tell_apart__numpy():
    positions = np.zeros((4, 3, 3, 8))
    positions[0, 0, 0] = positions[1, 0, 1] = 1
    return positions.reshape(36, 8)


def tell_apart__random_vectors():
    two = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    marked = torch.zeros(36, dtype=torch.long)
    marked[0] = marked[10] = 1
    return two[marked]


def tell_apart__learnable():
    marks = torch.zeros(36, 1)
    marks[0] = marks[10] = 1
    return torch.nn.Parameter(marks.expand(36, 8).clone())

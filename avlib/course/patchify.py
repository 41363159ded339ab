"""Notebook 01: the exercises on patches, and the pictures that they need."""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import torch
from einops import rearrange
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from avlib.course.exercise import Exercise, Mistake, as_tensor, matching
from avlib.plots import COLOURS, HIDDEN, INK, bare

# 1. Cut a picture


def _cut_by_loops(image: Tensor, patch: int) -> Tensor:
    channels, height, width = image.shape
    rows = []
    for y in range(0, height, patch):
        for x in range(0, width, patch):
            inside = [
                (c, i, j) for c in range(channels) for i in range(patch) for j in range(patch)
            ]
            rows.append([image[c, y + i, x + j] for c, i, j in inside])
    return torch.tensor(rows, dtype=image.dtype)


def _cut(pattern: str) -> Callable[[Tensor, int], Tensor]:
    return lambda image, patch: rearrange(image, pattern, p=patch, q=patch)


def _cut_square(image: Tensor, patch: int) -> Tensor:
    side = image.shape[1] // patch
    split = image.reshape(len(image), side, patch, side, patch)
    return split.permute(1, 3, 0, 2, 4).reshape(side * side, -1)


cut_image = Exercise(
    chapter="patchify",
    name="cut_image",
    minutes=6,
    difficulty=1,
    hints=(
        "Take the pattern above and give it one more axis. Colour is not cut: where does it go "
        "in the result?",
        "All numbers of a patch stand in its row, one colour after the other: (c p q).",
    ),
    cases=[
        (torch.arange(48).reshape(3, 4, 4), 2),
        (torch.arange(48.0).reshape(2, 4, 6), 2),
        (torch.arange(162.0).reshape(3, 9, 6), 3),
    ],
    reference=_cut_by_loops,
    mistakes={
        "colour last": Mistake(
            _cut("c (y p) (x q) -> (y x) (p q c)"),
            "the patches are right, but inside them the colours are mixed pixel by pixel. "
            "First all of one colour: (c p q).",
        ),
        "colour outside": Mistake(
            _cut("c (y p) (x q) -> (c y x) (p q)"),
            "it makes patches of one colour each. A patch holds all its colours: "
            "c belongs inside, with p and q.",
        ),
        "strided": Mistake(
            _cut("c (p y) (q x) -> (y x) (c p q)"),
            "each patch holds pixels that lie far apart. In (y p) the first name counts "
            "patches and the second counts pixels inside; yours are the other way round.",
        ),
        "columns first": Mistake(
            _cut("c (y p) (x q) -> (x y) (c p q)"),
            "the patches are right, but they come column by column. "
            "Reading order is row by row: (y x), not (x y).",
        ),
        "flipped inside": Mistake(
            _cut("c (y p) (x q) -> (y x) (c q p)"),
            "the patches come in the right order, but inside each, rows and columns are "
            "exchanged. Inside a patch go row by row too: (p q), not (q p).",
        ),
        "plain reshape": Mistake(
            lambda image, patch: image.reshape(-1, len(image) * patch * patch),
            "a plain reshape cuts rows into strips. A patch takes a few pixels from each of "
            "several rows, so the axes must be split before they are joined.",
        ),
        "square pictures only": Mistake(
            _cut_square,
            "it counts columns by the height. A picture may be wider than it is high: take height "
            "and width each from the picture.",
        ),
        "not flat": Mistake(
            _cut("c (y p) (x q) -> (y x) c p q"),
            "the patches are right. Now join the axes inside each to one: (c p q).",
        ),
    },
)


def draw_cut_image() -> Figure:
    """A picture of two colours and what `cut_image` must make of it, the second patch in blue."""
    image = torch.arange(32).reshape(2, 4, 4)
    patches = _cut_by_loops(image, 2)
    figure, axes = plt.subplots(
        1, 4, figsize=(10, 2.6), width_ratios=[4, 4, 0.8, 8], layout="constrained"
    )
    marked = {int(number) for number in patches[1]}
    for colour, ax in enumerate(axes[:2]):
        _numbers(ax, image[colour], marked, (2, 2))
        ax.set_title(f"colour {colour}")
    axes[2].set_visible(False)
    _numbers(axes[3], patches, marked, (1, 4))
    axes[3].set_title("wanted: a patch in each row")
    axes[3].set_yticks(range(4), [f"patch {n}" for n in range(4)])
    axes[3].tick_params(length=0)
    return figure


def _numbers(ax: Axes, values: Tensor, marked: set[int], block: tuple[int, int]) -> None:
    """Whole numbers in cells, some in blue; wide gaps between blocks of this height and width."""
    height, width = values.shape
    for i, row in enumerate(values.tolist()):
        for j, number in enumerate(row):
            face, ink = (COLOURS["video"], "white") if number in marked else (HIDDEN, INK)
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fc=face, ec="white", lw=1))
            ax.text(j, i, str(number), ha="center", va="center", color=ink)
    for i in range(block[0], height, block[0]):
        ax.axhline(i - 0.5, color="white", lw=6)
    for j in range(block[1], width, block[1]):
        ax.axvline(j - 0.5, color="white", lw=6)
    bare(ax)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal")


# 2. The place of a token


def _place_by_counting(index: int, grid: tuple[int, int, int]) -> tuple[int, int, int]:
    count = 0
    for t in range(grid[0]):
        for y in range(grid[1]):
            for x in range(grid[2]):
                if count == index:
                    return t, y, x
                count += 1
    raise IndexError(index)


place_of = Exercise(
    chapter="patchify",
    name="place_of",
    minutes=6,
    difficulty=2,
    hints=(
        "x changes fastest: it goes back to 0 after grid[2] tokens. What does y do then?",
        "x = index % X. Then index // X counts whole rows: y is its remainder by Y, "
        "t its quotient.",
    ),
    cases=[(0, (2, 3, 4)), (5, (2, 3, 4)), (12, (2, 3, 4)), (23, (2, 3, 4)), (77, (4, 4, 8))],
    reference=_place_by_counting,
    mistakes={
        "time fastest": Mistake(
            lambda n, grid: (n % grid[0], n // grid[0] % grid[1], n // (grid[0] * grid[1])),
            "it lets time run fastest. In (t y x) the last name runs fastest.",
        ),
        "rows of height": Mistake(
            lambda n, grid: (n // (grid[1] * grid[2]), n // grid[1] % grid[1], n % grid[1]),
            "it divides by the number of rows where it needs the length of a row. "
            "A row holds grid[2] tokens.",
        ),
        "no wrap": Mistake(
            lambda n, grid: (n // (grid[1] * grid[2]), n // grid[2], n % grid[2]),
            "y keeps growing from frame to frame. It starts again at 0 in each time step: "
            "take a remainder.",
        ),
        "rows and columns exchanged": Mistake(
            lambda n, grid: (
                n // (grid[1] * grid[2]),
                n % grid[2],
                n // grid[2] % grid[1],
            ),
            "y and x are exchanged. x runs fastest, and it comes last: (t, y, x).",
        ),
        "from one": Mistake(
            lambda n, grid: tuple(i + 1 for i in _place_by_counting(n, grid)),
            "it counts from 1. The first place is (0, 0, 0).",
        ),
        "x y t": Mistake(
            lambda n, grid: _place_by_counting(n, grid)[::-1],
            "the three numbers are right, but they come as (x, y, t). Return (t, y, x).",
        ),
    },
)


# 3. Factorised positions


def _sum_by_loops(rows: Tensor, columns: Tensor) -> Tensor:
    return torch.stack([row + column for row in rows for column in columns])


sum_positions = Exercise(
    chapter="patchify",
    name="sum_positions",
    minutes=6,
    difficulty=2,
    hints=(
        "Every pair (row, column) needs one vector. An axis of length 1 makes torch pair them up.",
        "rows[:, None] + columns[None] has shape (Y, X, d). Flatten its first two axes.",
    ),
    cases=[
        (torch.arange(6.0).reshape(3, 2), 10 * torch.arange(8.0).reshape(4, 2)),
        (torch.eye(3), 2 * torch.eye(3)),
    ],
    reference=_sum_by_loops,
    mistakes={
        "columns outside": Mistake(
            lambda rows, columns: (rows[None] + columns[:, None]).flatten(0, 1),
            "the sums are right, but columns change slowest. Tokens come row by row.",
        ),
        "plain sum": Mistake(
            lambda rows, columns: rows + columns,
            "rows and columns cannot be added as they are: there is not one row for each column. "
            "Give rows an axis of length 1 for the columns, and the other way round.",
        ),
        "both in step": Mistake(
            lambda rows, columns: rows.repeat(len(columns), 1) + columns.repeat(len(rows), 1),
            "rows and columns both change with every token, so some pairs never meet. "
            "Within a row of the grid the row stays the same.",
        ),
        "square grids only": Mistake(
            lambda rows, columns: (
                rows.repeat_interleave(len(rows), 0) + columns.repeat(len(columns), 1)
            ),
            "it works where there are as many rows as columns. How often does each row come, and "
            "how often all columns?",
        ),
        "side by side": Mistake(
            lambda rows, columns: torch.cat(
                [rows.repeat_interleave(len(columns), 0), columns.repeat(len(rows), 1)], 1
            ),
            "each row meets each column, but their vectors are put side by side. Add them.",
        ),
        "joined": Mistake(
            lambda rows, columns: torch.cat([rows, columns]),
            "it lists rows, then columns. Each token needs the sum of its row and its column.",
        ),
        "not flat": Mistake(
            lambda rows, columns: rows[:, None] + columns[None],
            "all sums are there, in a grid. Flatten rows and columns to one axis of tokens.",
        ),
    },
)


# Gem: pattern detective

PATTERNS = {
    1: "t (y x) (c py px) -> t c (y py) (x px)",
    2: "t (y x) (c py px) -> t c (py y) (px x)",
    3: "t (x y) (c py px) -> t c (y py) (x px)",
    4: "t (y x) (c px py) -> t c (y py) (x px)",
    5: "t (y x) (py px c) -> t c (y py) (x px)",
    6: "t (y x) (c py px) -> t c (y py) (px x)",
    7: "t (y x) (c py px) -> t c (py y) (x px)",
}
_SUSPECTS = {"A": 4, "B": 2, "C": 3, "D": 5, "E": 6}


def scramble(frame: Float[Tensor, "c y x"], patch: int = 16) -> dict[str, Float[Tensor, "c y x"]]:
    """The five frames of the case: cut rightly, put together by a wrong pattern each.

    Args:
        frame: a square picture, its side divisible by the patch.
        patch: side of a patch.
    """
    side = frame.shape[1] // patch
    patches = rearrange(frame[None], "t c (y py) (x px) -> t (y x) (c py px)", py=patch, px=patch)
    sizes = {"y": side, "x": side, "py": patch, "px": patch}
    return {
        letter: rearrange(patches, PATTERNS[number], **sizes)[0]
        for letter, number in _SUSPECTS.items()
    }


_CLUES = {
    1: "pattern 1 is the right one: it would give the picture itself.",
    2: "with 2 the whole frame would appear small and many times over, in both directions.",
    3: "with 3 whole patches change places across the diagonal, but each stays upright.",
    4: "with 4 every patch stays in its place and is flipped across its own diagonal.",
    5: "with 5 every patch turns to fine grey stripes: colours are taken for pixels.",
    6: "with 6 only the columns are torn apart; rows of patches stay where they are.",
    7: "with 7 only the rows are torn apart; columns of patches stay where they are.",
}

pattern_detective = Exercise(
    chapter="patchify",
    name="pattern_detective",
    minutes=10,
    difficulty=2,
    hints=(
        "Ask two questions of each picture. Are the patches in their places? "
        "Is each patch whole inside?",
        "Look for yourself: plots.picture(rearrange(tokens, patchify.PATTERNS[2], **sizes)[0]).",
    ),
    verify=matching(_SUSPECTS, _CLUES, "picture"),
    mistakes={
        "first is right": Mistake(
            lambda: {**_SUSPECTS, "A": 1}, "pattern 1 is the right one: it would give"
        ),
        "diagonals swapped": Mistake(
            lambda: {**_SUSPECTS, "A": 3, "C": 4},
            "with 3 whole patches change places across the diagonal",
        ),
        "rows for columns": Mistake(
            lambda: {**_SUSPECTS, "E": 7}, "with 7 only the rows are torn apart"
        ),
        "half of it seen": Mistake(
            lambda: {**_SUSPECTS, "B": 6}, "with 6 only the columns are torn apart"
        ),
        "one forgotten": Mistake(
            lambda: {"A": 4}, "wanted a dictionary with A, B, C, D, E as keys"
        ),
    },
)


# Gem: positions that tell two films apart

GRID, FEATURES = (4, 3, 3), 8


def films() -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs of films with the same tokens in another order; each token has 8 features.

    A film is a light that moves over a dark 3×3 grid for 4 frames and grows brighter.
    """
    path = [(0, 0), (0, 1), (1, 1), (2, 1)]
    film = torch.zeros(*GRID, FEATURES)
    for t, (y, x) in enumerate(path):
        film[t, y, x] = (t + 1) * torch.linspace(1, 2, FEATURES)
    return {
        "played backwards": (film, film.flip(0)),
        "upside down": (film, film.flip(1)),
        "mirrored left to right": (film, film.flip(2)),
        "with rows and columns exchanged": (film, film.transpose(1, 2)),
    }


def bag_reader(film: Tensor, positions: Tensor) -> Tensor:
    """A reader that sees a bag of tokens: each is looked at alone, then all are summed."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(FEATURES, 16, generator=generator, dtype=torch.float64)
    tokens = film.reshape(-1, FEATURES).double() + positions.double()
    return (tokens @ weights).sin().sum(0)


def _tell_apart(positions: Any) -> str | None:
    positions = as_tensor(positions)
    if not isinstance(positions, Tensor) or tuple(positions.shape) != (36, FEATURES):
        got = tuple(positions.shape) if isinstance(positions, Tensor) else type(positions).__name__
        return f"it returned {got}, wanted a tensor (36, {FEATURES}): one vector for each token."
    if not positions.isfinite().all():
        return "it holds NaN or inf; a position is made of ordinary numbers."
    different = len(positions.unique(dim=0))
    if different > 2:
        return f"it uses {different} different vectors. Two are enough: mark a few places only."
    for name, (one, two) in films().items():
        if torch.allclose(bag_reader(one, positions), bag_reader(two, positions)):
            return (
                f"the film and the same film {name} still look alike. Is there a marked place "
                "that the light meets in one of them only, or with another brightness?"
            )
    return None


def _marked(*places: tuple[int, int, int]) -> Tensor:
    positions = torch.zeros(*GRID, FEATURES)
    for place in places:
        positions[place] = 1
    return positions.reshape(36, FEATURES)


tell_apart = Exercise(
    chapter="patchify",
    name="tell_apart",
    minutes=12,
    difficulty=3,
    hints=(
        "Start with zeros and mark one place where the light passes. Which of the changed films "
        "also meets your mark, with the same brightness?",
        "One mark is never enough. Mark the first two places that the light visits.",
    ),
    verify=_tell_apart,
    mistakes={
        "one for all": Mistake(lambda: torch.ones(36, FEATURES), "played backwards still look"),
        "all different": Mistake(
            lambda: torch.arange(36.0)[:, None].repeat(1, FEATURES), "it uses 36 different vectors"
        ),
        "the corner": Mistake(
            lambda: _marked((0, 0, 0)), "with rows and columns exchanged still look alike"
        ),
        "the middle column": Mistake(
            lambda: _marked((1, 0, 1)), "mirrored left to right still look alike"
        ),
        "time only": Mistake(
            lambda: (torch.arange(36) < 18).float()[:, None].repeat(1, FEATURES),
            "upside down still look alike",
        ),
    },
)

"""Notebook 03: towers to run backwards, the exercises, and the puzzles."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from avlib.attention import Attention, FeedForward
from avlib.course.exercise import Exercise, Mistake, matching
from avlib.masks import Visibility
from avlib.plots.tables import table
from avlib.reversible import BLOCK_TYPES, DualModalityReversibleSequence
from avlib.tokens import patchify_video

_READS = Visibility({"tokens": ["keys"]}, keys=["keys"])


class Read(nn.Module):
    """Attention as the couplings call it: tokens read themselves, or a context."""

    def __init__(self, dim: int, gain: float) -> None:
        super().__init__()
        self.attention, self.gain = Attention(dim, heads=4, dim_head=dim // 4), gain

    def forward(
        self,
        tokens: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """What the tokens have read."""
        keys, real = (tokens, mask) if context is None else (context, context_mask)
        read = self.attention(
            {"tokens": tokens},
            _READS,
            kept={"keys": self.attention.keys_values(keys)},
            key_masks=None if real is None else {"keys": real},
        )
        return self.gain * read["tokens"]


class Think(FeedForward):
    """Feed-forward on each token alone."""

    def __init__(self, dim: int, gain: float, dropout: float) -> None:
        super().__init__(dim, dropout=dropout)
        self.gain = gain

    def forward(self, tokens: Tensor) -> Tensor:
        """What to add to the other half."""
        return self.gain * super().forward(tokens)


def towers(
    depth: int,
    dim: int,
    *,
    types: Iterable[str] = ("intra_modality_self_attn", "inter_modality_cross_attn"),
    gain: float = 1.0,
    dropout: float = 0.0,
    exact: bool = False,
) -> DualModalityReversibleSequence:
    """A video tower and an audio tower with seeded random weights.

    Args:
        depth: how many blocks, their types in turn.
        dim: features of a token.
        types: names of block types.
        gain: what the callables give is multiplied by this.
        dropout: in the feed-forwards.
        exact: as in `DualModalityReversibleSequence`.
    """
    types = list(types)
    names = [types[i % len(types)] for i in range(depth)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [
            [part for _ in range(2) for part in (Read(dim, gain), Think(dim, gain, dropout))]
            for _ in names
        ]
    return DualModalityReversibleSequence(blocks, names, exact=exact)


# 1. Undo a block


@dataclass(frozen=True)
class _Named:
    """A function with a name to print."""

    name: str
    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __repr__(self) -> str:
        return self.name


_SQUARE = _Named("square", lambda n: n * n)
_DOUBLE = _Named("double", lambda n: 2 * n)
_CLAMP = _Named("positive_part", lambda n: max(n, 0))


def _uncouple_by_trying(y1: int, y2: int, f: Any, g: Any) -> tuple[int, int]:
    for x1, x2 in product(range(-30, 31), repeat=2):
        first = x1 + f(x2)
        if (first, x2 + g(first)) == (y1, y2):
            return x1, x2
    raise ValueError("no whole numbers give this")


uncouple = Exercise(
    chapter="reversible",
    name="uncouple",
    minutes=6,
    difficulty=1,
    hints=(
        "Which of the two was added last? Can you compute again what was added there?",
        "x2 = y2 - g(y1). Now x2 is known: x1 = y1 - f(x2).",
    ),
    cases=[(14, 31, _SQUARE, _DOUBLE), (7, 52, _CLAMP, _SQUARE), (3, 7, _DOUBLE, _CLAMP)],
    reference=_uncouple_by_trying,
    mistakes={
        "first come, first go": Mistake(
            lambda y1, y2, f, g: (y1 - f(y2), y2 - g(y1 - f(y2))),
            "it takes f away first. But f read x2 before g was added to it. "
            "What came last goes first: undo g, then f.",
        ),
        "too new": Mistake(
            lambda y1, y2, f, g: (y1 - f(y2), y2 - g(y1)),
            "f is computed from y2. On the way forward it read x2: find x2 first, then use it.",
        ),
        "adds again": Mistake(
            lambda y1, y2, f, g: (y1 + f(y2 + g(y1)), y2 + g(y1)),
            "it adds once more. To undo, take away.",
        ),
        "g for f": Mistake(
            lambda y1, y2, f, g: (y1 - g(y2 - g(y1)), y2 - g(y1)),
            "x2 is right, but x1 is computed with g. What was added to it is f(x2).",
        ),
        "exchanged functions": Mistake(
            lambda y1, y2, f, g: (y1 - g(y2 - f(y1)), y2 - f(y1)),
            "f and g are exchanged: f was added to x1, g to x2.",
        ),
        "exchanged results": Mistake(
            lambda y1, y2, f, g: (y2 - g(y1), y1 - f(y2 - g(y1))),
            "right numbers, wrong order: return x1, then x2.",
        ),
        "forward": Mistake(
            lambda y1, y2, f, g: (y1 + f(y2), y2 + g(y1 + f(y2))),
            "this runs the block forward once more.",
        ),
    },
)


# 2. Backward through one coupling


def _backward_by_autograd(
    f: Any, weight: Tensor, y1: Tensor, x2: Tensor, dy1: Tensor, dy2: Tensor
) -> tuple[Tensor, ...]:
    x1 = torch.stack([one - two for one, two in zip(y1, f(x2, weight), strict=True)])
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x1, x2, weight)]
    outputs = (leaves[0] + f(leaves[1], leaves[2]), leaves[1] * 1)
    return x1.detach(), *torch.autograd.grad(outputs, leaves, (dy1, dy2))


def _backward(
    inverse: Callable[[Tensor, Tensor], Tensor] = lambda y1, added: y1 - added,
    dx1: Callable[[Tensor, Tensor], Tensor] = lambda dy1, dx2: dy1,
    dx2: Callable[[Tensor, Tensor], Tensor] = lambda through, dy2: through + dy2,
    incoming: Callable[[Tensor, Tensor], Tensor] = lambda dy1, dy2: dy1,
    dx2_returned: Callable[[Tensor, Tensor], Tensor] = lambda dy1, dx2: dx2,
    and_dy2: bool = False,
    undone: Callable[[Tensor], Tensor] = Tensor.detach,
) -> Callable[..., tuple[Tensor, ...]]:
    """The right steps, to be replaced one at a time."""

    def run(f: Any, weight: Tensor, y1: Tensor, x2: Tensor, dy1: Tensor, dy2: Tensor) -> Any:
        x2 = x2.detach().requires_grad_()
        added = f(x2, weight)
        through, dweight = torch.autograd.grad(added, (x2, weight), incoming(dy1, dy2))
        total = dx2(through, dy2)
        first = dx1(dy1, total) + and_dy2 * dy2
        return undone(inverse(y1, added)), first, dx2_returned(dy1, total), dweight

    return run


def _five(seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    weight, *streams = (torch.randn(3, 3, generator=generator) for _ in range(5))
    return weight.requires_grad_(), *streams


coupling_backward = Exercise(
    chapter="reversible",
    name="coupling_backward",
    minutes=12,
    difficulty=2,
    hints=(
        "Three parts: make x2 need a gradient and compute f again; take it away from y1; ask "
        "torch.autograd.grad. Then ask on which ways x1 and x2 reached the outputs.",
        "x1 reaches y1 alone, unchanged: dx1 = dy1. x2 reaches y1 through f, and y2 unchanged: "
        "dx2 = (gradient through f) + dy2. Both gradients through f come from "
        "torch.autograd.grad(added, (x2, weight), dy1).",
    ),
    cases=[
        (_Named("tanh_layer", lambda x, weight: torch.tanh(x @ weight)), *_five(0)),
        (_Named("product", lambda x, weight: x * x * weight), *_five(1)),
    ],
    reference=_backward_by_autograd,
    returns=("x1", "dx1", "dx2", "dweight"),
    mistakes={
        "x2 is no leaf": Mistake(
            lambda f, weight, y1, x2, dy1, dy2: torch.autograd.grad(
                f(x2, weight), (x2, weight), dy1
            ),
            "x2 needs no gradient yet, so autograd cannot give one. Begin with "
            "x2 = x2.detach().requires_grad_().",
        ),
        "from ones": Mistake(
            _backward(incoming=lambda dy1, dy2: torch.ones_like(dy1)),
            "the gradient through f starts from ones, as if the loss were the sum of y1. "
            "Start from dy1, the third argument of torch.autograd.grad.",
        ),
        "exchanged": Mistake(
            _backward(dx1=lambda dy1, dx2: dx2, dx2_returned=lambda dy1, dx2: dy1),
            "dx1 and dx2 are exchanged.",
        ),
        "gradients exchanged": Mistake(
            lambda f, weight, y1, x2, dy1, dy2: (
                *(right := _backward()(f, weight, y1, x2, dy1, dy2))[:2],
                right[3],
                right[2],
            ),
            "dx2 and dweight are exchanged.",
        ),
        "graph kept": Mistake(
            _backward(undone=lambda x1: x1),
            "x1 still holds on to the graph of f, and with it to its activations; use .detach().",
        ),
        "f minus y1": Mistake(
            _backward(inverse=lambda y1, added: added - y1),
            "x1 has the wrong sign: take f away from y1, not y1 from f.",
        ),
        "both straight": Mistake(
            _backward(dx1=lambda dy1, dx2: dy1, and_dy2=True),
            "dx1 is dy1 + dy2. x1 reaches y1 alone: dx1 = dy1.",
        ),
        "no straight way": Mistake(
            _backward(dx2=lambda through, dy2: through),
            "dx2 holds only what comes through f. x2 is an output too, so dy2 is added.",
        ),
        "straight way only": Mistake(
            _backward(dx2=lambda through, dy2: dy2),
            "dx2 lacks what comes through f: y1 depends on x2 as well.",
        ),
        "from dy2": Mistake(
            _backward(incoming=lambda dy1, dy2: dy2),
            "the gradient through f starts from dy2. f was added to y1: start from dy1.",
        ),
        "from both": Mistake(
            _backward(incoming=lambda dy1, dy2: dy1 + dy2),
            "the gradient through f starts from dy1 + dy2. f was added to y1 alone.",
        ),
        "x1 through f": Mistake(
            _backward(dx1=lambda dy1, dx2: dx2),
            "x1 and x2 get the same gradient. x1 does not go through f: it is carried to y1.",
        ),
        "not undone": Mistake(
            _backward(inverse=lambda y1, added: y1),
            "it returns y1 in place of x1. Take away what was added.",
        ),
        "added again": Mistake(
            _backward(inverse=lambda y1, added: y1 + added),
            "it adds f once more. To get x1 back, take it away.",
        ),
    },
)


# 3. The secret frame

_DIGITS = {
    "3": "####. ....# ....# .###. ....# ....# ####.",
    "7": "##### ....# ...#. ..#.. ..#.. .#... .#...",
}
_SECRET = ("B", 73)


def _frame(number: int) -> Tensor:
    """A picture (3, 16, 16) of two digits."""
    picture = torch.full((3, 16, 16), 0.1)
    for place, digit in enumerate(str(number)):
        for row, line in enumerate(_DIGITS[digit].split()):
            for column, pixel in enumerate(line):
                if pixel == "#":
                    left = 2 + 7 * place + column
                    picture[:, 4 + row, left] = torch.tensor([0.95, 0.8, 0.2])
    return picture


def secret() -> tuple[DualModalityReversibleSequence, tuple[Tensor, ...], dict[str, Tensor]]:
    """Towers, the four halves that they gave, and three texts of which one was read."""
    kinds = ("intra_modality_cross_attn", "inter_modality_cross_attn")
    sequence = towers(16, 48, types=kinds, gain=4.0).eval()
    generator = torch.Generator().manual_seed(3)
    texts = {letter: torch.randn(1, 5, 48, generator=generator) for letter in "ABC"}
    letter, number = _SECRET
    video = patchify_video(_frame(number)[None, :, None], (1, 4, 4))
    audio = torch.rand(1, 6, 48, generator=generator)
    with torch.no_grad():
        return sequence, sequence.streams(video, audio, context=texts[letter]), texts


def _secret_answer(answer: Any) -> str | None:
    try:
        letter, number = answer
    except (TypeError, ValueError):
        return f"it returned {answer!r}, wanted a letter and a number, such as ('A', 10)."
    letter = str(letter).upper()
    if letter not in ("A", "B", "C"):
        return f"it names text {letter!r}; the texts are 'A', 'B' and 'C'."
    if letter != _SECRET[0]:
        return (
            f"with text {letter} the inverse ends in noise. Every text gives some picture: "
            "draw all three side by side."
        )
    try:
        whole = int(number)
    except (TypeError, ValueError):
        whole = None
    if whole is None or whole != float(number):
        return f"right text. Return the number as a whole number, not {number!r}."
    if str(whole) == str(_SECRET[1])[::-1]:
        return "right text; the number is read from left to right."
    if whole != _SECRET[1]:
        return f"right text. The picture does not say {whole}: draw x1 after the inverse."
    return None


secret_frame = Exercise(
    chapter="reversible",
    name="secret_frame",
    minutes=8,
    difficulty=2,
    hints=(
        "sequence.inverse(*halves, context=...) needs the text that was read on the way forward. "
        "Try each one.",
        "x1 = sequence.inverse(*halves, context=texts['A'])[0]; then show(x1). Which text gives a "
        "clear picture?",
    ),
    verify=_secret_answer,
    mistakes={
        "first text": Mistake(lambda: ("A", 73), "with text A the inverse ends in noise"),
        "last text": Mistake(lambda: ("C", 0), "with text C the inverse ends in noise"),
        "backwards": Mistake(lambda: ("B", 37), "read from left to right"),
        "misread": Mistake(lambda: ("B", 78), "The picture does not say 78"),
        "number alone": Mistake(lambda: 73, "wanted a letter and a number"),
    },
)


# Gem: two pasts, one mean


def some_outputs() -> tuple[DualModalityReversibleSequence, tuple[Tensor, ...]]:
    """Small towers and the four halves that they gave."""
    sequence = towers(4, 8).eval()
    generator = torch.Generator().manual_seed(1)
    video, audio = (torch.randn(1, n, 8, generator=generator) for n in (3, 2))
    with torch.no_grad():
        return sequence, sequence.streams(video, audio)


def _other_past(answer: Any) -> str | None:
    sequence, (x1, x2, m1, m2) = some_outputs()
    halves = list(answer) if isinstance(answer, (tuple, list)) else []
    wanted = [half.shape for half in (x1, x2, m1, m2)]
    try:
        halves = [torch.as_tensor(half).detach().float() for half in halves]
    except (TypeError, ValueError, RuntimeError):  # not even tensors
        halves = []
    shapes = [half.shape for half in halves]
    if shapes == [*wanted[2:], *wanted[:2]]:
        return "video and audio are exchanged: return x1, x2, m1, m2."
    if shapes != wanted:
        return f"it must return four halves x1, x2, m1, m2 of shapes {[*map(tuple, wanted)]}."
    for name, mine, theirs in (
        ("video", halves[0] + halves[1], x1 + x2),
        ("audio", halves[2] + halves[3], m1 + m2),
    ):
        if (mine - theirs).abs().max() > 1e-6 * max(10.0, *(h.abs().max().item() for h in halves)):
            return (
                f"the {name} output, the mean of its halves, is another one now. "
                "What one half gains the other must lose."
            )
    if all(map(torch.equal, halves, (x1, x2, m1, m2))):
        return "these are the halves that you were given, so they have the same past."
    with torch.no_grad():
        mine, theirs = (
            torch.cat(before, 1)
            for before in (sequence.inverse(*halves), sequence.inverse(x1, x2, m1, m2))
        )
    if torch.allclose(mine, theirs, atol=1e-3):
        return "these halves have the same past, or nearly so: change them more."
    return None


def _moved(*steps: float) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(half + step for half, step in zip(some_outputs()[1], steps, strict=True))


two_pasts = Exercise(
    chapter="reversible",
    name="two_pasts",
    minutes=5,
    difficulty=2,
    hints=(
        "The outputs are (x1 + x2) / 2 and (m1 + m2) / 2. What can you do to x1 and x2 without "
        "changing their mean?",
        "Add something to x1 and take the same away from x2. Or exchange them.",
    ),
    verify=_other_past,
    mistakes={
        "the same": Mistake(lambda: some_outputs()[1], "the halves that you were given"),
        "a hair": Mistake(_moved(1e-4, -1e-4, 0, 0), "nearly so: change them more"),
        "one half": Mistake(_moved(1, 0, 0, 0), "the video output, the mean of its halves"),
        "both up": Mistake(_moved(1, -1, 1, 1), "the audio output, the mean of its halves"),
        "towers exchanged": Mistake(
            lambda: (*some_outputs()[1][2:], *some_outputs()[1][:2]),
            "video and audio are exchanged",
        ),
        "means": Mistake(lambda: some_outputs()[1][:2], "it must return four halves"),
    },
)


# Gem: find the bugs

BUGS = {
    1: "undoes the couplings in the order in which they were done",
    2: "draws the dropout anew when it computes f and g again",
    3: "computes f again from x2 as it is after the block, not before",
    4: "forgets the gradient that goes straight through (dx = what came through f or g, alone)",
    5: "writes the gradient of a weight into .grad in place of adding it",
}
_BUGGY = {"A": 2, "B": 3, "C": 5, "D": 1}


def _layer(x: Tensor, weight: Tensor, noise: Tensor) -> Tensor:
    return torch.tanh(x @ weight) * noise


def _undo(
    target: Tensor, read: Tensor, weight: Tensor, noise: Tensor, into: Tensor
) -> tuple[Tensor, ...]:
    """The target before the coupling; the gradients of what was read, through it, and of weight."""
    leaves = [tensor.clone().requires_grad_() for tensor in (read, weight)]
    added = _layer(leaves[0], leaves[1], noise)
    return target - added.detach(), *torch.autograd.grad(added, leaves, into)


def _train(bug: int, dropout: float, batches: int) -> dict[str, Tensor]:
    """What an engine with a bug recomputes and returns; bug 0 is ordinary autograd.

    The block is x1 += f(x2), x2 += g(x1).
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    wf, wg = draw(4, 4), draw(4, 4)
    total_f, total_g = torch.zeros(4, 4).double(), torch.zeros(4, 4).double()
    for _ in range(batches):
        x1, x2, d1, d2 = (draw(2, 4) for _ in range(4))
        nf, ng, *anew = ((torch.rand(4, generator=generator) >= dropout).double() for _ in "1234")
        y1 = x1 + _layer(x2, wf, nf)
        y2 = x2 + _layer(y1, wg, ng)
        if bug == 2:
            nf, ng = anew
        if bug == 0:
            leaves = [tensor.clone().requires_grad_() for tensor in (x1, x2, wf, wg)]
            first = leaves[0] + _layer(leaves[1], leaves[2], nf)
            second = leaves[1] + _layer(first, leaves[3], ng)
            dx1, dx2, df, dg = torch.autograd.grad((first, second), leaves, (d1, d2))
        elif bug == 1:
            x1, through_f, df = _undo(y1, y2, wf, nf, d1)
            x2, through_g, dg = _undo(y2, x1, wg, ng, d2)
            dx1, dx2 = d1 + through_g, d2 + through_f
        else:
            x2, through_g, dg = _undo(y2, y1, wg, ng, d2)
            dx1 = through_g if bug == 4 else d1 + through_g
            x1, through_f, df = _undo(y1, y2 if bug == 3 else x2, wf, nf, dx1)
            dx2 = through_f if bug == 4 else d2 + through_f
        total_f, total_g = (df, dg) if bug == 5 else (total_f + df, total_g + dg)
    return {
        "inputs": torch.cat([x1, x2]),
        "gradient of inputs": torch.cat([dx1, dx2]),
        "gradient of f": total_f,
        "gradient of g": total_g,
    }


def bug_reports() -> dict[str, dict[str, bool]]:
    """For four buggy engines: is it right? One batch without dropout, then with, then two."""
    reports = {}
    for letter, bug in _BUGGY.items():
        truth, found = _train(0, 0.0, 1), _train(bug, 0.0, 1)
        report = {name: torch.allclose(found[name], truth[name]) for name in truth}
        for name, settings in (("with dropout", (0.5, 1)), ("two batches", (0.0, 2))):
            truth, found = _train(0, *settings), _train(bug, *settings)
            report[name] = all(torch.allclose(found[key], truth[key]) for key in truth)
        reports[letter] = report
    return reports


find_the_bugs = Exercise(
    chapter="reversible",
    name="find_the_bugs",
    minutes=10,
    difficulty=2,
    hints=(
        "First find the two engines that are right on one batch without dropout. What is left "
        "that can go wrong?",
        "Undoing starts with g. If g's gradient is right and f's is wrong, the slip comes "
        "after g was undone.",
    ),
    verify=matching(
        _BUGGY,
        {
            1: "bug 1 spoils everything at once, g's gradient too.",
            2: "bug 2 shows only where there is dropout.",
            3: "bug 3 leaves g's gradient right; the inputs do not come back.",
            4: "bug 4 gives the inputs back, and wrong gradients.",
            5: "bug 5 shows only from the second batch on.",
        },
        "engine",
    ),
    mistakes={
        "dropout and batches": Mistake(
            lambda: {**_BUGGY, "A": 5, "C": 2}, "only from the second batch on"
        ),
        "order and stale": Mistake(lambda: {**_BUGGY, "B": 1, "D": 3}, "spoils everything at once"),
        "straight way": Mistake(lambda: {**_BUGGY, "B": 4}, "gives the inputs back"),
        "stale as well": Mistake(lambda: {**_BUGGY, "D": 3}, "leaves g's gradient right"),
        "a list": Mistake(lambda: [*_BUGGY.values()], "wanted a dictionary"),
    },
)


# Gem: invent a block type

_STREAMS = ("x1", "x2", "m1", "m2")


def _held(couplings: list[tuple[str, tuple[str, ...]]], blocks: int) -> dict[str, set[str]]:
    """Of which streams each holds something, after so many blocks."""
    held = {name: {name} for name in _STREAMS}
    for _ in range(blocks):
        for target, reads in couplings:
            held[target] = held[target].union(*(held[read] for read in reads))
    return held


def draw_one_way_block() -> Figure:
    """What each half holds after one block of the third kind, and after `one_way_block`."""
    third = BLOCK_TYPES["inter_modality_cross_attn"]
    both = _held([(target, tuple(reads)) for target, reads, *_ in third], 1)
    wanted = {name: set(_STREAMS) if name[0] == "x" else {"m1", "m2"} for name in _STREAMS}
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    _draw_held(axes[0], both, "the third kind, after one block")
    _draw_held(axes[1], wanted, "wanted, after one block")
    return figure


def _draw_held(ax: Axes, held: dict[str, set[str]], title: str) -> None:
    def holds(i: int, j: int) -> bool:
        return any(stream[0] == "xm"[j] for stream in held[_STREAMS[i]])

    def text(i: int, j: int) -> str:
        return "" if holds(i, j) else "never"

    table(ax, _STREAMS, ["video", "audio"], strength=holds, text=text)
    ax.set_title(title)


def _one_way(answer: Any) -> str | None:
    try:
        pairs = [] if isinstance(answer, (dict, str)) else list(answer)  # it may be a zip
        couplings = [
            (pair[0], (pair[1],) if isinstance(pair[1], str) else tuple(pair[1]))
            for pair in pairs
            if isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str)
        ]
    except TypeError:
        couplings = []
    if not couplings or len(couplings) != len(pairs):
        return f"it returned {answer!r}, wanted a list of pairs such as ('x1', ('x2', 'm2'))."
    for target, reads in couplings:
        unknown = {target, *reads} - set(_STREAMS)
        if unknown:
            return f"there is no stream {min(map(str, unknown))!r}; there are x1, x2, m1 and m2."
        if not reads:
            return f"{target} reads nothing: what is added to it would always be the same."
        if target in reads:
            return f"{target} reads itself: it could not be taken away again."
    idle = [name for name in _STREAMS if name not in {target for target, _ in couplings}]
    if idle:
        return f"nothing is ever added to {idle[0]}: this half never learns anything."
    for tower in "xm":
        if not any(t[0] == r[0] == tower for t, reads in couplings for r in reads):
            return f"neither {tower}1 nor {tower}2 reads the other: a tower must read itself."
    for target, reads in couplings:
        if target[0] == "m" and any(read[0] == "x" for read in reads):
            return (
                f"{target} reads {next(r for r in reads if r[0] == 'x')}: sound gets the picture."
            )
    held = _held(couplings, 1)
    for name in ("x1", "x2"):
        if not held[name] & {"m1", "m2"}:
            later = (
                " After two it does: the order counts."
                if _held(couplings, 2)[name] & {"m1", "m2"}
                else ""
            )
            return f"after one block {name} holds no sound yet.{later} Who could bring it some?"
    return None


one_way_block = Exercise(
    chapter="reversible",
    name="one_way_block",
    minutes=8,
    difficulty=2,
    hints=(
        "Begin with the four couplings of intra_modality_self_attn. Which one could read a third "
        "stream as well?",
        "Let x1 read x2 and m2, as inter_modality_cross_attn does. x2 reads x1, and gets the "
        "sound from it. Leave the audio tower alone.",
    ),
    verify=_one_way,
    mistakes={
        "both ways": Mistake(
            lambda: [("x1", ("x2", "m2")), ("x2", "x1"), ("m1", ("m2", "x2")), ("m2", "m1")],
            "m1 reads x2: sound gets the picture",
        ),
        "reads itself": Mistake(
            lambda: [("x1", ("x1", "m2")), ("x2", "x1"), ("m1", "m2"), ("m2", "m1")],
            "x1 reads itself",
        ),
        "idle": Mistake(
            lambda: [("x1", ("x2", "m2")), ("x2", "x1"), ("m1", "m2")],
            "nothing is ever added to m2",
        ),
        "no sound": Mistake(
            lambda: [("x1", "x2"), ("x2", "x1"), ("m1", "m2"), ("m2", "m1")],
            "after one block x1 holds no sound yet",
        ),
        "too late": Mistake(
            lambda: [("x2", "x1"), ("x1", ("x2", "m2")), ("m1", "m2"), ("m2", "m1")],
            "after one block x2 holds no sound yet. After two it does: the order counts",
        ),
        "crossed": Mistake(
            lambda: [("x1", "m2"), ("x2", "m1"), ("m1", "m2"), ("m2", "m1")],
            "neither x1 nor x2 reads the other",
        ),
        "strange name": Mistake(lambda: [("video", ("audio",))], "there is no stream 'audio'"),
    },
)

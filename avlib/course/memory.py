"""Notebook 04: the exercises, and the timelines to tell apart."""

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from avlib import plots
from avlib.course.exercise import Exercise, Mistake, matching
from avlib.course.planner import OPTIMIZERS, PRECISIONS, WAYS, forecast
from avlib.memory import MemoryUse, measure
from avlib.predict import ByDepth
from avlib.zorro import Zorro

# 1. What comes with the weights

_COPIES = {"SGD": 0, "SGD with momentum": 1, "AdamW": 2}


def _weights_one_by_one(parameters: int, optimizer: str) -> int:
    total = 0
    for _ in range(parameters):
        total += 4 + 4  # a parameter, and its gradient
        for _ in range(_COPIES[optimizer]):
            total += 4
    return total


weight_bytes = Exercise(
    chapter="memory",
    name="weight_bytes",
    minutes=4,
    difficulty=1,
    hints=(
        "How many numbers are kept for one parameter: itself, its gradient, and what else?",
        "AdamW keeps two more numbers for each parameter, momentum one. Each number has 4 bytes.",
    ),
    cases=[(1000, "SGD"), (1000, "SGD with momentum"), (2500, "AdamW")],
    reference=_weights_one_by_one,
    mistakes={
        "no gradients": Mistake(
            lambda parameters, optimizer: 4 * parameters * (1 + _COPIES[optimizer]),
            "it leaves out the gradients, or the parameters. There is one gradient for each.",
        ),
        "numbers": Mistake(
            lambda parameters, optimizer: parameters * (2 + _COPIES[optimizer]),
            "it counts numbers. A float32 number has 4 bytes.",
        ),
        "one average": Mistake(
            lambda parameters, optimizer: 4 * parameters * (2 + min(1, _COPIES[optimizer])),
            "it gives AdamW one number for each parameter. It keeps two: averages of the "
            "gradient, and of its square.",
        ),
        "two averages": Mistake(
            lambda parameters, optimizer: 4 * parameters * (2 + 2 * min(1, _COPIES[optimizer])),
            "it gives momentum two numbers for each parameter. Only AdamW keeps two.",
        ),
        "doubles": Mistake(
            lambda parameters, optimizer: 8 * parameters * (2 + _COPIES[optimizer]),
            "it gives each number 8 bytes, as in float64. These are float32.",
        ),
        "weights alone": Mistake(
            lambda parameters, optimizer: 4 * parameters,
            "it counts the parameters alone. Training also needs gradients, and what the "
            "optimizer remembers.",
        ),
    },
)


# 2. What one layer keeps


def _kept_one_by_one(tokens: int, dim: int) -> int:
    kept = {
        "stream, read by the first norm": dim,
        "first norm's output, read by three linear layers": dim,
        "queries": dim,
        "keys": dim,
        "values": dim,
        "attention's output, which the next linear layer reads": dim,
        "stream, read by the second norm": dim,
        "second norm's output, read by a linear layer": dim,
        "GELU's input": 4 * dim,
        "GELU's output, read by a linear layer": 4 * dim,
    }
    return sum(size for _ in range(tokens) for size in kept.values())


kept_by_layer = Exercise(
    chapter="memory",
    name="kept_by_layer",
    minutes=8,
    difficulty=2,
    hints=(
        "Go through forward line by line, and for each operation write down what the table says "
        "that it keeps. Is it on your list already?",
        "Attention's half of the layer keeps 6 tensors of tokens × dim. The other half keeps 2 "
        "more such tensors, and 2 that are four times as wide.",
    ),
    cases=[(1, 8), (10, 64), (1888, 768)],
    reference=_kept_one_by_one,
    mistakes={
        "twice": Mistake(
            lambda tokens, dim: 17 * tokens * dim,
            "it counts attention's output twice. Attention and the linear layer after it keep the "
            "same tensor.",
        ),
        "norms' inputs": Mistake(
            lambda tokens, dim: 14 * tokens * dim,
            "it leaves out two tensors: what the norms read, or what they give. A norm keeps its "
            "input, and the linear layer after it keeps its own.",
        ),
        "one missing": Mistake(
            lambda tokens, dim: 15 * tokens * dim,
            "it is one tensor short. Did you count the stream at both norms, q, k and v, and what "
            "attention gives?",
        ),
        "bytes": Mistake(
            lambda tokens, dim: 64 * tokens * dim,
            "it counts bytes. Return how many numbers there are.",
        ),
        "weights": Mistake(
            lambda tokens, dim: 16 * tokens * dim + 12 * dim * dim,
            "it adds the weights. They are there in any case; count what is made on the way.",
        ),
        "only inputs": Mistake(
            lambda tokens, dim: 12 * tokens * dim,
            "it counts one of the wide tensors. GELU keeps its input, and the linear layer after "
            "it keeps GELU's output.",
        ),
        "scores": Mistake(
            lambda tokens, dim: 16 * tokens * dim + tokens * tokens,
            "it adds tokens × tokens. Fused attention keeps no scores.",
        ),
        "sums": Mistake(
            lambda tokens, dim: 18 * tokens * dim,
            "it counts too much. An addition keeps nothing, and three linear layers that read the "
            "same tensor keep it once.",
        ),
    },
)


# 3. Checkpoint every so many layers


def _best_by_trying(depth: int, stream: int, layer: int) -> int:
    peaks = {}
    for length in range(1, depth + 1):
        segments = len(range(0, depth, length))
        peaks[length] = segments * stream + length * layer
    return min(peaks, key=lambda length: peaks[length])


def draw_best_segment() -> Axes:
    """Seven layers in segments of three lengths: what is kept, what is stored, and the peak."""
    depth, stream, layer, lengths = 7, 3, 2, (2, 4, 7)
    ax = plots.canvas(None, 10, 2.6)

    def dot(x: float, y: float) -> None:
        ax.plot(x, y, "o", color=plots.INK, ms=16)
        ax.text(x, y, str(stream), ha="center", va="center_baseline", color="white")

    def box(x: float, y: float, stored: bool) -> None:
        face = plots.FOCUS if stored else plots.HIDDEN
        ax.add_patch(Rectangle((x, y - 0.3), 0.95, 0.6, fc=face, lw=0))
        if stored:
            ax.text(x + 0.475, y, str(layer), ha="center", va="center_baseline", color="white")

    for row, length in enumerate(lengths):
        starts = range(0, depth, length)
        full = max(start for start in starts if start + length <= depth)  # the last of full length
        for i in range(depth):
            x = i + 0.5 * (i // length)
            box(x, row, full <= i < full + length)
            if i in starts:
                dot(x - 0.27, row)
        count = len(starts)
        words = f"{count} · {stream} + {length} · {layer} = {count * stream + length * layer} bytes"
        ax.text(-0.8, row, f"length {length}", ha="right", va="center", weight="bold")
        ax.text(9.0, row, words, va="center")
    dot(0.73, -1)
    ax.text(1.1, -1, "what enters a segment", va="center")
    box(5, -1, stored=True)
    ax.text(6.1, -1, "a layer stored in full", va="center")
    plots.bare(ax)
    ax.set(xlim=(-2.3, 12.2), ylim=(len(lengths) - 0.5, -1.5))
    return ax


best_segment = Exercise(
    chapter="memory",
    name="best_segment",
    minutes=8,
    difficulty=2,
    hints=(
        "For a length of 1, of 2, of 3: how many segments are there, and how many layers are "
        "stored in full at one time?",
        "The peak of a length is math.ceil(depth / length) * stream + length * layer. Try every "
        "length with a loop.",
    ),
    cases=[(400, 1, 16), (64, 1, 16), (100, 1, 1), (31, 5, 2), (4, 100, 1)],
    reference=_best_by_trying,
    mistakes={
        "every layer": Mistake(
            lambda depth, stream, layer: 1,
            "it checkpoints every layer. In a deep network the stored streams are then most of it.",
        ),
        "one segment": Mistake(
            lambda depth, stream, layer: depth,
            "it makes one segment of all layers. Going backwards, the whole segment is stored in "
            "full: that is the ordinary peak.",
        ),
        "square root of depth": Mistake(
            lambda depth, stream, layer: round(depth**0.5),
            "it takes the square root of depth. That is best only where a stream and a layer are "
            "equally large.",
        ),
        "upside down": Mistake(
            lambda depth, stream, layer: round((depth * layer / stream) ** 0.5),
            "it is upside down. The more a layer keeps, the shorter a segment should be.",
        ),
        "floor": Mistake(
            lambda depth, stream, layer: min(
                range(1, depth + 1), key=lambda length: depth // length * stream + length * layer
            ),
            "it forgets the last segment where that is shorter. Round the number of segments up.",
        ),
        "peak": Mistake(
            lambda depth, stream, layer: min(
                -(-depth // length) * stream + length * layer for length in range(1, depth + 1)
            ),
            "it returns the smallest peak. Return the length that has it.",
        ),
        "formula": Mistake(
            lambda depth, stream, layer: round((depth * stream / layer) ** 0.5),
            "the square root is close. But there is a whole number of segments, so compare the "
            "peaks of all lengths.",
        ),
    },
)


# Gem: whose timeline?

STORIES = {
    1: "training as it should be: `zero_grad()`, forward, `backward()`, `step()`",
    2: "training, but `zero_grad(set_to_none=False)`: gradients are set to zero, not freed",
    3: "training, but with `backward(retain_graph=True)`, and each loss is put into a list",
    4: "validation without `no_grad()`: no backward; the losses are added up",
    5: "validation under `no_grad()`: no backward; the losses are added up",
}
_STORY_OF = {"A": 3, "B": 2, "C": 4, "D": 1}


def _three_rounds(story: int) -> MemoryUse:
    torch.manual_seed(0)
    model = Zorro(dim=64, depth=4, heads=4, dim_head=16, num_fusion_tokens=4)
    video = torch.rand(1, 3, 4, 64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def score() -> Tensor:
        return model(video=video, return_token_indices=(1,)).square().mean()

    def rounds() -> None:
        losses = []
        total = torch.zeros(())
        for _ in range(3):
            if story in (4, 5):
                with torch.set_grad_enabled(story == 4):
                    total = total + score()
                continue
            optimizer.zero_grad(set_to_none=story != 2)
            loss = score()
            loss.backward(retain_graph=story == 3)
            optimizer.step()
            if story == 3:
                losses.append(loss)

    return measure(rounds, model=model, optimizer=optimizer)


def four_timelines() -> dict[str, MemoryUse]:
    """What four programs held during three rounds; each is one of the `STORIES`."""
    with torch.random.fork_rng(devices=[]):
        return {letter: _three_rounds(story) for letter, story in _STORY_OF.items()}


whose_timeline = Exercise(
    chapter="memory",
    name="whose_timeline",
    minutes=8,
    difficulty=2,
    hints=(
        "Which timelines have a backward pass? In which of them does something stay from one "
        "round to the next?",
        "Look at the gradients when a forward pass begins: are they there or not?",
    ),
    verify=matching(
        _STORY_OF,
        {
            1: "in story 1 every round begins with the same few bytes, and without gradients.",
            2: "in story 2 the gradients are there at all times, in forward passes too.",
            3: "in story 3 there are backward passes, and activations stay from round to round.",
            4: "in story 4 there is no backward pass, and what forward made stays.",
            5: "in story 5 there is no backward pass, and nothing stays.",
        },
        "timeline",
    ),
    mistakes={
        "swapped": Mistake(lambda: {**_STORY_OF, "B": 1, "D": 2}, "without gradients"),
        "any growth": Mistake(lambda: {**_STORY_OF, "A": 4, "C": 3}, "there is no backward pass"),
        "not growing": Mistake(lambda: {**_STORY_OF, "C": 5}, "nothing stays"),
        "one for all": Mistake(lambda: dict.fromkeys("ABCD", 1), "every round begins"),
    },
)


# Gem: spend 8 GB

BUDGET = 8 * plots.GB


def for_budget(way: str, precision: str, optimizer: str) -> ByDepth:
    """The memory of a `zorro` of width 512 that trains on 16 clips of 8 frames at a time."""
    return forecast(way, 512, 16, 8, precision, optimizer)


def _spent(answer: Any) -> str | None:
    options: dict[str, Any] = {"way": WAYS, "precision": PRECISIONS, "optimizer": OPTIMIZERS}
    if not isinstance(answer, dict) or set(answer) != {*options, "depth"}:
        return f"it returned {answer!r}, wanted a dictionary with way, precision, optimizer, depth."
    for name, known in options.items():
        if answer[name] not in known:
            return f"{name} is {answer[name]!r}, wanted one of {list(known)}."
    settings = {name: answer[name] for name in options}
    try:
        depth = int(answer["depth"])  # it may be NumPy's, or 5.0
    except (TypeError, ValueError):
        depth = 0
    if depth < 4 or depth != answer["depth"]:
        return f"depth is {answer['depth']!r}, wanted a whole number from 4 up."
    own = for_budget(**settings)
    needed = f"{own.at(depth).peak / plots.GB:.2f} GB"
    if own.at(depth).peak > BUDGET:
        return f"{depth} layers need {needed}, more than 8."
    if own.deepest(BUDGET) > depth:
        return f"{depth} layers need {needed} and fit. With these settings more of them fit too."
    for name, known in options.items():
        for other in known:
            if for_budget(**{**settings, name: other}).deepest(BUDGET) > depth:
                return (
                    f"{depth} layers are the most for these settings, but with another {name} "
                    "more of them fit. What is it that fills the 8 GB?"
                )
    return None


def _deepest(way: str, precision: str, optimizer: str) -> dict[str, Any]:
    depth = for_budget(way, precision, optimizer).deepest(BUDGET)
    return {"way": way, "precision": precision, "optimizer": optimizer, "depth": depth}


spend = Exercise(
    chapter="memory",
    name="spend",
    minutes=10,
    difficulty=3,
    hints=(
        "memory.for_budget(way, precision, optimizer) has .deepest(bytes) and .at(depth). "
        "Three times two times three settings: a loop can try them all.",
        "Where nothing is stored, weights and what comes with them are left. bfloat16 here means "
        "autocast: it keeps float32 weights, and makes copies of them.",
    ),
    verify=_spent,
    mistakes={
        "too deep": Mistake(
            lambda: {"way": "ordinary", "precision": "float32", "optimizer": "SGD", "depth": 1000},
            "more than 8",
        ),
        "shy": Mistake(
            lambda: {"way": "reversible", "precision": "float32", "optimizer": "SGD", "depth": 9},
            "more of them fit too",
        ),
        "other settings": Mistake(
            lambda: _deepest("ordinary", "bfloat16", "AdamW"), "but with another way"
        ),
        "other optimizer": Mistake(
            lambda: _deepest("reversible", "bfloat16", "AdamW, fused"),
            "but with another optimizer",
        ),
        "other precision": Mistake(
            lambda: _deepest("reversible", "float32", "SGD"), "but with another precision"
        ),
        "half a layer": Mistake(
            lambda: {**_deepest("reversible", "bfloat16", "SGD"), "depth": 96.5},
            "wanted a whole number",
        ),
        "words": Mistake(lambda: "reversible", "wanted a dictionary"),
    },
)

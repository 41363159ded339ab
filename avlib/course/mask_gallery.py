"""Notebook 05: cards of masks, the exercises, and mask golf."""

from collections.abc import Callable
from math import ceil
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from avlib import gallery
from avlib.attention_maps import READOUT, AttentionMaps
from avlib.course.exercise import Exercise, Mistake, as_tensor, matching
from avlib.plots import Places, bare, draw, to_look_at
from avlib.reach import Reach, cost
from avlib.token_masks import Mask, as_mask
from avlib.trained import trained_zorro
from avlib.widgets import PictureSlider
from avlib.world import World


def card(name: str, mask: Mask, layers: int = 12) -> Figure:
    """A mask beside what it lets through in some layers; prints its cost and its reach."""
    visible = mask.dense()
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.9), layout="constrained")
    draw(mask, title=name, ax=axes[0])
    draw(mask, title=f"held after {layers} layers", layers=layers, ax=axes[1])
    facts = cost(visible)
    print(f"{facts.pairs} of {facts.of} pairs. {Reach(visible).mixing()}")
    return figure


# 1. A window as a mask function


_SIGNS = {  # in an error's words → what was done
    "must only return Tensors": "The answer must depend on q_idx and kv_idx.",
    "vmap": "Put & between two comparisons, each in brackets. `and`, `if`, `in` and a <= b <= c "
    "need a plain number, and q_idx is a tensor.",
    "data pointer": "NumPy cannot look into q_idx. Use & between two comparisons.",
    "wanted one boolean": "It gives numbers, wanted True or False: compare kv_idx with q_idx.",
}


def _window_by_loops(n: int) -> Tensor:
    rows = [[i - 3 <= j <= i for j in range(n)] for i in range(n)]
    return torch.tensor(rows)


def draw_last_four() -> Axes:
    """The mask of `last_four` for eight tokens."""
    return draw(_window_by_loops(8), title="wanted, for 8 tokens")


def _window_is_right(mask_mod: Any) -> str | None:
    if not callable(mask_mod):
        return f"it returned {mask_mod!r:.60}, wanted a function of b, h, q_idx and kv_idx."
    try:
        found = Mask(mask_mod, 8).dense()  # asks for every pair, as FlexAttention does
    except Exception as error:
        for sign, words in _SIGNS.items():
            if sign in str(error):
                return words
        raise
    wanted = _window_by_loops(8)
    if torch.equal(found, wanted):
        return None
    slips = {
        "It is on its side: q_idx reads kv_idx, so kv_idx lies before q_idx.": wanted.T,
        "It reads four before itself. From q_idx - 3 on are three, and q_idx makes four.": (
            _band(4, 0)
        ),
        "It reads two before itself. Is your comparison < where it should be <=?": _band(2, 0),
        "A token must read itself too.": _band(3, -1),
        "It reads four before, and not itself. Three and itself are wanted.": _band(4, -1),
        "It reads two before, and not itself. Are both comparisons < in place of <=?": _band(2, -1),
        "It cuts the tokens into blocks of four. Each token wants a window of its own.": (
            torch.arange(8)[:, None] // 4 == torch.arange(8) // 4
        ),
        "It reads tokens that come later: kv_idx <= q_idx is missing.": _band(3, 99),
        "It reads three before and three after. A film that is still being made has no after.": (
            _band(3, 3)
        ),
        "It reads all that came before: q_idx - 3 <= kv_idx is missing.": _band(99, 0),
        "It is the right window, inside out. True means *may read*.": ~wanted,
    }
    for words, table in slips.items():
        if torch.equal(found, table):
            return words
    i, j = (found != wanted).nonzero()[0].tolist()
    return f"token {i} {'reads' if found[i, j] else 'does not read'} token {j}."


def _band(before: int, after: int) -> Tensor:
    i = torch.arange(8)
    away = i - i[:, None]
    return (away >= -before) & (away <= after)


def _mod(rule: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Any]:
    return lambda: lambda b, h, q_idx, kv_idx: rule(q_idx, kv_idx)


last_four = Exercise(
    chapter="mask_gallery",
    name="last_four",
    minutes=6,
    difficulty=1,
    hints=(
        "Two comparisons: how early may kv_idx be, how late?",
        "(kv_idx >= q_idx - 3) & (kv_idx <= q_idx), with & and brackets: `and` wants one bool.",
    ),
    verify=_window_is_right,
    mistakes={
        "transposed": Mistake(_mod(lambda q, k: (k >= q) & (k <= q + 3)), "It is on its side"),
        "one too many": Mistake(_mod(lambda q, k: (k >= q - 4) & (k <= q)), "It reads four before"),
        "one too few": Mistake(_mod(lambda q, k: (k > q - 3) & (k <= q)), "It reads two before"),
        "not itself": Mistake(_mod(lambda q, k: (k >= q - 3) & (k < q)), "must read itself too"),
        "no end": Mistake(_mod(lambda q, k: k >= q - 3), "It reads tokens that come later"),
        "both sides": Mistake(
            _mod(lambda q, k: (k - q).abs() <= 3), "three before and three after"
        ),
        "no beginning": Mistake(_mod(lambda q, k: k <= q), "It reads all that came before"),
        "inside out": Mistake(_mod(lambda q, k: (k < q - 3) | (k > q)), "inside out"),
        "two strict": Mistake(_mod(lambda q, k: (k > q - 3) & (k < q)), "Are both comparisons <"),
        "four and not itself": Mistake(
            _mod(lambda q, k: (k >= q - 4) & (k < q)), "four before, and not itself"
        ),
        "blocks": Mistake(_mod(lambda q, k: k // 4 == q // 4), "cuts the tokens into blocks"),
        "chained": Mistake(_mod(lambda q, k: q - 3 <= k <= q), "Put & between two comparisons"),
        "no brackets": Mistake(
            _mod(lambda q, k: k >= q - 3 & k <= q), "Put & between two comparisons"
        ),
        "numbers": Mistake(_mod(lambda q, k: (k <= q).int()), "It gives numbers, wanted True"),
        "all": Mistake(lambda: lambda b, h, q, k: True, "must depend on q_idx and kv_idx"),
    },
)


# 2. How many layers a window needs


def _layers_by_walking(tokens: int, before: int) -> int:
    reached, layers = {tokens - 1}, 0
    while 0 not in reached:
        reached |= {max(0, token - step) for token in reached for step in range(before + 1)}
        layers += 1
    return layers


layers_needed = Exercise(
    chapter="mask_gallery",
    name="layers_needed",
    minutes=6,
    difficulty=2,
    hints=(
        "In one layer news travels `before` tokens. How many steps is it from the last to token 0?",
        "From tokens - 1 down to 0 are tokens - 1 steps. Divide, and round up.",
    ),
    cases=[(16, 3), (17, 4), (64, 7), (2, 1), (10, 20), (1, 3)],
    reference=_layers_by_walking,
    mistakes={
        "steps are tokens": Mistake(
            lambda tokens, before: ceil(tokens / before),
            "it counts tokens. From the last of 16 tokens to the first are 15 steps.",
        ),
        "rounds down": Mistake(
            lambda tokens, before: (tokens - 1) // before,
            "it does not round up. A step that is left over needs a layer of its own.",
        ),
        "window with itself": Mistake(
            lambda tokens, before: ceil((tokens - 1) / (before + 1)),
            "it divides by the size of the window. The token itself is in the window, and "
            "reading itself brings it no further.",
        ),
        "one more": Mistake(
            lambda tokens, before: ceil((tokens - 1) / before) + 1,
            "it is one layer too many. After 1 layer a token holds `before` tokens already.",
        ),
        "doubling": Mistake(
            lambda tokens, before: (
                ceil(np.log2(max(1, (tokens - 1) / before)) + 1) if tokens > 1 else 0
            ),
            "it doubles the reach in each layer. Each layer adds `before` and no more, since what "
            "is read lies at most so far away.",
        ),
    },
)


# 4. Lost frames and causal order together


def _received_by_loops(real: Tensor) -> Tensor:
    batch, n = real.shape
    mask = torch.zeros(batch, n, n, dtype=torch.bool)
    for b in range(batch):
        for i in range(n):
            for j in range(n):
                mask[b, i, j] = j <= i and bool(real[b, j])
    return mask


def draw_lost_frames() -> Axes:
    """The mask of `lost_frames` for a film of six frames that lost two."""
    real = torch.ones(1, 6, dtype=torch.bool)
    real[0, [1, 4]] = False
    ax = draw(_received_by_loops(real), {"video": 6}, title="wanted")
    side = ax.get_xlim()[1] / 6
    for frame in (1, 4):
        x, y = (frame + 0.5) * side, 3 * side
        ax.text(x, y, f"{frame} was lost", rotation=90, ha="center", va="center")
    return ax


def _order(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


_REAL = torch.tensor([[True] * 5, [True, True, False, True, False]])

lost_frames = Exercise(
    chapter="mask_gallery",
    name="lost_frames",
    minutes=6,
    difficulty=2,
    hints=(
        "Nobody may read a lost frame. Is it the reader or the key that is lost?",
        "The order in time is (n, n), real is (b, n). Columns are keys: order & real[:, None, :].",
    ),
    cases=[(_REAL,), (torch.tensor([[True, False], [True, True], [True, False]]),)],
    reference=_received_by_loops,
    mistakes={
        "rows": Mistake(
            lambda real: _order(real.shape[1]) & real[:, :, None],
            "it hides rows. A lost frame may read what it likes; hide it where it is read, in its "
            "column.",
        ),
        "rows and columns": Mistake(
            lambda real: _order(real.shape[1]) & real[:, :, None] & real[:, None, :],
            "rows of lost frames read nothing now. Softmax over no keys can give NaN; hide columns "
            "alone.",
        ),
        "itself": Mistake(
            lambda real: (
                _order(real.shape[1]) & real[:, None, :]
                | torch.eye(real.shape[1], dtype=torch.bool)
            ),
            "a lost frame reads itself. Nobody has it, so it is nobody's key.",
        ),
        "not used": Mistake(
            lambda real: _order(real.shape[1]).expand(len(real), -1, -1),
            "lost frames are read: `real` has no effect.",
        ),
        "or": Mistake(
            lambda real: _order(real.shape[1]) | real[:, None, :],
            "a key is read when it is early *or* arrived. Both must hold: use &.",
        ),
        "polarity": Mistake(
            lambda real: _order(real.shape[1]) & ~real[:, None, :],
            "only lost frames are read. In this course True means *may read*.",
        ),
        "inside out": Mistake(
            lambda real: ~(_order(real.shape[1]) & real[:, None, :]),
            "it is the right mask, inside out. True means *may read*.",
        ),
        "until the first loss": Mistake(
            lambda real: _order(real.shape[1]) & real.cumprod(1).bool()[:, None, :],
            "it stops at the first lost frame. What arrives later counts again.",
        ),
        "strictly before": Mistake(
            lambda real: _order(real.shape[1]).tril(-1) & real[:, None, :],
            "no frame reads itself, and the first reads nothing. Let j <= i.",
        ),
        "the future": Mistake(
            lambda real: _order(real.shape[1]).T & real[:, None, :],
            "it reads what comes later. Row i is the reader: j <= i.",
        ),
        "no order": Mistake(
            lambda real: real[:, None, :].expand(-1, real.shape[1], -1),
            "it has no order in time: later frames are read.",
        ),
    },
)


# 3. Name the masks

NAMES = {
    1: "a sliding window",
    2: "a sliding window that leaves out every second token",
    3: "causal",
    4: "prefix: the first tokens read each other, the rest is causal",
    5: "neighbours in a picture of 4 × 6 patches",
    6: "a sliding window and one global token",
    7: "causal: the last few tokens, and every sixth before",
}
_MYSTERIES = {"A": 5, "B": 4, "C": 6, "D": 2, "E": 7}
_NAME_CLUES = {
    1: "mask 1 is one band along the diagonal, without gaps.",
    2: "mask 2 has stripes along the diagonal: each second one is missing.",
    3: "mask 3 is one full triangle.",
    4: "mask 4 is a triangle with a full square in its first corner.",
    5: "in mask 5 the neighbour below lies one whole row of patches later in the sequence, so "
    "there are three bands.",
    6: "mask 6 has a full first row and a full first column.",
    7: "mask 7 has a band under the diagonal, and thin lines that come back every six tokens.",
}


def mysteries() -> dict[str, Mask]:
    """Five masks of 24 tokens without their names."""
    n = 24
    masks = {
        2: gallery.nearby(n, 5, dilation=2),
        4: gallery.prefix(n, 7),
        5: as_mask(gallery.nearby({"picture": (4, 6)}, 3), n),
        6: gallery.sliding_window(n, 2) | gallery.global_tokens(n, 1),
        7: gallery.causal(n) & (gallery.sliding_window(n, 2) | gallery.strided(n, 6)),
    }
    return {letter: masks[number] for letter, number in _MYSTERIES.items()}


name_the_masks = Exercise(
    chapter="mask_gallery",
    name="name_the_masks",
    minutes=8,
    difficulty=2,
    hints=(
        "First ask of each: does it ever read to the right of the diagonal? Then it is not causal.",
        "Two are causal or nearly so: one with a square, one with lines. Of the other three one "
        "has a full row, one has gaps beside the diagonal.",
    ),
    verify=matching(_MYSTERIES, _NAME_CLUES, "mask"),
    mistakes={
        "bands": Mistake(lambda: {**_MYSTERIES, "A": 1}, "one band along the diagonal"),
        "triangles": Mistake(lambda: {**_MYSTERIES, "B": 3}, "one full triangle"),
        "stripes": Mistake(lambda: {**_MYSTERIES, "A": 2, "D": 5}, "each second one is missing"),
        "causal with lines": Mistake(lambda: {**_MYSTERIES, "E": 3}, "one full triangle"),
    },
)


# 5. What heads look at

CLIPS = (24, 30, 32, 47)  # of a world of 64; their flashes fall on frames that are shown


def heads_at_work() -> PictureSlider:
    """Where the global query of the trained Zorro looks in four clips, head by head."""
    model, _ = trained_zorro()
    world = World(64, seed=5)
    looked = []
    for example in world.__getitems__(range(len(world))):
        maps = AttentionMaps(model, audio=example.audio, video=example.video)
        rows = [maps.rows(READOUT, head, [3])[0] for head in range(maps.heads)]
        looked.append((maps, torch.stack(rows)))
    readers, keys = maps.readers(READOUT), maps.keys(READOUT)
    mean = torch.stack([weights for _, weights in looked]).mean(0)

    def look(head: int) -> tuple[Figure, str]:
        figure, axes = plt.subplots(
            len(CLIPS), 3, figsize=(10, 5.2), width_ratios=[1.1, 4.5, 4.3], layout="constrained"
        )
        for clip, row in zip(CLIPS, axes, strict=True):
            maps, weights = looked[clip]
            found = {"audio": maps.spectrogram, "video": maps.video}
            pictures = {name: picture for name, picture in found.items() if picture is not None}
            strength = to_look_at(weights[head, None])[0]
            strips = Places(readers, keys, pictures).rasters(strength, 3)
            for ax, strip in zip(row, strips, strict=True):
                ax.imshow(strip)
                bare(ax)
        for ax, name in zip(axes[0], (f"A audio, head {head}", "V video", "F fusion"), strict=True):
            ax.set_title(name, fontsize=10)
        audio, video, fusion = (100 * mean[head, span].sum() for span in keys.spans.values())
        return figure, (
            f"Head {head} of the global query gives {audio:.0f} % to audio, {video:.0f} % to video "
            f"and {fusion:.0f} % to fusion tokens, the mean of {len(world)} clips."
        )

    return PictureSlider("head", range(model.pool.heads), look)


_HEADS = {"A": 0, "B": 5, "C": 4}
_HEAD_CLUES = {
    0: "head 0 looks at patches of the sprite, in every clip.",
    1: "head 1 listens in three of the four clips.",
    2: "head 2 looks at the film, mostly at the sprite; in the third clip half its weight is on "
    "other patches.",
    3: "head 3 only listens.",
    4: "head 4 reads the fusion tokens, in every clip.",
    5: "head 5 looks at the whole frame in which the ground is bright.",
    6: "head 6 changes: fusion tokens in the first clip, film in the others.",
    7: "head 7 listens, all but a little.",
}

head_hunt = Exercise(
    chapter="mask_gallery",
    name="head_hunt",
    minutes=8,
    difficulty=2,
    hints=(
        "Which heads look at the film at all? The sentence above the picture says it.",
        "Compare the four clips of one head. Does what is lit move with the sprite, or is it a "
        "whole frame, and which one?",
    ),
    verify=matching(_HEADS, _HEAD_CLUES, "head"),
    mistakes={
        "nearly the sprite": Mistake(lambda: {**_HEADS, "A": 2}, "half its weight is on other"),
        "swapped": Mistake(lambda: {**_HEADS, "A": 5, "B": 0}, "the ground is bright"),
        "some fusion": Mistake(lambda: {**_HEADS, "C": 6}, "fusion tokens in the first clip, film"),
        "a listener": Mistake(lambda: {**_HEADS, "B": 3}, "head 3 only listens"),
    },
)


# Gem: mask golf

GOLF = {"audio": 4, "video": 4, "fusion": 4}
PAR = 20


def _ball() -> Tensor:
    """18 cells: one video token reads all that is heard and seen, and fusion reads it."""
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[range(8), [0, 1, 2, 3, 4, 5, 6, 7]] = True  # a row may not be empty
    mask[4, :8] = True
    mask[4, 4] = False  # the residual stream carries it
    mask[8:, 4] = True
    return mask


def _cells(answer: Any) -> Any:
    return answer.dense() if isinstance(answer, Mask) else as_tensor(answer)


def _golf(answer: Any) -> str | None:
    answer = _cells(answer)
    if not isinstance(answer, Tensor) or answer.dtype != torch.bool or answer.shape != (12, 12):
        what = (
            f"{answer.dtype} of shape {tuple(answer.shape)}"
            if isinstance(answer, Tensor)
            else (type(answer).__name__)
        )
        return f"it returned {what}, wanted a boolean tensor of shape (12, 12)."
    empty = (~answer.any(1)).nonzero()[:, 0].tolist()
    if empty:
        return f"token {empty[0]} reads nothing. Softmax needs a key: every row needs a cell."
    reach = Reach(answer)
    first = reach.first(12)
    seen = first[:4, 4:8]
    if (seen < Reach.NEVER).any():
        layers = int(seen.min())
        return f"audio has seen video after {layers} layer{'s' * (layers != 1)}. " + (
            "Some audio row has a cell in a video column."
            if layers == 1
            else ("It came by another token: audio may read only what never sees video.")
        )
    missing = (first[8:, :8] > 2).nonzero()
    if len(missing):
        fusion, token = missing[0].tolist()
        group = "audio" if token < 4 else "video"
        if (first[8:, :8] <= 3).all():
            return "all reach fusion, but in three layers. Two are allowed."
        return f"fusion token {fusion} holds nothing of {group} token {token % 4} after 2 layers."
    cells = int(answer.sum())
    if cells > PAR:
        return f"it is a right mask of {cells} cells. {PAR} are enough."
    return None


def _scorecard(answer: Any) -> Figure:
    yours = _cells(answer)
    cells, best = int(yours.sum()), int(_ball().sum())
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.9), layout="constrained")
    draw(yours, GOLF, title=f"yours: {cells} cells", ax=left)
    if cells <= best:
        draw(_ball(), GOLF, title=f"the best known: {best} cells", ax=right)
    else:
        words = f"The best known has {best} cells.\n\nIt is drawn here\nwhen yours has no more."
        right.text(0.5, 0.5, words, ha="center", va="center", fontsize=12)
        bare(right)
    return figure


def _zorro() -> Tensor:
    return gallery.zorro(GOLF).dense()


def _paired() -> Tensor:
    """24 cells: tokens in pairs, and fusion reads one of each pair."""
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[range(8), [1, 0, 3, 2, 5, 4, 7, 6]] = True
    mask[8:, [0, 2, 4, 6]] = True
    return mask


def _changed(mask: Tensor, *cells: tuple[int, int], to: bool = True) -> Tensor:
    mask = mask.clone()
    for i, j in cells:
        mask[i, j] = to
    return mask


mask_golf = Exercise(
    chapter="mask_gallery",
    name="mask_golf",
    minutes=15,
    difficulty=3,
    hints=(
        "Start from 80 cells, Zorro's. Fusion has two layers, so it need not read everybody "
        "itself: somebody can collect in the first layer what fusion fetches in the second.",
        "Audio must not see video. Nobody said that video must not hear audio.",
    ),
    verify=_golf,
    mistakes={
        "zorro": Mistake(_zorro, "it is a right mask of 80 cells"),
        "pairs": Mistake(_paired, "it is a right mask of 24 cells"),
        "empty rows": Mistake(
            lambda: _changed(_ball(), (0, 0), to=False), "token 0 reads nothing. Softmax"
        ),
        "audio collects": Mistake(
            lambda: _changed(_zorro(), (0, 5)), "audio has seen video after 1 layer. Some audio row"
        ),
        "by way of fusion": Mistake(
            lambda: _changed(_ball(), (0, 8), (0, 0)), "It came by another token"
        ),
        "one forgotten": Mistake(
            lambda: _changed(_ball(), (4, 7), to=False),
            "fusion token 0 holds nothing of video token 3 after 2 layers",
        ),
        "a chain": Mistake(
            lambda: _changed(
                _changed(_ball(), *((row, 4) for row in (9, 10, 11)), to=False),
                *((row, 8) for row in (9, 10, 11)),
            ),
            "all reach fusion, but in three layers",
        ),
        "numbers": Mistake(lambda: _ball().float(), "wanted a boolean tensor of shape (12, 12)"),
    },
    picture=_scorecard,
)

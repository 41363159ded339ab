"""Notebook 05: cards of masks, the exercises, and mask golf."""

from collections.abc import Callable
from math import ceil
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from avlib import gallery
from avlib.attention_maps import READOUT, AttentionMaps
from avlib.course.exercise import Exercise, Mistake, matching
from avlib.plots import Places, bare, draw
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


def _window_by_loops(n: int) -> Tensor:
    rows = [[i - 3 <= j <= i for j in range(n)] for i in range(n)]
    return torch.tensor(rows)


def _tables(mask_mod: Any) -> Tensor:
    """What a mask function says for every pair, as FlexAttention would ask it."""
    return Mask(mask_mod, 8).dense()


def _window_is_right(mask_mod: Any) -> str | None:
    if not callable(mask_mod):
        return f"it returned {mask_mod!r:.60}, wanted a function of b, h, q_idx and kv_idx."
    found, wanted = _tables(mask_mod), _window_by_loops(8)
    if torch.equal(found, wanted):
        return None
    slips = {
        "It is on its side: q_idx reads kv_idx, so kv_idx lies before q_idx.": wanted.T,
        "It reads four before itself. From q_idx - 3 on are three, and q_idx makes four.": (
            _band(4, 0)
        ),
        "It reads two before itself. Is your comparison < where it should be <=?": _band(2, 0),
        "A token must read itself too.": _band(3, -1),
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
            "it rounds down. A step that is left over needs a layer of its own.",
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


# 3. Padding and causal order together


def _decoder_by_loops(real: Tensor) -> Tensor:
    batch, n = real.shape
    mask = torch.zeros(batch, n, n, dtype=torch.bool)
    for b in range(batch):
        for i in range(n):
            for j in range(n):
                mask[b, i, j] = j <= i and bool(real[b, j])
    return mask


def _order(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


_REAL = torch.tensor([[True] * 5, [True, True, False, True, False]])

padded_decoder = Exercise(
    chapter="mask_gallery",
    name="padded_decoder",
    minutes=6,
    difficulty=2,
    hints=(
        "Who is hidden: the reader that is padding, or the key? Nobody looks at what a padding "
        "token computes, so only one of the two matters.",
        "causal is (n, n), real is (b, n). Columns are keys: causal & real[:, None, :].",
    ),
    cases=[(_REAL,), (torch.tensor([[True, False], [True, True], [True, False]]),)],
    reference=_decoder_by_loops,
    mistakes={
        "rows": Mistake(
            lambda real: _order(real.shape[1]) & real[:, :, None],
            "it hides rows. A padding token may read what it likes; hide it where it is read, in "
            "its column.",
        ),
        "rows and columns": Mistake(
            lambda real: _order(real.shape[1]) & real[:, :, None] & real[:, None, :],
            "rows of padding read nothing now. Softmax over no keys can give NaN; hide columns "
            "alone.",
        ),
        "or": Mistake(
            lambda real: _order(real.shape[1]) | real[:, None, :],
            "a key is read when it is early *or* real. Both must hold: use &.",
        ),
        "polarity": Mistake(
            lambda real: _order(real.shape[1]) & ~real[:, None, :],
            "only padding is read. In this course True means *may read*.",
        ),
        "strictly before": Mistake(
            lambda real: _order(real.shape[1]).tril(-1) & real[:, None, :],
            "no token reads itself, and the first reads nothing. Let j <= i.",
        ),
        "the future": Mistake(
            lambda real: _order(real.shape[1]).T & real[:, None, :],
            "it reads what comes later. Row i is the reader: j <= i.",
        ),
        "no order": Mistake(
            lambda real: real[:, None, :].expand(-1, real.shape[1], -1),
            "it has no order in time: the causal part is missing.",
        ),
    },
)


# 4. Name the masks

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

CLIPS = 4


def heads_at_work() -> PictureSlider:
    """Where the global query of the trained Zorro looks in four clips, head by head."""
    model, _ = trained_zorro()
    world = World(CLIPS, seed=5)
    seen = []
    for example in world.__getitems__(range(CLIPS)):
        maps = AttentionMaps(model, audio=example.audio, video=example.video)
        assert maps.spectrogram is not None
        assert example.video is not None
        pictures = {"audio": maps.spectrogram, "video": example.video}
        seen.append((maps, Places(maps.readers(READOUT), maps.keys(READOUT), pictures)))

    def look(head: int) -> tuple[Figure, str]:
        figure, axes = plt.subplots(
            CLIPS, 3, figsize=(10, 5.2), width_ratios=[1.1, 4.5, 4.3], layout="constrained"
        )
        shares = []
        for (maps, places), row in zip(seen, axes, strict=True):
            (weights,) = maps.rows(READOUT, head, [3])
            shares.append([weights[span].sum() for span in maps.keys(READOUT).spans.values()])
            strips = places.rasters(weights / weights.max(), 3)
            for ax, strip in zip(row, strips, strict=True):
                ax.imshow(strip)
                bare(ax)
        for ax, name in zip(axes[0], ("A audio", "V video", "F fusion"), strict=True):
            ax.set_title(f"{name}, head {head}" if name[0] == "A" else name, fontsize=10)
        audio, video, fusion = (100 * torch.tensor(shares).mean(0)).tolist()
        return figure, (
            f"Head {head} of the global query gives {audio:.0f} % to audio, {video:.0f} % to video "
            f"and {fusion:.0f} % to fusion tokens, the mean of {CLIPS} clips."
        )

    return PictureSlider("head", range(model.pool.heads), look)


_HEADS = {"A": 0, "B": 5, "C": 4}
_HEAD_CLUES = {
    0: "head 0 looks at the patches of the sprite, in every clip.",
    1: "head 1 listens most of the time.",
    2: "head 2 looks at the film, and often at the sprite, but at other patches too.",
    3: "head 3 only listens.",
    4: "head 4 reads the fusion tokens more than anything else.",
    5: "head 5 looks at all of one or two frames: those in which the ground is bright.",
    6: "head 6 looks here and there: no group gets nearly all.",
    7: "head 7 listens, all but a little.",
}

head_hunt = Exercise(
    chapter="mask_gallery",
    name="head_hunt",
    minutes=8,
    difficulty=2,
    hints=(
        "Which heads look at the film at all? The sentence below the slider says it.",
        "Go through the clips of one head. Does what is lit move with the sprite, or is it a whole "
        "frame?",
    ),
    verify=matching(_HEADS, _HEAD_CLUES, "head"),
    mistakes={
        "nearly the sprite": Mistake(lambda: {**_HEADS, "A": 2}, "but at other patches too"),
        "swapped": Mistake(lambda: {**_HEADS, "A": 5, "B": 0}, "the ground is bright"),
        "some fusion": Mistake(lambda: {**_HEADS, "C": 6}, "looks here and there"),
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


def _golf(answer: Any) -> str | None:
    if isinstance(answer, Mask):
        answer = answer.dense()
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
    yours = answer.dense() if isinstance(answer, Mask) else answer
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    for ax, mask, name in ((axes[0], yours, "yours"), (axes[1], _ball(), "the best")):
        draw(mask, GOLF, title=f"{name}: {int(mask.sum())} cells", ax=ax)
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

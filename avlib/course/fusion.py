"""Notebook 07: the exercises, the loss floor, and the curves to tell apart."""

from collections.abc import Sequence
from math import log

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from avlib import plots
from avlib.course import results
from avlib.course.exercise import Exercise, Mistake, matching
from avlib.objective import matching_loss
from avlib.plots.style import ink_on
from avlib.trained import small_front_end
from avlib.world import FRAMES, SIZE, World

# 1. Modality dropout


def _drop_one_by_one(draws: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    keep_audio, keep_video = [], []
    for draw in draws.tolist():
        keep_audio.append(not draw < probability / 2)
        keep_video.append(not draw > 1 - probability / 2)
    return torch.tensor(keep_audio), torch.tensor(keep_video)


keep_modalities = Exercise(
    chapter="fusion",
    name="keep_modalities",
    minutes=6,
    difficulty=1,
    hints=(
        "Cut the line from 0 to 1 into three parts: lose the sound, lose nothing, lose the "
        "pictures. How long is each part?",
        "The sound is kept where a draw is at least probability / 2, and the pictures where it is "
        "at most 1 - probability / 2.",
    ),
    cases=[
        (torch.tensor([0.05, 0.3, 0.45, 0.7, 0.95]), 0.4),
        (torch.tensor([0.05, 0.3, 0.45, 0.7, 0.95]), 1.0),
        (torch.tensor([0.05, 0.3, 0.45, 0.7, 0.95]), 0.0),
    ],
    reference=_drop_one_by_one,
    returns=("keep_audio", "keep_video"),
    mistakes={
        "twice as often": Mistake(
            lambda draws, p: (draws >= p, draws <= 1 - p),
            "it loses each modality with the whole probability, so a clip can lose both. Each has "
            "half of it.",
        ),
        "what is lost": Mistake(
            lambda draws, p: (draws < p / 2, draws > 1 - p / 2),
            "it marks what is lost. True means that a clip keeps it.",
        ),
        "both at once": Mistake(
            lambda draws, p: (draws >= p / 2, draws >= p / 2),
            "the same clips lose both modalities. Take the pictures from the highest draws.",
        ),
        "exchanged": Mistake(
            lambda draws, p: (draws <= 1 - p / 2, draws >= p / 2),
            "sound and pictures are exchanged: the lowest draws lose the sound.",
        ),
        "three equal parts": Mistake(
            lambda draws, p: (draws >= 1 / 3, draws <= 2 / 3),
            "its three parts are equally long, whatever the probability is.",
        ),
        "numbers": Mistake(
            lambda draws, p: ((draws >= p / 2).float(), (draws <= 1 - p / 2).float()),
            "it returns numbers 0 and 1. Return booleans, as a comparison gives them.",
        ),
        "one only": Mistake(
            lambda draws, p: (draws >= p / 2, torch.ones_like(draws, dtype=torch.bool)),
            "the pictures are never lost.",
        ),
    },
)


def draw_keep_modalities() -> Axes:
    """The line from 0 to 1 in three parts, with three draws and what they keep."""
    probability, draws = 0.4, torch.tensor([0.1, 0.5, 0.9])
    ax = plots.canvas(None, 9, 2.2)
    edges = [0, probability / 2, 1 - probability / 2, 1]
    parts = {"V: sound lost": "video", "A and V": "fusion", "A: pictures lost": "audio"}
    for (words, group), start, end in zip(parts.items(), edges[:-1], edges[1:], strict=True):
        face = plots.colour(group)
        ax.add_patch(Rectangle((start, 0), end - start, 1, fc=face, ec="white", lw=3))
        middle = (start + end) / 2, 0.5
        ax.text(*middle, words, ha="center", va="center", weight="bold", color=ink_on(face))
    kept = zip(*_drop_one_by_one(draws, probability), strict=True)
    for draw, answers in zip(draws.tolist(), kept, strict=True):
        ax.plot(draw, 1.25, "v", color=plots.INK, ms=9)
        for y, answer in zip((2.4, 1.7), answers, strict=True):
            ax.text(draw, y, str(bool(answer)), ha="center", va="center")
    for y, name in ((2.4, "keep_audio"), (1.7, "keep_video"), (0.5, "draw")):
        ax.text(-0.02, y, name, ha="right", va="center", family="monospace")
    plots.bare(ax)
    ax.set(xlim=(-0.14, 1.02), ylim=(-0.05, 2.8), title=f"probability = {probability}")
    ax.set_xticks([i / 10 for i in range(11)])
    return ax


# 2. The contrastive loss


def _contrast_by_loops(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    losses = []
    for queries, keys in ((first, second), (second, first)):
        for i in range(len(queries)):
            scores = [float(queries[i] @ keys[j]) / temperature for j in range(len(keys))]
            losses.append(-scores[i] + log(sum(torch.tensor(scores).double().exp().tolist())))
    return torch.tensor(sum(losses) / len(losses))


def _one_way(scores: Tensor) -> Tensor:
    return -scores.log_softmax(1).diagonal().mean()


def _embedded() -> list[tuple[Tensor, Tensor, float]]:
    chance = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, n, 3, generator=chance) for n in (3, 4, 4)]
    pairs = [torch.nn.functional.normalize(draw, dim=-1) for draw in draws]
    return [(pair[0], pair[1], t) for pair, t in zip(pairs, (1.0, 0.5, 0.1), strict=True)]


contrast = Exercise(
    chapter="fusion",
    name="contrast",
    minutes=10,
    difficulty=2,
    hints=(
        "Which class is right for row i of the table of similarities? Then it is the cross-entropy "
        "that you know.",
        "scores = first @ second.T / temperature; the right class of row i is i: "
        "torch.arange(len(first)). Do the same with scores.T, and take the mean of both.",
    ),
    cases=_embedded(),
    reference=_contrast_by_loops,
    mistakes={
        "one way": Mistake(
            lambda a, b, t: _one_way(a @ b.T / t),
            "it lets sounds look for films. Films must look for their sound too: take the mean of "
            "both directions.",
        ),
        "the other way": Mistake(
            lambda a, b, t: _one_way(b @ a.T / t),
            "it lets films look for sounds. Sounds must look for their film too: take the mean of "
            "both directions.",
        ),
        "sum of both": Mistake(
            lambda a, b, t: 2 * matching_loss(a @ b.T / t),
            "it adds both directions. Take their mean.",
        ),
        "times temperature": Mistake(
            lambda a, b, t: matching_loss(a @ b.T * t),
            "it multiplies by the temperature. Divide.",
        ),
        "no temperature": Mistake(
            lambda a, b, t: matching_loss(a @ b.T),
            "it leaves out the temperature.",
        ),
        "no others": Mistake(
            lambda a, b, t: -(a * b).sum(1).mean() / t,
            "it only pulls what belongs together. Without the others in a softmax, giving "
            "everything the same embedding would be best.",
        ),
        "sign": Mistake(
            lambda a, b, t: -matching_loss(a @ b.T / t),
            "it is negative. Logarithms of probabilities are, so the loss takes the minus.",
        ),
        "sum over clips": Mistake(
            lambda a, b, t: len(a) * matching_loss(a @ b.T / t),
            "it adds up the clips. Take their mean.",
        ),
        "no mean": Mistake(
            lambda a, b, t: sum(
                -s.log_softmax(1).diagonal() / 2 for s in (a @ b.T / t, b @ a.T / t)
            ),
            "it returns a loss for each clip. Take their mean.",
        ),
        "transposed": Mistake(
            lambda a, b, t: matching_loss(a.T @ b / t),
            "it compares features with features. The table needs a row for each sound and a column "
            "for each film.",
        ),
        "one softmax": Mistake(
            lambda a, b, t: (
                -(a @ b.T / t).flatten().softmax(0).reshape(len(a), -1).diag().log().mean()
            ),
            "its softmax runs over the whole table. Each sound chooses among the films, and each "
            "film among the sounds.",
        ),
        "itself": Mistake(
            lambda a, b, t: matching_loss(a @ a.T / t),
            "it compares first with first. Sounds look for films.",
        ),
        "all pairs": Mistake(
            lambda a, b, t: -(a @ b.T / t).log_softmax(1).mean(),
            "it takes the mean over all pairs. Only those on the diagonal belong together.",
        ),
    },
)


# 3. The floor


def _floor_by_loops(instruments: Sequence[int]) -> float:
    total = 0.0
    for mine in instruments:
        candidates = 0
        for other in instruments:
            if other == mine:
                candidates += 1
        total += log(candidates)
    return total / len(instruments)


loss_floor = Exercise(
    chapter="fusion",
    name="loss_floor",
    minutes=8,
    difficulty=2,
    hints=(
        "A sound of instrument 2 looks for its film. Which films can be ruled out? The rest is a "
        "lottery: what is its loss?",
        "With k films of the same instrument the best is 1 / k for each, and the loss is log(k). "
        "Take the mean over all clips.",
    ),
    cases=[((0, 1, 2, 3),), ((0, 0, 1, 1),), ((0, 0, 0, 1, 2),), ((3, 3, 3, 3, 3, 3),)],
    reference=_floor_by_loops,
    mistakes={
        "knows nothing": Mistake(
            lambda instruments: log(len(instruments)),
            "it is the loss of a model that knows nothing. The instrument is heard and seen.",
        ),
        "knows all": Mistake(
            lambda instruments: 0.0,
            "two clips of one instrument cannot be told apart, so the loss cannot be 0.",
        ),
        "as in the world": Mistake(
            lambda instruments: log(len(instruments) / 4),
            "it supposes that each instrument comes equally often. Count them in this batch.",
        ),
        "mean of counts": Mistake(
            lambda instruments: log(
                sum(instruments.count(i) for i in instruments) / len(instruments)
            ),
            "it takes the logarithm of the mean. Take the mean of the logarithms.",
        ),
        "kinds": Mistake(
            lambda instruments: log(len(set(instruments))),
            "it counts kinds of instruments. What cannot be told apart are clips of the same one: "
            "count those.",
        ),
        "sum": Mistake(
            lambda instruments: _floor_by_loops(instruments) * len(instruments),
            "it adds up the clips. The loss is their mean.",
        ),
        "by instrument": Mistake(
            lambda instruments: (
                sum(log(instruments.count(i)) for i in set(instruments)) / len(set(instruments))
            ),
            "it gives each instrument the same weight. Take the mean over clips.",
        ),
        "bits": Mistake(
            lambda instruments: _floor_by_loops(instruments) / log(2),
            "it uses the logarithm to base 2. PyTorch's cross-entropy uses the natural one.",
        ),
    },
)


def floor_of(world: World, clips: Int[Tensor, " b"], *, instruments_only: bool = False) -> float:
    """The lowest contrastive loss that this batch allows to a model that keeps streams pure.

    The best score of a sound and a film is the logarithm of how much more often they come together
    than by chance (Oord et al. 2018, arXiv:1807.03748, section 2.3): 4 times for the same
    instrument and never otherwise, and 2 times where flash and click fall together, else 2/3.

    Args:
        world, clips: which clips are in the batch.
        instruments_only: for a model that knows nothing of click and flash.
    """
    of = {name: values[clips] for name, values in world.factors.items()}
    best = 4.0 * (of["instrument"][:, None] == of["instrument"]).double()
    if not instruments_only:
        best = best * torch.where(of["click"][:, None] == of["flash"], 2.0, 2 / 3)
    return float(matching_loss(best.log()))


# 4. Which curve cheats?

STORIES = {
    1: "as it should be, 64 clips at a time",
    2: "16 clips at a time",
    3: "the audio and the video readout read all streams",
    4: "a learning rate twenty times smaller",
    5: "each sound is paired with the film of another clip",
}
_CURVES = {"A": 2, "B": 3, "C": 4, "D": 1}
_RUNS = {
    1: "matching",
    2: "matching, 16 at a time",
    3: "matching, published readout",
    4: "matching, small steps",
}


_CLUES = {
    1: "with story 1 it begins at log(64) = 4.16, falls at once and ends near 2.8.",
    2: "with story 2 it begins at log(16) = 2.77.",
    3: "with story 3 it falls below the floor of its batch.",
    4: "with story 4 it begins at log(64) = 4.16 and falls slowly.",
    5: "with story 5 it stays at log(64) = 4.16: another clip's film tells nothing.",
}


def four_curves() -> dict[str, Float[Tensor, " points"]]:
    """Losses of four trainings, as `benchmarks/training.py` found them with the first seed."""
    return {letter: results.curve(_RUNS[number]) for letter, number in _CURVES.items()}


which_cheats = Exercise(
    chapter="fusion",
    name="which_cheats",
    minutes=6,
    difficulty=2,
    hints=(
        "A model that knows nothing has a loss of log(batch). So where does each curve begin?",
        "With 16 clips in a batch about 4 share an instrument, so its floor is near 1.5. Which "
        "curve falls below the floor of its own batch?",
    ),
    verify=matching(_CURVES, _CLUES, "curve"),
    mistakes={
        "lowest but one": Mistake(lambda: {**_CURVES, "A": 3, "B": 2}, _CLUES[3]),
        "lowest is right": Mistake(lambda: {**_CURVES, "B": 1, "D": 3}, "curve B is not 1"),
        "slow is small": Mistake(lambda: {**_CURVES, "A": 4, "C": 2}, _CLUES[4]),
        "a list": Mistake(lambda: [*_CURVES.values()], "wanted a dictionary"),
        "slow is shuffled": Mistake(lambda: {**_CURVES, "C": 5}, _CLUES[5]),
        "exchanged": Mistake(lambda: {**_CURVES, "C": 1, "D": 4}, _CLUES[1]),
    },
)


# 5. Where fusing costs more than encoding


def _break_even_by_trying(encode: float, fuse: float) -> int:
    n = 1
    while n * n * fuse <= 2 * n * encode:
        n += 1
    return n


break_even = Exercise(
    chapter="fusion",
    name="break_even",
    minutes=6,
    difficulty=2,
    hints=(
        "n sounds and n films: how many encodings, and how many pairs? Write down both costs.",
        "2·n·encode against n·n·fuse. Divide both by n: fusing costs more once n is above "
        "2·encode / fuse.",
    ),
    cases=[(10.0, 1.0), (3.0, 2.0), (1.0, 4.0), (5.0, 0.75)],
    reference=_break_even_by_trying,
    mistakes={
        "one modality": Mistake(
            lambda encode, fuse: int(encode / fuse) + 1,
            "it counts n encodings. There are n sounds and n films.",
        ),
        "equal": Mistake(
            lambda encode, fuse: max(1, int(-(-2 * encode // fuse))),
            "where both cost the same, fusing does not cost more yet. One more is needed.",
        ),
        "rounded down": Mistake(
            lambda encode, fuse: int(2 * encode / fuse),
            "it rounds down. With so many clips fusing does not cost more yet.",
        ),
        "each pair once": Mistake(
            lambda encode, fuse: int(4 * encode / fuse + 1) + 1,
            "it counts half of the pairs. Sound 1 with film 2 is another pair than sound 2 with "
            "film 1.",
        ),
        "no rounding": Mistake(
            lambda encode, fuse: 2 * encode / fuse,
            "that is where both cost the same. Return the next larger whole number of clips.",
        ),
        "n pairs": Mistake(
            lambda encode, fuse: 1 if fuse > 2 * encode else 0,
            "it counts n pairs. Every sound meets every film: n · n.",
        ),
        "root": Mistake(
            lambda encode, fuse: int((2 * encode / fuse) ** 0.5) + 1,
            "it takes a square root, but encoding grows with n too: divide both costs by n.",
        ),
    },
)


# Pictures


def best_films(
    world: World, scores: Float[Tensor, "sounds films"], sounds: Sequence[int], count: int = 5
) -> Figure:
    """For some sounds the films with the highest scores; the film that belongs to it is framed.

    Args:
        world: clip i is row i and column i of the scores.
        scores: of each sound with each film.
        sounds: which rows to show.
        count: of films.
    """
    spectrograms = small_front_end()(world.audio(torch.tensor(sounds)))
    figure, axes = plt.subplots(
        len(sounds),
        count + 1,
        figsize=(1.5 * count + 3, 1.5 * len(sounds)),
        width_ratios=[1.6, *[1] * count],
        layout="constrained",
        squeeze=False,
    )
    for row, sound, heard in zip(axes, sounds, spectrograms, strict=True):
        plots.spectrogram(heard, ax=row[0])
        row[0].set(xticks=[], ylabel=f"sound {sound}")
        films = scores[sound].topk(count).indices
        for ax, film, video in zip(row[1:], films.tolist(), world.video(films), strict=True):
            plots.picture(video[:, FRAMES // 2], ax=ax)
            ax.set_xlabel(f"film {film}" + (", its own" if film == sound else ""), fontsize=8)
            if film == sound:
                ax.add_patch(Rectangle((-0.5, -0.5), SIZE, SIZE, fill=False, ec=plots.FOCUS, lw=5))
    return figure

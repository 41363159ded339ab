"""A small audio-visual world in which every answer is known in advance.

A clip lasts one second. One hears a hum, a tone that rises or falls, and a click. One sees a sprite
that moves, and a flash. Seven factors decide what can be asked about; the rest (loudness, phase,
place, noise) is left to chance:

- heard: pitch of the hum, its instrument, rising or falling tone, quarter of the click
- seen: shape of the sprite, its instrument (as colour), left or right, quarter of the flash

The instrument is in both. Two labels are in neither alone, only in the combination:

- xor: the tone rises or falls, XOR the sprite moves left or right
- sync: click and flash fall in the same quarter, as they do in half of all clips
"""

import csv
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from math import tau
from operator import index
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from avlib.checks import check_counts
from avlib.data import Clip, save_clip
from avlib.examples import Example

SAMPLE_RATE, FPS, FRAMES, SIZE = 8000, 8, 8, 16  # a clip lasts one second

# Factor → how many values it takes.
HEARD = {"pitch": 4, "instrument": 4, "tone": 2, "click": 4}
SEEN = {"shape": 4, "instrument": 4, "motion": 2, "flash": 4}
FACTORS = {**HEARD, **SEEN}
LABELS = {**FACTORS, "xor": 2, "sync": 2}
# What `export` writes for each class, for a `ClipFolder` of few clips that lack some.
CLASSES = {name: tuple(map(str, range(classes))) for name, classes in LABELS.items()}

PITCHES = (220.0, 294.0, 392.0, 523.0)  # Hz
# For each instrument: loudness of its first four harmonics, and its colour (red, green, blue).
HARMONICS = ((4, 0, 0, 0), (2, 2, 0, 0), (2, 0, 2, 0), (1, 1, 1, 1))
COLOURS = ((1.0, 0.3, 0.2), (0.3, 0.9, 0.3), (0.3, 0.5, 1.0), (1.0, 0.9, 0.2))
LOW, HIGH = 2400.0, 3600.0  # Hz; the tone goes from one to the other in a second
SHAPES = (
    ("#####", "#####", "#####", "#####", "#####"),
    ("..#..", "..#..", "#####", "..#..", "..#.."),
    ("#...#", ".#.#.", "..#..", ".#.#.", "#...#"),
    ("#####", "#...#", "#...#", "#...#", "#####"),
)
_SPARE, _NOISE = 400, 50_000  # samples to begin at, in a sound and in noise


class World(Dataset[Example]):
    """Clips of this world: clip i is the same whenever and wherever it is made.

    All factors and all chance are drawn once, by the seed. A clip is then a function of its row, so
    nothing else is stored, and it does not matter which clips are made together.

    Args:
        clips: how many.
        seed: of all that is drawn; another seed gives other clips.

    Attributes:
        factors: name → value in each clip, (clips,).
        labels: the factors, and `xor` and `sync`.

    Raises:
        ValueError: clips is no positive whole number.
    """

    def __init__(self, clips: int, seed: int = 0) -> None:
        check_counts("World", clips=clips)
        chance = torch.Generator().manual_seed(seed)

        def whole(below: int) -> Int[Tensor, " n"]:
            return torch.randint(below, (clips,), generator=chance)

        def between(low: float, high: float) -> Float[Tensor, " n"]:
            return low + (high - low) * torch.rand(clips, generator=chance)

        self.factors = {name: whole(values) for name, values in FACTORS.items()}
        another = (self.factors["click"] + 1 + whole(3)) % 4
        self.factors["flash"] = torch.where(whole(2) == 1, self.factors["click"], another)
        self.labels = _labels(self.factors)
        self._hum_from, self._tone_from = whole(_SPARE), whole(_SPARE)
        self._hiss_from, self._grain_from = whole(_NOISE), whole(_NOISE)
        self._loudness = torch.stack(
            [between(0.15, 0.3), between(0.08, 0.15), between(0.25, 0.5)], 1
        )
        self._click_at = between(0.1, 0.8)  # of its quarter
        self._flash_at = whole(FRAMES // 4)  # frame of its quarter
        self._left, self._top = whole(SIZE), whole(SIZE - len(SHAPES[0]) + 1)

    def __len__(self) -> int:
        return len(self._left)

    def __getitem__(self, clip: int) -> Example:
        return self.__getitems__([range(len(self))[index(clip)]])[0]

    def __getitems__(self, clips: Sequence[int]) -> list[Example]:
        """Several at once, which is faster; a `DataLoader` asks so."""
        rows = torch.as_tensor(clips)
        labels = {name: values[rows].tolist() for name, values in self.labels.items()}
        return [
            Example(audio, video, {name: values[i] for name, values in labels.items()})
            for i, (audio, video) in enumerate(zip(self.audio(rows), self.video(rows), strict=True))
        ]

    def audio(self, clips: Int[Tensor, " b"]) -> Float[Tensor, "b samples"]:
        """What is heard in these clips, as waveforms in [-1, 1] at 8 kHz."""
        hums, tones, clicks, hiss = _sounds()
        pitch, instrument, tone, click = (self.factors[name][clips] for name in HEARD)
        before = ((click + self._click_at[clips]) * (SAMPLE_RATE / 4)).long()
        loudness = self._loudness[clips]
        return (
            loudness[:, :1] * hums[pitch, instrument, self._hum_from[clips]]
            + loudness[:, 1:2] * tones[tone, self._tone_from[clips]]
            + loudness[:, 2:] * clicks[SAMPLE_RATE - before]
            + 0.02 * hiss[self._hiss_from[clips]]
        )

    def video(self, clips: Int[Tensor, " b"]) -> Float[Tensor, "b c t y x"]:
        """What is seen in these clips, RGB in [0, 1]: 8 frames of 16 × 16 pixels."""
        shapes, grain = _sights()
        shape, instrument, motion, flash = (self.factors[name][clips] for name in SEEN)
        frame = torch.arange(FRAMES)
        bright = frame == (flash * (FRAMES // 4) + self._flash_at[clips])[:, None]
        # Where a pixel lies in the sprite, which leaves on one side and comes back on the other.
        left = self._left[clips, None] + frame * (2 * motion[:, None] - 1)
        x = (torch.arange(SIZE) - left[..., None]) % SIZE
        y = torch.arange(SIZE) - self._top[clips, None]
        inside = shapes[shape[:, None, None, None], y[:, None, :, None], x[:, :, None, :]]
        ground = 0.1 + 0.5 * bright.float()[:, None, :, None, None]
        ground = ground + 0.1 * grain[self._grain_from[clips]].unflatten(1, (3, FRAMES, SIZE, SIZE))
        colour = torch.tensor(COLOURS)[instrument][..., None, None, None]
        return torch.where(inside[:, None], colour, ground)

    def clip(self, clip: int, scale: int = 16) -> Clip:
        """One clip for people, its pixels enlarged to `scale` × `scale`."""
        row = torch.tensor([range(len(self))[index(clip)]])
        large = self.video(row)[0].repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        return Clip(large, self.audio(row)[0], float(FPS), SAMPLE_RATE)


@cache
def _sounds() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All sounds, one for each sample to begin at: hums, tones, clicks, and hiss in [-1, 1].

    They are views: row i of the last but one axis is a table from sample i on.
    """
    chance = torch.Generator().manual_seed(1)
    time = torch.arange(SAMPLE_RATE + _SPARE) / SAMPLE_RATE
    harmonic = torch.arange(1, len(HARMONICS[0]) + 1)
    waves = (tau * torch.tensor(PITCHES)[:, None, None] * harmonic[:, None] * time).sin()
    weights = torch.tensor(HARMONICS) / sum(HARMONICS[0])
    hums = torch.einsum("ih,phn->pin", weights, waves)
    rising = tau * (LOW * time + (HIGH - LOW) / 2 * time**2)
    falling = tau * (HIGH * time - (HIGH - LOW) / 2 * time**2)
    burst = torch.linspace(0, -4, SAMPLE_RATE // 16).exp()
    burst = burst * (2 * torch.rand(len(burst), generator=chance) - 1)
    silence = torch.zeros(SAMPLE_RATE)
    hiss = 2 * torch.rand(SAMPLE_RATE + _NOISE, generator=chance) - 1
    tables = hums, torch.stack([falling, rising]).sin(), torch.cat([silence, burst, silence]), hiss
    hums, tones, clicks, hiss = (table.unfold(-1, SAMPLE_RATE, 1) for table in tables)
    return hums, tones, clicks, hiss


@cache
def _sights() -> tuple[Tensor, Tensor]:
    """The shapes, each within an empty picture, and grain in [-1, 1], from each number on."""
    chance = torch.Generator().manual_seed(2)
    drawn = torch.tensor([[[dot == "#" for dot in row] for row in shape] for shape in SHAPES])
    shapes = torch.zeros(len(SHAPES), SIZE, SIZE, dtype=torch.bool)
    shapes[:, : drawn.shape[1], : drawn.shape[2]] = drawn
    numbers = 3 * FRAMES * SIZE * SIZE
    return shapes, (2 * torch.rand(numbers + _NOISE, generator=chance) - 1).unfold(0, numbers, 1)


def export(
    world: World, folder: str | Path, clips: Sequence[int] | None = None, *, scale: int = 16
) -> Path:
    """Write clips as mp4 files to watch and hear, and their labels as `labels.csv`.

    Args:
        world: whose clips.
        folder: made if it is not there; files of the same names are overwritten.
        clips: which ones; by default all.
        scale: each pixel becomes so many, squared.

    Returns:
        The path of `labels.csv`, for `ClipFolder`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    clips = range(len(world)) if clips is None else [range(len(world))[i] for i in clips]
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", *world.labels])
        for i in clips:
            name = f"{i:05}.mp4"
            save_clip(folder / name, world.clip(i, scale))
            table.writerow([name, *(int(values[i]) for values in world.labels.values())])
    return folder / "labels.csv"


class Cases(NamedTuple):
    """Everything that can happen, with how often it does: 4096 cases."""

    factors: dict[str, Int[Tensor, " cases"]]
    labels: dict[str, Int[Tensor, " cases"]]
    probability: Float[Tensor, " cases"]


def every_case() -> Cases:
    """All combinations of the factors, for questions about what can be known at best."""
    axes = [torch.arange(values) for values in FACTORS.values()]
    grid = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    factors = dict(zip(FACTORS, grid, strict=True))
    labels = _labels(factors)
    weight = 1.0 + 2.0 * labels["sync"].double()  # in sync as often as all the rest together
    return Cases(factors, labels, weight / weight.sum())


def joint(
    answers: str | Int[Tensor, " cases"], known: Collection[str]
) -> Float[Tensor, "situations classes"]:
    """How often each class comes together with all that someone observes, as parts of 1.

    Args:
        answers: a label's name, or the right class in each of `every_case()`.
        known: names of the factors that are observed: `HEARD` for a listener, `SEEN` for a
            spectator. A situation is one combination of their values.

    Raises:
        ValueError: an unknown name, or answers of another shape.
    """
    cases = every_case()
    if isinstance(answers, str):
        if answers not in cases.labels:
            raise ValueError(f"joint: no label {answers!r}; give one of {list(LABELS)}")
        answers = cases.labels[answers]
    if answers.shape != cases.probability.shape:
        raise ValueError(
            f"joint: answers have shape {tuple(answers.shape)}, wanted one for each of "
            f"{len(cases.probability)} cases; compute them from every_case().factors"
        )
    if unknown := set(known) - set(FACTORS):
        raise ValueError(f"joint: {sorted(unknown)} are no factors; give some of {list(FACTORS)}")
    situation = torch.zeros_like(answers)
    for name in known:
        situation = situation * FACTORS[name] + cases.factors[name]
    table = torch.zeros(int(situation.max()) + 1, int(answers.max()) + 1).double()
    return table.index_put_((situation, answers), cases.probability, accumulate=True)


def best_accuracy(answers: str | Int[Tensor, " cases"], known: Collection[str]) -> float:
    """How often the best guess is right for someone who observes these factors and no others.

    Chance is not always 1 / classes: who knows the click guesses the flash in half of all clips.
    The arguments are those of `joint`.
    """
    return round(float(joint(answers, known).amax(1).sum()), 12)  # so that certain is 1


def _labels(factors: Mapping[str, Int[Tensor, " n"]]) -> dict[str, Int[Tensor, " n"]]:
    return {
        **factors,
        "xor": factors["tone"] ^ factors["motion"],
        "sync": (factors["click"] == factors["flash"]).long(),
    }

"""What a small twin decoder writes in a world with known answers, and what it needs for that.

`python benchmarks/writing.py` trains the models of `RUNS` (about a quarter of an hour on two
cores). It writes the table `benchmarks/writing.md`, the results that notebook 08 draws, and the
weights that ship with `avlib`. A run that has ended is not repeated.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import mean
from time import perf_counter
from typing import Any

import torch
from common import markdown, publish, taken_on
from runs import completed, ship, spread
from torch import Tensor
from torch.utils.data import TensorDataset

from avlib import bounce
from avlib.course.results import WRITING
from avlib.nuwa import TwinDecoder
from avlib.trained import small_twin
from avlib.training import train
from avlib.writing import Writing

SEEDS = (0, 1, 2)
POINTS = 100  # of a curve are kept
TRAINING = {"steps": 2000, "batch_size": 16, "learning_rate": 2e-3}
TASK = Writing(text_dropout=0.1)
WANTED = {"predicted sound on impact": 0.95, "written frames": 0.8}
CORNER = ((2, 0), (2, 0), (2, 0))  # the window of `nuwa-pytorch` with kernel 3


@dataclass(frozen=True)
class Run:
    """One way to make the model."""

    model: Mapping[str, Any] = field(default_factory=dict)
    weights: bool = False
    seeds: tuple[int, ...] = SEEDS

    def settings(self) -> dict[str, Any]:
        """All of it as JSON can hold it, to tell whether a result is of this run."""
        return json.loads(json.dumps({"model": {**self.model}, **TRAINING, **TASK.settings()}))


RUNS = {
    "twin decoder": Run(weights=True),
    "towers that do not meet": Run({"cross_every": None}, seeds=SEEDS[:1]),
    "published windows": Run({"video_window": CORNER}, seeds=SEEDS[:1]),
}


def shares(model: TwinDecoder, texts: list[str]) -> dict[str, Any]:
    """What is right over all clips of some sentences: predicted, written freely, dubbed."""
    text, video, audio = bounce.clips(texts)
    with torch.no_grad():
        seen, heard = model(text=text, video=video, audio=audio)
    frames, sounds = (seen.argmax(-1) == video).flatten(2).all(2), heard.argmax(-1) == audio

    def written(**given: Tensor) -> tuple[Tensor, Tensor]:
        chance = torch.Generator().manual_seed(0)
        return bounce.right(text, *model.generate(text, generator=chance, progress=False, **given))

    free, free_sounds = written()
    begun, begun_sounds = written(video=video[:, :1])
    _, dubbed = written(video=video)
    hit = audio[..., 0] > 0
    return {
        "predicted frames": share(frames[:, 1:]),
        "predicted sound on impact": share(sounds[hit]),
        "predicted sound elsewhere": share(sounds[~hit]),
        "written frames": share(free),
        "written first frames": share(free[:, 0]),
        "written sounds of right frames": share(free_sounds[free]),
        "frames from the first on": share(begun[:, 1:]),
        "sounds of right frames": share(begun_sounds[begun]),
        "dubbed sound on impact": share(dubbed[hit]),
        "dubbed sound elsewhere": share(dubbed[~hit]),
        "written frames, one by one": [share(frame) for frame in free.T],
        "frames by direction": by_direction(texts, begun[:, 1:]),
    }


def by_direction(texts: list[str], frames: Tensor) -> dict[str, float]:
    """The share of frames that are right, for each way in which a square moves at first."""
    by_text = dict(zip(texts, frames.unflatten(0, (len(texts), -1)), strict=True))
    return {
        way: share(torch.stack(found))
        for way in bounce.DIRECTIONS
        if (found := [right for text, right in by_text.items() if text.endswith(f"moves {way}")])
    }


def share(right: Tensor) -> float:
    """How many of these are True."""
    return round(float(right.double().mean()), 4)


def result_of(name: str, seed: int) -> dict[str, Any]:
    """Train one model, and look at what it writes."""
    torch.set_num_threads(1)
    run = RUNS[name]
    torch.manual_seed(seed)
    model = small_twin(reversible=False, **run.model)
    learned = [text for text in bounce.sentences() if text not in bounce.HELD_OUT]
    data = TensorDataset(*bounce.clips(learned))
    began = perf_counter()
    history = train(model, data, TASK, seed=seed, progress=False, **TRAINING)
    seconds = perf_counter() - began
    if run.weights and seed == SEEDS[0]:
        ship(model, "writing", {"made by": "benchmarks/writing.py"})
    curve = history.losses.unflatten(0, (POINTS, -1)).mean(1)
    return {
        "run": name,
        "seed": seed,
        "settings": run.settings(),
        "seconds": round(seconds, 1),
        "held out": shares(model, [*bounce.HELD_OUT]),
        "learned": shares(model, learned),
        "curves": {
            term: [round(value, 4) for value in values]
            for term, values in zip(history.terms, curve.T.tolist(), strict=True)
        },
    }


def report(runs: list[dict[str, Any]]) -> Iterator[str]:
    """The text of `writing.md`."""
    by_name = {name: [run for run in runs if run["run"] == name] for name in RUNS}
    main = by_name["twin decoder"]
    least = {name: min(run["held out"][name] for run in main) for name in WANTED}
    targets = [
        [name, f"≥ {wanted}", f"{least[name]:.3f}", "met" if least[name] >= wanted else "missed"]
        for name, wanted in WANTED.items()
    ]
    shortest, longest = (pick(run["seconds"] for run in runs) for pick in (min, max))
    clips = len(bounce.HELD_OUT) * bounce.SIZE**2
    text = f"""# Writing

{taken_on(threads=1)}
- {sum(p.numel() for p in small_twin().parameters())} parameters, {TRAINING["steps"]} steps of \
{TRAINING["batch_size"]} clips, learning rate {TRAINING["learning_rate"]}; a run took \
{shortest:.0f} to {longest:.0f} s
- Of 32 sentences 4 are held out, with all their {clips} clips; each clip is written once, at \
temperature 1
- Cells: mean over the seeds (lowest to highest)

## Targets, lowest of the seeds, held-out sentences

{markdown(["", "wanted", "found", ""], targets)}
"""
    for name, found in by_name.items():
        rows = [
            [
                what,
                *(spread([run[which][what] for run in found]) for which in ("held out", "learned")),
            ]
            for what, value in found[0]["held out"].items()
            if isinstance(value, float)
        ]
        text += f"## {name}\n\n{markdown(['right', 'held out', 'learned'], rows)}\n"
    text += "## Written freely, held-out sentences: frames that are right\n\n"
    rows = [
        [name, *(f"{mean(frame):.2f}" for frame in zip(*kept, strict=True))]
        for name, found in by_name.items()
        for kept in [[run["held out"]["written frames, one by one"] for run in found]]
    ]
    text += markdown(["", *(f"frame {n}" for n in range(bounce.FRAMES))], rows)
    text += "\n## Frames from the first on, learned sentences: by direction at first\n\n"
    rows = [
        [name, *(f"{mean(run[way] for run in kept):.2f}" for way in bounce.DIRECTIONS)]
        for name, found in by_name.items()
        for kept in [[run["learned"]["frames by direction"] for run in found]]
    ]
    text += markdown(["", *bounce.DIRECTIONS], rows)
    yield text


if __name__ == "__main__":
    publish(report(completed(RUNS, WRITING, result_of, __doc__)), "writing")

"""What the readouts of a small Zorro learn in a world with known answers, and how that fails.

`python benchmarks/training.py` trains each model of `RUNS` with three seeds (about an hour on two
cores). It writes the table `benchmarks/training.md`, the results that the notebooks draw, and the
weights that ship with `avlib`. A run that has ended is not repeated: a second call trains what is
missing, or what was made with other settings.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch
from common import markdown, publish, taken_on
from runs import completed, ship, spread

from avlib.course import results
from avlib.course.results import RESULTS
from avlib.evaluation import evaluate
from avlib.masks import Visibility
from avlib.objective import Objective
from avlib.trained import small_zorro
from avlib.training import train
from avlib.world import LABELS, World

CLIPS, TEST_CLIPS = 100_000, 4000  # no clip is met twice
SEEDS = (0, 1, 2)
POINTS = 100  # of a curve are kept
STREAMS = ("audio", "video", "fusion")
ALL = Visibility(dict.fromkeys(STREAMS, "all"))
FREE = Visibility(dict.fromkeys((*STREAMS, "global"), "all"), STREAMS)
SLIP = Visibility({**FREE.reads, "fusion": "fusion"}, STREAMS)
FEEDBACK = Visibility({"audio": "audio", "video": ("video", "fusion"), "fusion": "all"})


@dataclass(frozen=True)
class Run:
    """One way to make and train a model; what it does not say is as in the first run."""

    objective: Objective = Objective(LABELS)  # noqa: RUF009
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    curve: str = "fusion xor"
    weights: str | None = None
    seeds: tuple[int, ...] = SEEDS

    def settings(self) -> dict[str, Any]:
        """All of it as JSON can hold it, to tell whether a result is of this run."""
        model = {
            name: str(rules) if isinstance(rules, Visibility) else rules
            for name, rules in self.model.items()
        }
        return json.loads(
            json.dumps(
                {
                    "objective": asdict(self.objective),
                    "model": model,
                    "training": {**TRAINING, **self.training},
                    "curve": self.curve,
                }
            )
        )


TRAINING = {"steps": 1500, "batch_size": 32, "learning_rate": 2e-3}
MATCHING: Any = {
    "objective": Objective(contrast=(("audio", "video"),)),
    "curve": "audio - video",
    "seeds": SEEDS[:1],
}
PAIRS = {"steps": 600, "batch_size": 64}
RUNS = {
    "Zorro": Run(weights="labels"),
    "xor alone": Run(Objective({"xor": 2})),
    "xor with tone and motion": Run(Objective({"tone": 2, "motion": 2, "xor": 2})),
    "no positions": Run(model={"positions": False}),
    "no mask": Run(model={"trunk": ALL, "readout": FREE}),
    "published readout": Run(model={"readout": SLIP}),
    "video reads fusion": Run(model={"trunk": FEEDBACK}),
    "modality dropout": Run(training={"modality_dropout": 0.3}, weights="modality_dropout"),
    "matching": Run(**MATCHING, training=PAIRS),
    "matching, published readout": Run(**MATCHING, training=PAIRS, model={"readout": SLIP}),
    "matching, 16 at a time": Run(**MATCHING, training={**PAIRS, "batch_size": 16}),
    "matching, small steps": Run(**MATCHING, training={**PAIRS, "learning_rate": 1e-4}),
}


def result_of(name: str, seed: int) -> dict[str, Any]:
    """Train one model, and ask it about clips that it never met."""
    torch.set_num_threads(1)
    run = RUNS[name]
    torch.manual_seed(seed)
    model = small_zorro(run.objective, **run.model)
    began = perf_counter()
    history = train(
        model,
        World(CLIPS, seed=100 + seed),
        run.objective,
        seed=seed,
        progress=False,
        **{**TRAINING, **run.training},
    )
    seconds = perf_counter() - began
    test = World(TEST_CLIPS, seed=200 + seed)
    asked = {
        f"without {left_out}" if left_out else "all": evaluate(
            model, test, run.objective, without=left_out
        )
        for left_out in ((None, "audio", "video") if run.weights else (None,))
    }
    if run.weights and seed == SEEDS[0]:
        facts = {"objective": asdict(run.objective), "made by": "benchmarks/training.py"}
        ship(model, run.weights, facts)
    curve = history[run.curve].unflatten(0, (POINTS, -1)).mean(1)
    return {
        "run": name,
        "seed": seed,
        "settings": run.settings(),
        "seconds": round(seconds, 1),
        "readouts": list(model.kinds),
        "labels": list(run.objective.labels),
        "right": {name: scores.right.tolist() for name, scores in asked.items()},
        "counted": {name: scores.counted.tolist() for name, scores in asked.items()},
        "curve": [round(value, 4) for value in curve.tolist()],
    }


# The table


def cells(runs: list[dict[str, Any]], clips: str = "all") -> dict[tuple[str, str], list[float]]:
    """(readout, label) → its accuracy with each seed."""
    tables = [results.scores_of(result, clips) for result in runs]
    return {
        (readout, label): [scores[readout, label] for scores in tables]
        for readout in tables[0].readouts
        for label in tables[0].labels
    }


def table(runs: list[dict[str, Any]], clips: str = "all") -> str:
    """Label by readout: the mean over seeds, and the lowest and the highest where they differ."""
    found = cells(runs, clips)
    readouts, labels = runs[0]["readouts"], runs[0]["labels"]

    rows = [[label, *(spread(found[readout, label]) for readout in readouts)] for label in labels]
    return markdown(["label", *readouts], rows)


def seconds_to_make(clips: int) -> float:
    """How long the clips of a world take, a batch at a time."""
    torch.set_num_threads(1)
    world = World(clips)
    world[0]  # makes the tables of sounds
    began = perf_counter()
    for rows in torch.arange(clips).split(64):
        world.__getitems__(rows.tolist())
    return perf_counter() - began


def report(runs: list[dict[str, Any]]) -> Iterator[str]:
    """The text of `training.md`."""
    by_name = {name: [run for run in runs if run["run"] == name] for name in RUNS}
    main = cells(by_name["Zorro"])
    off = max(
        abs(value - results.best(readout, label))
        for (readout, label), values in main.items()
        if readout in ("audio", "video")
        for value in values
    )
    least = min(
        value
        for (readout, label), values in main.items()
        if results.best(readout, label) == 1
        for value in values
    )
    shortest, longest = (pick(run["seconds"] for run in runs) for pick in (min, max))
    steps, size, rate = TRAINING.values()
    possible = [
        [label, *(f"{results.best(readout, label):.2f}" for readout in results.READS)]
        for label in LABELS
    ]
    targets = [
        [
            "audio and video readouts: furthest from what their modality allows",
            "≤ 0.03",
            f"{off:.3f}",
            "met" if off <= 0.03 else "missed",
        ],
        [
            "lowest accuracy of a readout that can know the label",
            "≥ 0.97",
            f"{least:.3f}",
            "met" if least >= 0.97 else "missed",
        ],
    ]
    text = f"""# Training

{taken_on(threads=1)}
- {CLIPS} clips of `avlib.world` to learn from, {TEST_CLIPS} others to be asked about
- {steps} steps of {size} clips, learning rate {rate}; a run took {shortest:.0f} to {longest:.0f} s
- 10,000 clips of the world are made in {seconds_to_make(10_000):.1f} s on one thread
- Cells: mean over {len(SEEDS)} seeds (lowest to highest)

## Targets

{markdown(["", "wanted", "found", ""], targets)}
## What each readout can know

{markdown(["best possible", *results.READS], possible)}
"""
    for name, found in by_name.items():
        for clips in found[0]["right"] if found[0]["labels"] else ():
            title = name if clips == "all" else f"{name}, {clips}"
            text += f"## {title}\n\n{table(found, clips)}\n"
    rows = [
        [
            name,
            found[0]["settings"]["curve"],
            *(f"{run['curve'][0]:.2f} → {run['curve'][-1]:.2f}" for run in found),
            *["–"] * (len(SEEDS) - len(found)),
        ]
        for name, found in by_name.items()
    ]
    text += "## Losses\n\nFirst and last hundredth of the steps.\n\n"
    text += markdown(["run", "loss", *(f"seed {seed}" for seed in SEEDS)], rows)
    yield text


if __name__ == "__main__":
    publish(report(completed(RUNS, RESULTS, result_of, __doc__)), "training")

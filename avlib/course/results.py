"""What was found by the benchmarks that train, and the words for a table of accuracies."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from avlib import plots
from avlib.evaluation import Scores
from avlib.world import FACTORS, HEARD, SEEN, best_accuracy

RESULTS = Path(__file__).with_name("training.json")
WRITING = Path(__file__).with_name("writing.json")  # of `benchmarks/writing.py`
READOUTS = ("audio", "video", "fusion")  # in the notebooks; the results have global too
READS = {"audio": HEARD, "video": SEEN, "fusion": FACTORS, "global": FACTORS}
SOLVED, MARGIN = 0.97, 0.04  # of 2000 clips, chance seldom moves an accuracy by so much


@cache
def found(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The results: one mapping for each training, see `benchmarks/training.py` or `writing.py`."""
    return json.loads(path.read_text(encoding="utf-8"))["runs"]


def of(run: str, path: Path = RESULTS) -> list[dict[str, Any]]:
    """The trainings of one name, seed by seed."""
    return [result for result in found(path) if result["run"] == run]


def seeds(run: str) -> list[int]:
    """With which seeds it was trained."""
    return [result["seed"] for result in of(run)]


def one(run: str, seed: int, path: Path = RESULTS) -> dict[str, Any]:
    """The training of one name and seed."""
    (result,) = (result for result in of(run, path) if result["seed"] == seed)
    return result


def scores_of(result: dict[str, Any], clips: str) -> Scores:
    """A training's table; `clips` is "all", "without audio" or "without video"."""
    right, counted = (torch.tensor(result[name][clips]) for name in ("right", "counted"))
    return Scores(tuple(result["readouts"]), tuple(result["labels"]), right, counted)


def scores(run: str, seed: int = 0, clips: str = "all") -> Scores:
    """The rows of `READOUTS` in one training's table."""
    return scores_of(one(run, seed), clips).only(*READOUTS)


def curve(run: str, seed: int = 0) -> Float[Tensor, " points"]:
    """The loss of one training, in as many steps as were kept."""
    return torch.tensor(one(run, seed)["curve"])


def every(run: str) -> int:
    """Steps from one value of its curve to the next."""
    result = of(run)[0]
    return result["settings"]["training"]["steps"] // len(result["curve"])


@cache
def best(readout: str, label: str) -> float:
    """How often a readout can be right at best, by what it may read."""
    return best_accuracy(label, READS[readout])


@cache
def chance(label: str) -> float:
    """How often someone is right who reads nothing."""
    return best_accuracy(label, ())


def word(accuracy: float, readout: str, label: str) -> str:
    """`solved`, `chance` (no better than one can be without what is missing), or `between`."""
    if accuracy >= SOLVED:
        return "solved"
    limit = best(readout, label)
    return "chance" if accuracy <= (limit if limit < 1 else chance(label)) + MARGIN else "between"


def words(scores: Scores) -> str:
    """The table of words, one row a label; it is the same on every machine."""
    return scores.table(word, width=9)


def draw(scores: Scores, *, title: str = "", frames: bool = True, ax: Axes | None = None) -> Axes:
    """The table of accuracies; `frames` mark what is better than it can be by what may be read."""
    limits = [[best(name, label) for label in scores.labels] for name in scores.readouts]
    least = [chance(label) for label in scores.labels]
    return plots.accuracies(
        scores.accuracy,
        scores.readouts,
        scores.labels,
        torch.tensor(limits),
        torch.tensor(least),
        margin=MARGIN,
        frames=frames,
        title=title,
        ax=ax,
    )

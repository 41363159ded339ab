"""Notebook 06: the bet, the exercises, and the tables to tell apart."""

from collections.abc import Callable, Mapping
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from avlib.course import results
from avlib.course.exercise import Exercise, Mistake, matching
from avlib.evaluation import Scores, answers
from avlib.examples import collate
from avlib.world import HEARD, LABELS, SEEN, World, best_accuracy, every_case, joint
from avlib.zorro import Zorro

# The bet


def bet_score(
    bets: Mapping[str, tuple[float, ...]], scores: Scores, readouts: tuple[str, ...]
) -> float:
    """How good a bet was: the mean squared distance from what came out (Brier 1950).

    0 is perfect, 0.25 is what "50 %" everywhere gives.

    Args:
        bets: label → for each readout, how sure one is, in %, that it will be solved.
        scores: what came out.
        readouts: in the order of the bets.
    """
    misses = []
    for label, row in bets.items():
        for readout, percent in zip(readouts, row, strict=True):
            if not 0 <= percent <= 100:
                raise ValueError(f"bet on {label}: got {percent}; give a number from 0 to 100")
            solved = results.word(scores[readout, label], readout, label) == "solved"
            misses.append((percent / 100 - solved) ** 2)
    return sum(misses) / len(misses)


# 1. The best guess

_JOINTS = [
    (torch.tensor([[0.25, 0.25], [0.25, 0.25]]),),
    (torch.tensor([[0.4, 0.1, 0.0], [0.0, 0.2, 0.3]]),),
    (torch.tensor([[0.1, 0.2], [0.3, 0.1], [0.0, 0.3]]),),
]


def _best_guess_by_loops(joint: Tensor) -> float:
    total = 0.0
    for row in joint.tolist():
        total += max(row)
    return total


best_guess = Exercise(
    chapter="training",
    name="best_guess",
    minutes=6,
    difficulty=1,
    hints=(
        "Take one row: you have observed this. Which class do you guess, and how often does it "
        "happen together with this row?",
        "A guess for each row, the largest entry in it. They are parts of one whole: add them.",
    ),
    cases=_JOINTS,
    reference=_best_guess_by_loops,
    mistakes={
        "one cell": Mistake(
            lambda joint: joint.max().item(),
            "it takes the largest entry of the whole table. There is a guess for each row.",
        ),
        "wrong axis": Mistake(
            lambda joint: joint.amax(0).sum().item(),
            "it takes the largest entry of each column. One observes the row and guesses the "
            "column: take the largest of each row.",
        ),
        "blind": Mistake(
            lambda joint: joint.sum(0).max().item(),
            "it adds up the rows first: that is the best guess of someone who observes nothing.",
        ),
        "diagonal": Mistake(
            lambda joint: joint.diagonal().sum().item(),
            "it guesses class i in row i. Which class is best in a row, the numbers say: take the "
            "largest.",
        ),
        "unweighted": Mistake(
            lambda joint: (joint.amax(1) / joint.sum(1)).mean().item(),
            "it gives all rows the same weight. Some are observed more often: do not divide by the "
            "sum of a row.",
        ),
        "mean": Mistake(
            lambda joint: joint.amax(1).mean().item(),
            "it takes the mean over rows. The entries are parts of one whole: add them.",
        ),
    },
)


# 2. The loss of a model that knows nothing


def _least_loss_by_loops(joint: Tensor) -> float:
    total = 0.0
    for row in joint.tolist():
        for p in row:
            if p > 0:
                total -= p * log(p / sum(row))
    return total


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-30).log()).sum()


least_loss = Exercise(
    chapter="training",
    name="least_loss",
    minutes=8,
    difficulty=2,
    hints=(
        "In one row, the best that a model can say is how often each class happens in that row. "
        "Cross-entropy is then the mean of minus the logarithm of what it said for the right one.",
        "For each entry p of a row with sum s the model says p / s. The entry adds "
        "-p · log(p / s), and 0 where p is 0.",
    ),
    cases=_JOINTS,
    reference=_least_loss_by_loops,
    mistakes={
        "joint": Mistake(
            lambda joint: _entropy(joint).item(),
            "it takes the logarithm of the entry itself. The row is observed: the model says "
            "p / s, with the sum s of the row.",
        ),
        "blind": Mistake(
            lambda joint: _entropy(joint.sum(0)).item(),
            "it is the loss of a model that observes nothing: the rows were added up first.",
        ),
        "bits": Mistake(
            lambda joint: _least_loss_by_loops(joint) / log(2),
            "it uses the logarithm to base 2. PyTorch's cross-entropy uses the natural one.",
        ),
        "of the guess": Mistake(
            lambda joint: -log(_best_guess_by_loops(joint)),
            "it takes the logarithm of how often the best guess is right. The mean of logarithms "
            "is wanted, over everything that can happen.",
        ),
        "no zeros": Mistake(
            lambda joint: -(joint * (joint / joint.sum(1, keepdim=True)).log()).sum().item(),
            "0 · log 0 came out as NaN. What never happens costs nothing: leave it out, or use "
            "clamp(min=1e-30) before the logarithm.",
        ),
        "sign": Mistake(
            lambda joint: -_least_loss_by_loops(joint),
            "it is negative. Logarithms of probabilities are, so the loss takes the minus.",
        ),
        "columns": Mistake(
            lambda joint: _least_loss_by_loops(joint.T),
            "it divides by the sums of columns. The row is observed: divide by the sum of the row.",
        ),
        "rows alike": Mistake(
            lambda joint: torch.stack([_entropy(row / row.sum()) for row in joint]).mean().item(),
            "it gives all rows the same weight. Weigh each by how often it is observed.",
        ),
    },
)


# 3. Read a leak off a table

STORIES = {
    1: "as it should be",
    2: "the audio and the video readout read all streams, as in the published model",
    3: "in the layers, video reads fusion",
    4: "no positions are added to the tokens",
    5: "in the layers, audio reads fusion",
}
_TABLES = {"A": 3, "B": 1, "C": 4, "D": 2}
_RUNS = {1: "Zorro", 2: "published readout", 3: "video reads fusion", 4: "no positions"}


_CLUES = {
    1: "with story 1 no readout knows what it must not, and each learns what it can.",
    2: "with story 2 both the audio and the video column know everything.",
    3: "with story 3 the video column knows everything, the audio column what is heard.",
    4: "with story 4 flash and sync suffer, and no column knows too much.",
    5: "with story 5 the audio column knows everything, the video column what is seen.",
}


def four_tables() -> dict[str, Scores]:
    """What four models answered, as `benchmarks/training.py` found it with the first seed."""
    return {letter: results.scores(_RUNS[number]) for letter, number in _TABLES.items()}


whose_table = Exercise(
    chapter="training",
    name="whose_table",
    minutes=8,
    difficulty=2,
    hints=(
        "First find the cells that should be at chance and are not. In which columns do they lie?",
        "A readout that reads too much knows everything. A stream that reads fusion knows "
        "everything too, but the other stream stays pure. Without positions nobody knows when.",
    ),
    verify=matching(_TABLES, _CLUES, "table"),
    mistakes={
        "columns": Mistake(lambda: {**_TABLES, "A": 5}, _CLUES[5]),
        "streams for readouts": Mistake(lambda: {**_TABLES, "A": 2, "D": 3}, _CLUES[2]),
        "no table is right": Mistake(lambda: {**_TABLES, "B": 4, "C": 1}, _CLUES[4]),
        "all solved is good": Mistake(lambda: {**_TABLES, "D": 1}, _CLUES[1]),
        "a list": Mistake(lambda: [*_TABLES.values()], "wanted a dictionary"),
    },
)


# 4. A label that only fusion can learn


def _only_fusion(answer: Any) -> str | None:
    """What is wrong with a label, given in every case; None if only fusion can know it."""
    cases = every_case()
    count = len(cases.probability)
    answer = torch.as_tensor(answer)
    if answer.shape != (count,):
        return (
            f"it returned shape {tuple(answer.shape)}, wanted one class for each clip: ({count},)."
        )
    classes = answer.long()
    if (classes != answer).any() or classes.min() < 0:
        return "its classes must be whole numbers, 0 or more."
    numbers, classes = classes.unique(return_inverse=True)  # some numbers may be left out
    overall = joint(classes, ()).flatten()
    if overall.max() > 1 - 1e-9:
        return "it gives all clips the same class, which everybody knows."
    for known, sense, alike in ((HEARD, "listen", "sound"), (SEEN, "watch", "look")):
        table = joint(classes, known)
        given = table / table.sum(1, keepdim=True)
        far = (given - overall).abs().amax(0)
        if far.max() > 1e-6:
            i = int(far.argmax())
            most = given[:, i][(given[:, i] - overall[i]).abs().argmax()]
            return (
                f"to {sense} is enough to know something: class {numbers[i]} comes in "
                f"{overall[i]:.0%} of all clips, but in {most:.0%} of those that {alike} as some "
                "clip does."
            )
    for name in ("xor", "sync"):
        pairs = set(zip(classes.tolist(), cases.labels[name].tolist(), strict=True))
        if len(pairs) == len(classes.unique()) == LABELS[name]:
            return f"it is {name} under another name. Invent another one."
    return None


my_label = Exercise(
    chapter="training",
    name="my_label",
    minutes=10,
    difficulty=3,
    hints=(
        "Take a factor that is only heard and one that is only seen. Which rule gives, for each "
        "value of the one, every class equally often?",
        "The remainder of a sum does it: (a + b) % 4 for two factors with four values each.",
    ),
    cases=[(every_case().factors,)],
    verify=_only_fusion,
    mistakes={
        "loud sum": Mistake(
            lambda factors: (factors["pitch"] + factors["shape"] > 3).long(),
            "to listen is enough to know something",
        ),
        "seen": Mistake(lambda factors: factors["shape"], "to watch is enough to know something"),
        "in both": Mistake(
            lambda factors: factors["instrument"], "to listen is enough to know something"
        ),
        "and": Mistake(
            lambda factors: factors["tone"] & factors["motion"],
            "to listen is enough to know something",
        ),
        "xor again": Mistake(
            lambda factors: (factors["tone"] == factors["motion"]).long(),
            "it is xor under another name",
        ),
        "sync again": Mistake(
            lambda factors: (factors["click"] == factors["flash"]).long(),
            "it is sync under another name",
        ),
        "below 0": Mistake(
            lambda factors: factors["pitch"] - factors["shape"], "whole numbers, 0 or more"
        ),
        "one for all": Mistake(
            lambda factors: (factors["pitch"] + factors["shape"]).sum() % 4,
            "wanted one class for each clip",
        ),
        "constant": Mistake(lambda factors: 0 * factors["tone"], "all clips the same class"),
    },
)


def show_label(function: Callable[[Mapping[str, Tensor]], Any], model: Zorro) -> None:
    """Whether a label can be read off what each readout of a trained model gives.

    A small network is trained on the outputs of each readout for 3000 clips, and asked about 1000
    others. The model itself does not change.
    """
    said = my_label.judge(function)
    if not said.startswith("✓"):
        print(said)
        return

    def classes(factors: Mapping[str, Tensor]) -> Tensor:
        """From 0 up, whatever kind of numbers the function returns."""
        return torch.as_tensor(function(factors)).unique(return_inverse=True)[1]

    world = World(4000, seed=7)
    labels = classes(world.factors)
    with torch.no_grad():
        parts = [
            answers(model, collate(world.__getitems__(part.tolist())))[0]
            for part in torch.arange(len(world)).split(500)
        ]
    outputs = torch.cat(parts)
    cases = every_case()
    print(f"who knows nothing: {best_accuracy(classes(cases.factors), ()):.2f}")
    for i, readout in enumerate(model.kinds):
        print(f"{readout:6} readout:    {_probe(outputs[:, i], labels):.2f}")


def _probe(features: Tensor, labels: Tensor, train: int = 3000) -> float:
    """The accuracy of a small network that reads the labels off the features, on clips held out."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = (features - features.mean(0)) / (features.std(0) + 1e-6)
        probe = nn.Sequential(
            nn.Linear(features.shape[1], 128), nn.GELU(), nn.Linear(128, int(labels.max()) + 1)
        )
        optimizer = torch.optim.AdamW(probe.parameters(), 3e-3, weight_decay=0.1)
        for step in range(400):
            rows = torch.arange(step * 500, (step + 1) * 500) % train
            loss = nn.functional.cross_entropy(probe(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return float((probe(features[train:]).argmax(1) == labels[train:]).float().mean())

"""How often each readout names each label right."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avlib.examples import MODALITIES, UNKNOWN, Example, collate
from avlib.objective import Objective, answers
from avlib.zorro import Zorro


@dataclass(frozen=True)
class Scores:
    """Right answers of each readout, label by label.

    Attributes:
        readouts, labels: names of the rows and the columns.
        right: how many answers were right.
        counted: clips whose label is known and whose readout had something to read.
    """

    readouts: tuple[str, ...]
    labels: tuple[str, ...]
    right: Int[Tensor, "readouts labels"]
    counted: Int[Tensor, "readouts labels"]

    @property
    def accuracy(self) -> Float[Tensor, "readouts labels"]:
        """The share that was right; NaN where nothing was counted."""
        return self.right.double() / self.counted

    def __getitem__(self, cell: tuple[str, str]) -> float:
        """The accuracy of one readout and label: `scores["audio", "pitch"]`."""
        readout, label = cell
        if readout not in self.readouts or label not in self.labels:
            raise ValueError(
                f"Scores: no cell {cell}; give one of the readouts {list(self.readouts)} and one "
                f"of the labels {list(self.labels)}"
            )
        return float(self.accuracy[self.readouts.index(readout), self.labels.index(label)])

    def only(self, *readouts: str) -> "Scores":
        """The rows of these readouts, in this order."""
        rows = [self.readouts.index(name) for name in readouts]
        return Scores(readouts, self.labels, self.right[rows], self.counted[rows])

    def table(self, cell: Callable[[float, str, str], str], width: int = 8) -> str:
        """A row for each label, with what `cell` says of (accuracy, readout, label)."""
        first = max(map(len, self.labels), default=0) + 2
        lines = [" " * first + "".join(name.rjust(width) for name in self.readouts)]
        for label, column in zip(self.labels, self.accuracy.T.tolist(), strict=True):
            cells = map(cell, column, self.readouts, [label] * len(column))
            lines.append(label.ljust(first) + "".join(text.rjust(width) for text in cells))
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table(lambda value, *_: "–" if value != value else f"{value:.3f}")


@torch.no_grad()
def evaluate(
    model: Zorro,
    data: Dataset[Example],
    objective: Objective,
    *,
    without: str | None = None,
    batch_size: int = 250,
    workers: int = 0,
    progress: bool = False,
) -> Scores:
    """Ask every readout about every label, over all clips.

    Args:
        model: it answers in eval mode, and is left in the mode that it had.
        data: a dataset of known length.
        objective: the one that it was trained with.
        without: a modality that is left out of all clips.
        batch_size: clips at a time.
        workers: processes that load data.
        progress: show a bar.

    Raises:
        ValueError: a model with other outputs than the objective, clips without one of its labels
            or of a class that there is not, or no modality of that name.
    """
    from tqdm.auto import tqdm  # not before it is needed: in a notebook it loads ipywidgets

    objective.check_model(model)
    device = model.fusion_tokens.device
    right = torch.zeros(len(model.kinds), len(objective.labels), dtype=torch.long, device=device)
    counted = torch.zeros_like(right)
    loader: DataLoader[Example] = DataLoader(
        data,
        batch_size,
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator(),  # else it would draw from the caller's
    )
    mode = model.training
    model.eval()
    try:
        for batch in tqdm(loader, unit="batch", disable=not progress):
            objective.check_labels(batch.labels)
            if without is not None:
                if not any(batch.has(name).any() for name in MODALITIES if name != without):
                    continue  # nobody has anything to read
                batch = batch.without(without)
            batch = batch.to(device)
            outputs, readable = answers(model, batch)
            for column, (label, logits) in enumerate(objective.logits(outputs).items()):
                wanted = batch.labels[label][:, None]
                known = readable & (wanted != UNKNOWN)
                right[:, column] += ((logits.argmax(-1) == wanted) & known).sum(0)
                counted[:, column] += known.sum(0)
    finally:
        model.train(mode)
    return Scores(model.kinds, tuple(objective.labels), right.cpu(), counted.cpu())

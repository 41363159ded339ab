"""What a training does at each step, as far as numbers decide it: rate, clips, what is left out."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import cos, pi
from numbers import Integral, Real
from zlib import crc32

import torch
from jaxtyping import Float
from torch import Tensor

from avlib.checks import check_counts, check_positive
from avlib.examples import Batch

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Plan:
    """All numbers that the weights depend on, but for the data and the machine; see `train`."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    clip: float
    modality_dropout: float
    precision: str
    seed: int
    processes: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if hasattr(value, "item"):  # a number of NumPy, which no checkpoint can hold
                object.__setattr__(self, name, value.item())

    def rate(self, step: int) -> float:
        """The learning rate: up in a straight line, then down along half a cosine."""
        rising = self.warmup * self.steps
        if step < rising:
            return self.learning_rate * (step + 1) / (rising + 1)
        return self.learning_rate * (1 + cos(pi * (step - rising) / (self.steps - rising))) / 2

    def chance(self, purpose: str, number: int) -> torch.Generator:
        """A source of chance for one purpose and one step or epoch, the same in every process."""
        return torch.Generator().manual_seed(crc32(f"{self.seed} {purpose} {number}".encode()))

    def draws(self, purpose: str, step: int, rank: int) -> Float[Tensor, " b"]:
        """A random number in [0, 1) for each clip that a process takes in a step."""
        whole = torch.rand(self.batch_size, generator=self.chance(purpose, step))
        return whole.chunk(self.processes)[rank]

    def order(self, clips: int, start: int, rank: int) -> Iterator[list[int]]:
        """Which clips a process takes in each step: shuffled epochs one after another."""
        share = self.batch_size // self.processes
        epoch, shuffled = -1, []
        for step in range(start, self.steps):
            first = step * self.batch_size + rank * share
            batch = []
            for place in range(first, first + share):
                if place // clips != epoch:
                    epoch = place // clips
                    shuffled = torch.randperm(clips, generator=self.chance("order", epoch)).tolist()
                batch.append(shuffled[place % clips])
            yield batch

    def drop_modalities(self, batch: Batch, step: int, rank: int) -> Batch:
        """Leave sound or pictures out of some clips."""
        if not self.modality_dropout:
            return batch
        draw = self.draws("modalities", step, rank)
        silent, blind = draw < self.modality_dropout / 2, draw > 1 - self.modality_dropout / 2
        return batch.dropping({"audio": silent, "video": blind})

    def check(self, clips: int) -> None:
        """Refuse numbers that make no sense, or do not fit so many clips."""
        check_counts("train", steps=self.steps, batch_size=self.batch_size)
        check_positive("train", learning_rate=self.learning_rate, clip=self.clip)
        for name, kind, wanted, fine in (
            ("warmup", Real, "a share in [0, 1)", lambda x: 0 <= x < 1),
            ("weight_decay", Real, "a number, 0 or more", lambda x: x >= 0),
            ("modality_dropout", Real, "a probability in [0, 1]", lambda x: 0 <= x <= 1),
            ("precision", str, f"one of {PRECISIONS}", lambda x: x in PRECISIONS),
            ("seed", Integral, "a whole number from 0 to 2**63 - 1", lambda x: 0 <= x < 2**63),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind) or not fine(value):
                raise ValueError(f"train: {name} is {value!r}; give {wanted}")
        if not clips:
            raise ValueError("train: data has no clips; give some")
        if self.batch_size > clips:
            raise ValueError(
                f"train: batch_size {self.batch_size} is more than the {clips} clips; give {clips} "
                "or less"
            )
        if self.batch_size % self.processes:
            raise ValueError(
                f"train: batch_size {self.batch_size} does not divide by {self.processes} "
                f"processes; give a multiple of {self.processes}"
            )

"""Training that can be stopped at any moment, on one process or on several."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import cos, pi
from numbers import Integral, Real
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset

from avlib.checkpoint import check_writable, load_tensors, save_tensors
from avlib.checks import check_counts, check_positive
from avlib.evaluation import answers
from avlib.examples import Batch, Example, collate
from avlib.objective import Objective
from avlib.processes import from_all, gather, gather_fixed, meet
from avlib.zorro import Zorro

PRECISIONS = ("float32", "bfloat16")
LOOK_EVERY = 20  # steps; looking at a loss makes a GPU wait


@dataclass(frozen=True)
class History:
    """The losses of a training.

    Attributes:
        terms: their names, see `Objective.terms`.
        losses: each of them at each step.
    """

    terms: tuple[str, ...]
    losses: Float[Tensor, "steps terms"]

    @property
    def total(self) -> Float[Tensor, " steps"]:
        """What was minimised."""
        return self.losses.sum(1)

    def __getitem__(self, term: str) -> Float[Tensor, " steps"]:
        if term not in self.terms:
            raise ValueError(f"History: no term {term!r}; give one of {list(self.terms)}")
        return self.losses[:, self.terms.index(term)]


@dataclass(frozen=True)
class _Plan:
    """All numbers that the weights depend on, but for the data and the machine."""

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
        draw = torch.rand(self.batch_size, generator=self.chance("modalities", step))
        draw = draw.chunk(self.processes)[rank]
        silent, blind = draw < self.modality_dropout / 2, draw > 1 - self.modality_dropout / 2
        return batch.dropping({"audio": silent, "video": blind})


def train(
    model: Zorro,
    data: Dataset[Example],
    objective: Objective,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    warmup: float = 0.05,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    modality_dropout: float = 0.0,
    precision: str = "float32",
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    workers: int = 0,
    progress: bool = True,
) -> History:
    """Train a model in place, by AdamW under a cosine schedule.

    With a checkpoint, training may be stopped at any moment. Called again with the same arguments
    it goes on from the last checkpoint, and ends with the very weights that it would have reached
    without the stop (on the same machine with as many threads; unless the data themselves are
    random). A training that has ended is not repeated: its weights are loaded.

    Under `torchrun` each process takes its part of every batch, and the gradients are those of one
    process with the whole batch: outputs are gathered before a loss is computed, so that
    contrastive losses see the whole batch too.

    Args:
        model: made with `num_classes=objective.num_outputs`, on the device to train on. Afterwards
            it is in eval mode.
        data: a dataset of known length, such as `World` or `ClipFolder`.
        objective: what to learn.
        steps: of the optimizer; the schedule falls to 0 over all of them.
        batch_size: clips in a step, over all processes. The rest of an epoch begins the next batch.
        learning_rate: at the highest.
        warmup: share of the steps, in [0, 1), in which the rate rises.
        weight_decay: of matrices; vectors, tokens and tables of positions have none.
        clip: the largest norm of all gradients together.
        modality_dropout: probability, in [0, 1], that a clip loses its sound or its pictures, one
            as likely as the other. What a clip has alone it keeps.
        precision: "float32", or "bfloat16" for autocast; weights stay in float32.
        seed: of the clips' order and of all dropout; 0 or more, below 2⁶³.
        checkpoint: a safetensors file to keep the state in. All processes must see it.
        checkpoint_every: steps from one to the next.
        workers: processes that load data; 0 for this one.
        progress: show a bar.

    Returns:
        The losses, from the first step on.

    Raises:
        TypeError: data without a length.
        ValueError: a number out of range; a batch larger than the data or that does not divide by
            the processes; a model with other outputs, in half precision, or all frozen; clips
            without a label that is asked for; a checkpoint that is damaged or of another training.
        OSError: there can be no checkpoint of that name.
        FloatingPointError: a loss or a gradient is no finite number.
    """
    from tqdm.auto import tqdm  # not before it is needed: in a notebook it loads ipywidgets

    device = model.fusion_tokens.device
    rank, processes = meet(device)
    plan = _Plan(
        steps,
        batch_size,
        learning_rate,
        warmup,
        weight_decay,
        clip,
        modality_dropout,
        precision,
        seed,
        processes,
    )
    clips = _length(data)
    _check(plan, model, clips, objective, checkpoint_every)
    terms = objective.terms(model.kinds)
    losses = torch.zeros(steps, len(terms), device=device)
    norms = torch.zeros(steps, 1, device=device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Labels are learned one after another: 0.999 would remember the first, steep ones too long.
    optimizer = AdamW(_groups(model, weight_decay), learning_rate, betas=(0.9, 0.95))
    settings = {
        **asdict(plan),
        "clips": clips,
        "terms": list(terms),
        "classes": [int(number) for number in objective.labels.values()],
        "temperature": float(objective.temperature),
    }
    state = _State(model, optimizer, losses, settings, rank)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + rank)
        start = 0
        if checkpoint is not None and Path(checkpoint).is_file():
            start = state.load(checkpoint)
        if checkpoint is not None and start < steps:
            check_writable(checkpoint)
        if len(set(starts := from_all(start))) > 1:
            raise ValueError(
                f"train: the processes go on from steps {starts}, wanted one step; keep the "
                "checkpoint where all of them see it"
            )
        parallel: nn.Module = model
        if processes > 1:
            read = {name for kind in model.kinds for name in model.promise.reads[kind]}
            unused = read < {*model.promise.keys}
            parallel = DistributedDataParallel(model, find_unused_parameters=unused)
        loader: Any = DataLoader(
            data,
            batch_sampler=plan.order(clips, start, rank),
            collate_fn=collate,
            num_workers=workers,
            # Seeds the workers. Without it the generator that is saved would be drawn from.
            generator=plan.chance(f"workers {rank}", start),
        )
        shown = progress and rank == 0
        bar = tqdm(total=steps, initial=start, unit="step", disable=not shown)
        with _in_training(model), bar:
            for step, batch in enumerate(loader, start):
                objective.check_labels(batch.labels)
                batch = plan.drop_modalities(batch, step, rank).to(device)
                for group in optimizer.param_groups:
                    group["lr"] = plan.rate(step)
                with torch.autocast(device.type, torch.bfloat16, precision == "bfloat16"):
                    outputs, readable = answers(model, batch, parallel)
                found = objective.losses(
                    gather(outputs.to(torch.promote_types(outputs.dtype, torch.float32))),
                    {name: gather_fixed(label) for name, label in batch.labels.items()},
                    model.kinds,
                    gather_fixed(readable),
                )
                optimizer.zero_grad()
                found.sum().backward()
                norms[step] = nn.utils.clip_grad_norm_(parameters, clip)
                optimizer.step()

                losses[step] = found.detach()
                done = step + 1
                due = checkpoint is not None and (done % checkpoint_every == 0 or done == steps)
                if due or done % LOOK_EVERY == 0 or done == steps:
                    _check_finite(losses, norms, max(0, done - LOOK_EVERY), done, terms)
                    bar.set_postfix(loss=f"{losses[step].sum():.3f}", refresh=False)
                if due and checkpoint is not None:
                    state.save(checkpoint, done)
                bar.update()
        optimizer.zero_grad()  # the next backward pass of the caller must not add to these
    return History(terms, losses.cpu())


@contextmanager
def _in_training(model: nn.Module) -> Iterator[None]:
    """Training mode, and eval mode afterwards, also when one is interrupted."""
    model.train()
    try:
        yield
    finally:
        model.eval()


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices of linear layers decay; vectors, tokens and tables of positions do not."""
    decaying = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) in decaying], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in decaying], "weight_decay": 0.0},
    ]


@dataclass
class _State:
    """All that a training goes on from: weights, optimizer, chance, and the losses so far."""

    model: nn.Module
    optimizer: AdamW
    losses: Tensor
    settings: dict[str, Any]
    rank: int

    def save(self, path: str | os.PathLike[str], step: int) -> None:
        """Write it, for all processes; the first one holds the pen."""
        tensors = {"losses": self.losses}
        for rank, states in enumerate(from_all(self._draws())):
            tensors |= {f"random.{rank}.{name}": state for name, state in states.items()}
        tensors |= {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for i, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in entry.items()}
        if self.rank == 0:
            save_tensors(path, tensors, {"settings": self.settings, "step": step})
        from_all(None)  # no process goes on, perhaps to read it, before it is there

    def load(self, path: str | os.PathLike[str]) -> int:
        """Go back to what was saved; the number of steps that were done."""
        tensors, facts = load_tensors(path)
        settings, step = facts.get("settings"), facts.get("step")
        if not isinstance(settings, dict) or not isinstance(step, int):
            raise ValueError(
                f"train: {str(path)!r} is no checkpoint of a training; name another file"
            )
        if settings != self.settings:
            names = sorted(settings.keys() | self.settings.keys())
            differing = [
                f"{name} {settings.get(name)} (now {self.settings.get(name)})"
                for name in names
                if settings.get(name) != self.settings.get(name)
            ]
            raise ValueError(
                f"train: the checkpoint {str(path)!r} was made with {', '.join(differing)}; give "
                "the same, or name another file"
            )
        if not 0 <= step <= len(self.losses):
            raise ValueError(
                f"train: the checkpoint {str(path)!r} is of step {step}, wanted 0 to "
                f"{len(self.losses)}; name another file"
            )
        self._check(path, tensors)
        draws = _under(f"random.{self.rank}.", tensors)
        torch.set_rng_state(draws["cpu"])
        if "cuda" in draws:
            torch.cuda.set_rng_state(draws["cuda"], self.losses.device)
        self.model.load_state_dict(_under("model.", tensors))
        remembered: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer.", tensors).items():
            number, entry = name.split(".")
            remembered.setdefault(int(number), {})[entry] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": remembered, "param_groups": groups})
        self.losses.copy_(tensors["losses"])
        return step

    def _draws(self) -> dict[str, Tensor]:
        """The states of the generators that dropout draws from."""
        device = self.losses.device
        cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
        return {"cpu": torch.get_rng_state(), **cuda}

    def _check(self, path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
        """Refuse tensors of another training, before any of them is taken over."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        wanted = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        wanted |= {f"random.{self.rank}.{name}": t for name, t in self._draws().items()}
        wanted |= {"losses": self.losses}
        for i, parameter in enumerate(parameters):
            if f"optimizer.{i}.step" in tensors:  # else it never had a gradient
                moments = {"exp_avg": parameter, "exp_avg_sq": parameter, "step": torch.zeros(())}
                wanted |= {f"optimizer.{i}.{name}": tensor for name, tensor in moments.items()}
        others = {name for name in tensors if name.startswith("random.")}
        for name in sorted(wanted.keys() | tensors.keys() - others):
            found, like = tensors.get(name), wanted.get(name)
            kinds = [
                "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
                for tensor in (found, like)
            ]
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"train: the checkpoint {str(path)!r} has {kinds[0]} for {name!r}, wanted "
                    f"{kinds[1]}; it is of another model, name another file"
                )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def _length(data: Any) -> int:
    if not hasattr(data, "__len__"):
        raise TypeError(
            f"train: data is a {type(data).__name__} without a length; give a dataset with "
            "__len__ and __getitem__"
        )
    return len(data)


def _check(
    plan: _Plan, model: Zorro, clips: int, objective: Objective, checkpoint_every: int
) -> None:
    check_counts(
        "train",
        steps=plan.steps,
        batch_size=plan.batch_size,
        checkpoint_every=checkpoint_every,
    )
    check_positive("train", learning_rate=plan.learning_rate, clip=plan.clip)
    for name, kind, wanted, fine in (
        ("warmup", Real, "a share in [0, 1)", lambda x: 0 <= x < 1),
        ("weight_decay", Real, "a number, 0 or more", lambda x: x >= 0),
        ("modality_dropout", Real, "a probability in [0, 1]", lambda x: 0 <= x <= 1),
        ("precision", str, f"one of {PRECISIONS}", lambda x: x in PRECISIONS),
        ("seed", Integral, "a whole number from 0 to 2**63 - 1", lambda x: 0 <= x < 2**63),
    ):
        value = getattr(plan, name)
        if not isinstance(value, kind) or not fine(value):
            raise ValueError(f"train: {name} is {value!r}; give {wanted}")
    if not clips:
        raise ValueError("train: data has no clips; give some")
    if plan.batch_size > clips:
        raise ValueError(
            f"train: batch_size {plan.batch_size} is more than the {clips} clips; give {clips} or "
            "less"
        )
    if plan.batch_size % plan.processes:
        raise ValueError(
            f"train: batch_size {plan.batch_size} does not divide by {plan.processes} processes; "
            f"give a multiple of {plan.processes}"
        )
    learning = [p for p in model.parameters() if p.requires_grad]
    if not learning:
        raise ValueError("train: all weights are frozen; set requires_grad of some")
    for weight in learning:
        if weight.dtype.itemsize < 4:
            raise ValueError(
                f"train: the model has weights in {weight.dtype}, which loses small steps; use "
                'model.float(), and precision="bfloat16" to compute in less'
            )
    objective.check_model(model)


def _check_finite(
    losses: Tensor, norms: Tensor, start: int, stop: int, terms: Sequence[str]
) -> None:
    # Where a label is unknown, NaN in the clip reaches the gradient and not the loss.
    numbers = torch.cat([losses[start:stop], norms[start:stop]], 1)
    wrong = (~numbers.isfinite()).nonzero()
    if len(wrong):
        step, column = wrong[0].tolist()
        name = f"loss {terms[column]!r}" if column < len(terms) else "norm of the gradients"
        raise FloatingPointError(
            f"train: the {name} is {float(numbers[step, column])} at step {start + step + 1}; "
            "lower learning_rate, or look for NaN in the clips"
        )

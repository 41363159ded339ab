"""Training that can be stopped at any moment, on one process or on several."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset

from avlib.checkpoint import check_writable
from avlib.checks import check_counts
from avlib.plan import Plan
from avlib.processes import from_all, meet
from avlib.resume import State
from avlib.task import Task

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


def train(
    model: nn.Module,
    data: Dataset[Any],
    objective: Task,
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
    watch: Callable[[int], None] | None = None,
    progress: bool = True,
) -> History:
    """Train a model in place, by AdamW under a cosine schedule.

    With a checkpoint, training may be stopped at any moment. Called again with the same arguments
    it goes on from the last checkpoint, and ends with the very weights that it would have reached
    without the stop (on the same machine with as many threads, on a GPU under
    `torch.use_deterministic_algorithms`; unless the data themselves are random). A training that
    has ended is not repeated: its weights are loaded.

    Under `torchrun` each process takes its part of every batch, and the gradients are those of one
    process with the whole batch: outputs are gathered before a loss is computed, so that
    contrastive losses see the whole batch too.

    Args:
        model: on the device to train on; a `Zorro` with `num_classes=objective.num_outputs`, or a
            `TwinDecoder`. Afterwards it is in eval mode.
        data: a dataset of known length: clips, such as `World` or `ClipFolder`, or for a
            `TwinDecoder` codes (text, video, audio), such as `TensorDataset(*bounce.clips())`.
        objective: what to learn; `Writing` for a `TwinDecoder`.
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
        watch: called after each step with how many are done. It must leave the model and torch's
            random numbers as they are.
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

    device = next(model.parameters()).device
    rank, processes = meet(device)
    plan = Plan(
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
    plan.check(clips)
    check_counts("train", checkpoint_every=checkpoint_every)
    _check_model(model, objective)
    terms = objective.names(model)
    losses = torch.zeros(steps, len(terms), device=device)
    norms = torch.zeros(steps, 1, device=device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Labels are learned one after another: 0.999 would remember the first, steep ones too long.
    optimizer = AdamW(_groups(model, weight_decay), learning_rate, betas=(0.9, 0.95))
    settings = {
        **asdict(plan),
        "clips": clips,
        "terms": list(terms),
        **objective.settings(),
    }
    state = State(model, optimizer, losses, settings, rank)
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
            unused = objective.unused(model)
            parallel = DistributedDataParallel(model, find_unused_parameters=unused)
        loader: Any = DataLoader(
            data,
            batch_sampler=plan.order(clips, start, rank),
            collate_fn=objective.batch,
            num_workers=workers,
            # Seeds the workers. Without it the generator that is saved would be drawn from.
            generator=plan.chance(f"workers {rank}", start),
        )
        shown = progress and rank == 0
        bar = tqdm(total=steps, initial=start, unit="step", disable=not shown)
        with _in_training(model), bar:
            for step, batch in enumerate(loader, start):
                batch = objective.prepare(batch, plan, step, rank).to(device)
                for group in optimizer.param_groups:
                    group["lr"] = plan.rate(step)
                with torch.autocast(device.type, torch.bfloat16, precision == "bfloat16"):
                    outputs = objective.outputs(model, batch, parallel)
                found = objective.found(model, batch, outputs)
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
                if watch is not None:
                    watch(done)
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


def _length(data: Any) -> int:
    if not hasattr(data, "__len__"):
        raise TypeError(
            f"train: data is a {type(data).__name__} without a length; give a dataset with "
            "__len__ and __getitem__"
        )
    return len(data)


def _check_model(model: nn.Module, objective: Task) -> None:
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

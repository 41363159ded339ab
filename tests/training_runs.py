"""Trainings for test_training: some are killed, some shared by two processes.

`python training_runs.py killed FOLDER` kills a training again and again until it has ended, and
`torchrun --nproc_per_node 2 training_runs.py shared FOLDER` runs all of `SHARED` on two processes.
"""

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from time import sleep
from unittest.mock import patch

import torch
from torch.utils.data import Dataset

import avlib.resume
from avlib import Visibility
from avlib.checkpoint import save_tensors
from avlib.examples import UNKNOWN, Example
from avlib.objective import Objective
from avlib.processes import meet
from avlib.trained import small_zorro
from avlib.training import train
from avlib.world import World

OBJECTIVE = Objective({"shape": 4, "pitch": 4}, [("audio", "video")], features=3)
CONTRAST = Objective(contrast=[("audio", "video")], features=6)
SHAPE = Objective({"shape": 4})
PURE = {"return_token_types": ("audio", "video")}


class Clips(Dataset[Example]):
    """A list of examples as a dataset that remembers what it was asked for."""

    def __init__(self, clips: Sequence[Example]) -> None:
        self.clips, self.asked = list(clips), []

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, clip: int) -> Example:
        self.asked.append(clip)
        return self.clips[clip]


class Noise(Clips):
    """Clips of sound that is drawn anew each time."""

    def __init__(self, clips: int) -> None:
        super().__init__([None] * clips)
        self.drawn = []

    def __getitem__(self, clip: int) -> Example:
        audio = torch.rand(500)
        self.drawn.append(float(audio[0]))
        return Example(audio, None, {"shape": 0})


def mixed(clips: int = 24, silent: int = 1, blind: int = 2) -> Clips:
    """Whole clips and short ones, some without sound or pictures, some with unknown labels.

    Of each six so many are silent, and so many of the rest have no pictures.
    """
    found = []
    for i, (audio, video, labels) in enumerate(World(clips)):
        labels = {n: UNKNOWN if (i + len(n)) % 4 == 0 else value for n, value in labels.items()}
        audio = None if i % 6 < silent else audio[: 8000 - 500 * (i % 3)]
        video = None if silent <= i % 6 < silent + blind else video[:, : 8 - 2 * (i % 2)]
        found.append(Example(audio, video, labels))
    return Clips(found)


def zorro(objective: Objective = OBJECTIVE, *, seed: int = 3, **changes):
    """A tiny Zorro, the same for the same seed."""
    torch.manual_seed(seed)
    small = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "num_fusion_tokens": 2}
    return small_zorro(objective, **{**small, **changes})


class Stopped(BaseException):
    """What stops a training from outside, as Ctrl-C does."""


def stop_after(saves: int):
    """Stop a training when it has saved so many checkpoints."""
    left = iter(range(saves - 1, -1, -1))
    save = avlib.resume.State.save

    def save_and_stop(*arguments) -> None:
        save(*arguments)
        if next(left) == 0:
            raise Stopped

    return patch("avlib.resume.State.save", save_and_stop)


# Killed


def long_training(path: Path) -> None:
    settings = {"modality_dropout": 0.5, "checkpoint_every": 1, "progress": False}
    model = zorro(dropout=0.3)
    train(model, mixed(), OBJECTIVE, steps=40, batch_size=8, checkpoint=path, **settings)


def killed(folder: Path) -> None:
    """Kill it at moments of chance, until it ends; print how each of them ended.

    Not before it has saved something: on a slow machine it would never end.
    """
    long_training(folder / "undisturbed.safetensors")
    context = multiprocessing.get_context("fork")  # torch is not loaded again each time
    moments, path = random.Random(0), folder / "killed.safetensors"
    while True:
        before = written(path)
        child = context.Process(target=long_training, args=(path,))
        child.start()
        while child.is_alive() and written(path) == before:
            sleep(0.001)
        child.join(moments.uniform(0, 0.1))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        print(child.exitcode, flush=True)
        if child.exitcode != -signal.SIGKILL:
            break


def written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


# Shared by two processes


ALONE = {name: (name,) for name in ("audio", "video")}
HEARS = Visibility({**ALONE, "fusion": ("audio", "fusion")})  # fusion never sees

# Name → objective, how many of each six clips are silent and blind, changes of the model.
SHARED = {
    "ordinary": (OBJECTIVE, (1, 2), {}),
    "reversible": (OBJECTIVE, (1, 2), {"reversible": True, "depth": 2}),
    "checkpointed": (OBJECTIVE, (1, 2), {"checkpoint": True}),
    "mostly silent": (OBJECTIVE, (5, 0), {}),
    "mostly blind": (OBJECTIVE, (0, 5), {}),
    "pure": (CONTRAST, (1, 2), PURE),
    "pure reversible": (CONTRAST, (1, 2), {**PURE, "reversible": True}),
    "half unused": (SHAPE, (0, 0), {"return_token_types": "fusion", "trunk": HEARS}),
}


def shared_training(name: str):
    """The weights in float64, and the losses, after a few steps."""
    objective, lacking, changes = SHARED[name]
    model = zorro(objective, **changes).double()
    history = train(
        model,
        mixed(24, *lacking),
        objective,
        steps=5,
        batch_size=8,
        modality_dropout=0.5,
        learning_rate=1e-2,
        progress=False,
    )
    return {**model.state_dict(), "losses": history.losses}


def train_with_stops(path: Path, stops: int) -> None:
    """Dropout draws from the generators of both processes."""
    settings = {"modality_dropout": 0.5, "checkpoint_every": 2, "progress": False}
    for _ in range(stops):
        try:
            with stop_after(1):
                model = zorro(dropout=0.3)
                train(model, mixed(), OBJECTIVE, steps=6, batch_size=8, checkpoint=path, **settings)
        except Stopped:
            pass
    model = zorro(dropout=0.3, seed=4 if stops else 3)
    train(model, mixed(), OBJECTIVE, steps=6, batch_size=8, checkpoint=path, **settings)


def shared(folder: Path) -> None:
    rank, _ = meet(torch.device("cpu"))
    for name in SHARED:
        tensors = shared_training(name)
        save_tensors(folder / f"{name} {rank}.safetensors", tensors, {})
    noise = Noise(8)
    train(zorro(SHAPE), noise, SHAPE, steps=4, batch_size=4, progress=False)
    save_tensors(folder / f"noise {rank}.safetensors", {}, {"drawn": noise.drawn})
    train_with_stops(folder / "undisturbed.safetensors", 0)
    train_with_stops(folder / "stopped.safetensors", 2)
    # A checkpoint that the second process does not see.
    path = folder / ("stopped.safetensors" if rank == 0 else "nothing.safetensors")
    try:
        train_with_stops(path, 0)
    except ValueError as error:
        (folder / f"error {rank}.txt").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"killed": killed, "shared": shared}[sys.argv[1]](Path(sys.argv[2]))

"""Trainings whose results are kept in a file, so that a second call trains only what is missing."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

import torch
from common import cpu_model, progress
from torch import nn

from avlib.checkpoint import save_tensors
from avlib.trained import WEIGHTS

Result = dict[str, Any]  # "run", "seed" and "settings", and what was found


class Run(Protocol):
    """One way to make and train a model."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """It is trained once with each."""

    def settings(self) -> Result:
        """All of it as JSON can hold it, to tell whether a result is of this run."""


def completed(
    runs: Mapping[str, Run], path: Path, result_of: Callable[[str, int], Result], about: str | None
) -> list[Result]:
    """The results of all runs and seeds, trained in processes of one thread where missing.

    Args:
        runs: by name, in the order in which results are kept.
        path: of a JSON file; results that were made with other settings are left out of it.
        result_of: trains one run with one seed.
        about: for the command line's help.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument(
        "--processes", type=int, default=2, help="trainings at a time, a thread each"
    )
    arguments = parser.parse_args()
    found = kept(runs, path)
    there = {(result["run"], result["seed"]) for result in found}
    wanted = [(name, seed) for name, run in runs.items() for seed in run.seeds]
    missing = sorted({*wanted} - there, key=lambda which: (which[1], wanted.index(which)))
    order = {which: place for place, which in enumerate(wanted)}
    with ProcessPoolExecutor(arguments.processes) as pool:
        futures = [pool.submit(result_of, *which) for which in missing]
        for future in as_completed(futures):
            found.append(future.result())
            found.sort(key=lambda result: order[result["run"], result["seed"]])
            _write(found, path)
            progress(f"{len(found)} of {len(wanted)}: {future.result()['run']}")
    return found


def kept(runs: Mapping[str, Run], path: Path) -> list[Result]:
    """Results of earlier calls that were made with the settings of today."""
    before = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    return [
        result
        for result in before
        if result["run"] in runs and result["settings"] == runs[result["run"]].settings()
    ]


def ship(model: nn.Module, name: str, facts: Mapping[str, Any]) -> None:
    """Put a model's weights beside those that come with avlib, in half precision."""
    WEIGHTS.mkdir(exist_ok=True)
    halves = {key: tensor.half() for key, tensor in model.state_dict().items()}
    save_tensors(WEIGHTS / f"{name}.safetensors", halves, facts)


def spread(values: Sequence[float]) -> str:
    """A mean over seeds, and the lowest and the highest where they differ; a dash for no number."""
    if values[0] != values[0]:
        return "–"
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return f"{mean(values):.3f}" + (f" ({low} to {high})" if low != high else "")


def _write(found: list[Result], path: Path) -> None:
    lines = ",\n".join(json.dumps(result) for result in found)
    facts = {"date": str(date.today()), "device": cpu_model(), "torch": torch.__version__}
    path.write_text(f'{json.dumps(facts)[:-1]}, "runs": [\n{lines}\n]}}\n', encoding="utf-8")

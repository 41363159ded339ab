"""Stop a training and go on: all that it goes on from, written and read."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from avlib.checkpoint import load_tensors, save_tensors
from avlib.processes import from_all


@dataclass
class State:
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

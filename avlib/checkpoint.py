"""Tensors in a file that is never half written, and that runs no code when it is read."""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write a safetensors file, in one stroke: a crash leaves the old file or the new one.

    Args:
        path: over any file of that name; its folder exists.
        tensors: name → tensor, on any device.
        facts: anything that JSON can hold, kept in the header.

    Raises:
        OSError: see `check_writable`.
    """
    check_writable(path)
    file = Path(path).absolute()
    # Copies, because safetensors refuses two names for one memory, as tied weights are.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    text = json.dumps(facts)
    data = save(copies, {"facts": f"{text}\n{_checksum(copies, text)}"})
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())  # a power cut after the renaming must not find an empty file
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path at which `save_tensors` could not write.

    Raises:
        FileNotFoundError: its folder is not there.
        IsADirectoryError: it is a folder itself.
        PermissionError: nothing may be written in its folder.
    """
    file = Path(path).absolute()
    if not file.parent.is_dir():
        raise FileNotFoundError(f"save_tensors: no folder {str(file.parent)!r}; make it first")
    if file.is_dir():
        raise IsADirectoryError(f"save_tensors: {str(file)!r} is a folder; name a file in it")
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(
            f"save_tensors: nothing may be written in {str(file.parent)!r}; choose another folder"
        )


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_tensors`: its tensors, on the CPU, and its facts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, cut off, or not such a file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"load_tensors: no file at {str(path)!r}; check the path")
    try:
        with safe_open(path, "pt") as file:
            text, _, checksum = (file.metadata() or {}).get("facts", "").partition("\n")
            facts = json.loads(text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if checksum and checksum != _checksum(tensors, text):
            raise ValueError("the checksum differs")
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]  # torch adds its stack
        raise ValueError(
            f"load_tensors: {str(path)!r} is damaged, cut off or no safetensors file ({reason}); "
            "make or fetch it again"
        ) from error
    if not isinstance(facts, dict):
        raise ValueError(
            f"load_tensors: the facts in {str(path)!r} are {facts!r:.60}, wanted a mapping; it is "
            "no file of save_tensors"
        )
    return tensors, facts


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Of all that is in a file: safetensors would not see a wrong bit."""
    total = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, total)
    return f"{total:08x}"

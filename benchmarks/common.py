"""What the benchmarks share: clocks, names of machines, tables."""

import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MIB = 2**20


def seconds(step: Callable[[], Any]) -> float:
    """How long a step took."""
    if DEVICE.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def taken_on(*packages: str, threads: int) -> str:
    """The lines above a table: the command, the day, the machine, the versions."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    where = f"{device_name()}, CUDA {torch.version.cuda}; " if DEVICE.type == "cuda" else ""
    versions = ", ".join(f"{name} {version(name)}" for name in ("avlib", *packages))
    return f"""Written by `{command}` on {date.today()}.

- Machine: {where}{cpu_model()}; {threads} threads
- Python {platform.python_version()}, torch {torch.__version__}, {versions}"""


def device_name() -> str:
    """What the tensors are on."""
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else cpu_model()


def cpu_model() -> str:
    """The processor's name and the number of its cores that this process may use."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names) or '?'} cores"


def version(name: str) -> str:
    """A package's version, or that there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, first column to the left, numbers to the right."""
    rule = [":--", *["--:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def publish(texts: Iterable[str], name: str | None) -> None:
    """Write each text over the one before: a run cut short leaves what it has. Print the last.

    With a name they go to `NAME.md` beside this file, on a GPU to `NAME-cuda.md`.
    """
    text = ""
    for text in texts:
        if name is not None:
            suffix = "-cuda" if DEVICE.type == "cuda" else ""
            Path(__file__).with_name(f"{name}{suffix}.md").write_text(text, encoding="utf-8")
    print(text)


def cell(value: float | None, form: str, unit: str = "") -> str:
    """A number, or a dash for none."""
    return "–" if value is None else f"{value:{form}}{unit}"


def listed(reasons: Mapping[str, str]) -> str:
    """Why there are dashes."""
    lines = [f"- {name}: {why}\n" for name, why in reasons.items()]
    return "".join(["\nNo result (–), and why:\n\n", *lines]) if lines else ""


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def progress(text: str) -> None:
    """One line on stderr."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

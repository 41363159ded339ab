"""All that wants a GPU in one call: device tests, benchmarks, notebooks; each for itself.

`python benchmarks/gpu.py --out DIR` runs each part in a process of its own, with a time limit, so
that one that fails stops no other. DIR gets what they printed (`gpu.log`), how they ended
(`summary.md`), and the files that the benchmarks wrote. Without a GPU it runs the same, smaller.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import DEVICE, device_name, markdown, progress, taken_on

ROOT = Path(__file__).parents[1]
LOG, SUMMARY = "gpu.log", "summary.md"
RESULTS = (
    "avlib/course/memory.json",
    "benchmarks/memory.md",
    "benchmarks/zorro-cuda.md",
    "benchmarks/late_fusion-cuda.md",
    "benchmarks/reversible-cuda.md",
    "benchmarks/nuwa-cuda.md",
)


@dataclass(frozen=True)
class Command:
    """A process to run in the project's folder."""

    name: str
    arguments: Sequence[str]
    limit: int  # seconds


@dataclass(frozen=True)
class Outcome:
    """How a command ended; without a return code it was stopped at its limit."""

    command: Command
    code: int | None
    seconds: float
    output: str

    def row(self) -> list[str]:
        """A line of the summary."""
        ended = f"stopped after {self.command.limit} s" if self.code is None else str(self.code)
        return [self.command.name, ended, f"{self.seconds:.0f} s", last_line(self.output)]


# The parts; each gets an empty folder


def tests(folder: Path) -> list[Command]:
    """The tests that run on every device there is."""
    return [Command("tests", ["-m", "pytest", "-q", "tests/test_devices.py"], 540)]


def benchmark(name: str) -> Callable[[Path], list[Command]]:
    """A script beside this one; without a GPU a quick run."""

    def commands(folder: Path) -> list[Command]:
        small = [] if DEVICE.type == "cuda" else ["--small" if name == "memory" else "--quick"]
        return [Command(name, [f"benchmarks/{name}.py", *small], 570)]

    return commands


def notebooks(folder: Path) -> list[Command]:
    """Copies of all notebooks: the stored outputs stay as they are."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    (folder / "tests").mkdir()
    script = shutil.copy(ROOT / "tests" / "execute_notebooks.py", folder / "tests")
    return [
        Command(path.stem, [script, str(path)], 400)
        for path in sorted((folder / "notebooks").glob("*.ipynb"))
    ]


PARTS: dict[str, Callable[[Path], list[Command]]] = {
    "tests": tests,
    "memory": benchmark("memory"),
    "zorro": benchmark("zorro"),
    "late_fusion": benchmark("late_fusion"),
    "reversible": benchmark("reversible"),
    "nuwa": benchmark("nuwa"),
    "notebooks": notebooks,
}


# Running


def run(command: Command, log: Path) -> Outcome:
    """Run it to its end or its limit; what it prints goes to the log as it comes."""
    arguments = [sys.executable, *command.arguments]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("ab") as file:
        file.write(f"\n===== {command.name}: {shlex.join(arguments)}\n".encode())
        file.flush()
        start, began = log.stat().st_size, time.monotonic()
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group, to be stopped as a whole
        )
        try:
            code: int | None = process.wait(command.limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    output = log.read_bytes()[start:].decode(errors="replace")
    return Outcome(command, code, time.monotonic() - began, output)


def last_line(output: str) -> str:
    """The last line that says something, fit for a table."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:150].replace("|", "¦") if lines else ""


def failed_cell(output: str) -> str | None:
    """The cell at which a notebook stopped."""
    rule = r"\n-{10,}\n"
    found = re.search(rf"executing the following cell:{rule}(.*?){rule}", output, re.DOTALL)
    return found and found[1]


def keep(out: Path, since: float) -> None:
    """Copy what the benchmarks have written since then."""
    for path in (ROOT / name for name in RESULTS):
        if path.exists() and path.stat().st_mtime >= since:
            shutil.copy(path, out)


def summary(outcomes: Sequence[Outcome]) -> str:
    """How all ended, and the cells that failed."""
    head = ["", "return code", "time", "last line"]
    text = f"# {device_name()}\n\n{taken_on(threads=2)}\n\n"
    text += markdown(head, [outcome.row() for outcome in outcomes])
    for outcome in outcomes:
        if cell := failed_cell(outcome.output):
            text += f"\n{outcome.command.name} stopped at this cell:\n\n```python\n{cell}\n```\n"
    return text


def main() -> None:
    """Run the parts; the return code is 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="folder for results (default: a temporary one)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    args = parser.parse_args()
    out: Path = args.out or Path(tempfile.mkdtemp(prefix="gpu-"))
    out.mkdir(parents=True, exist_ok=True)

    outcomes: list[Outcome] = []
    log = out / LOG
    log.write_bytes(b"")
    for part in args.only:
        began = time.time()
        with tempfile.TemporaryDirectory() as folder:
            for command in PARTS[part](Path(folder)):
                progress(f"{command.name}: at most {command.limit} s")
                outcomes.append(run(command, log))
                (out / SUMMARY).write_text(summary(outcomes), encoding="utf-8")
        keep(out, began)
    print((out / SUMMARY).read_text(encoding="utf-8"))
    print(f"Results: {out}")
    sys.exit(any(outcome.code != 0 for outcome in outcomes))


if __name__ == "__main__":
    main()

"""Peak memory and time of a training step over depth: ordinary, checkpointed and reversible.

`python benchmarks/memory.py` measures, sets what `avlib.predict` says beside it, and asks it for
the deepest model under a budget. It writes `avlib/course/memory.json`, which a notebook draws, and
its tables, `benchmarks/memory.md`. On a GPU it takes the sizes of the paper, on a CPU small ones;
what there is no time for is left out.
"""

import argparse
import gc
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    DEVICE,
    cell,
    cpu_model,
    device_name,
    listed,
    markdown,
    progress,
    reason,
    seconds,
    version,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avlib import Zorro
from avlib.coupling import step as coupling_step
from avlib.course import planner
from avlib.course.reversible import towers
from avlib.memory import MemoryUse, make_step, measure
from avlib.predict import ByDepth, predict, predict_by_depth

ORDINARY, CHECKPOINTED, REVERSIBLE = WAYS = tuple(planner.WAYS)
PRECISIONS = planner.PRECISIONS  # bfloat16 by autocast
TURNS = {"zorro": 1, "towers": 2}  # how many kinds of layers take turns
# Fused: its step makes no tensors. By default torch's step on CUDA makes several as large as all
# parameters, and a deep reversible model would hold the most there. Small steps keep numbers small.
OPTIMIZER = partial(torch.optim.AdamW, lr=1e-6, fused=True)
PREDICTED_FROM = (4, 6)
TABLES = Path(__file__).with_name("memory.md")
CUDA = DEVICE.type == "cuda"
GB, MB = 10**9, 10**6
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large all is, and how long it may take."""

    batch: int
    dim: int
    heads: int
    samples: int  # of each waveform, at 16 kHz
    frames: int
    pixels: int  # height and width
    fusion_tokens: int
    depths: Mapping[str, Sequence[int]]  # of each model; of the towers whole turns
    predicted_to: int  # the largest depth that is predicted at that depth, and not from two others
    budgets_gb: Sequence[float]
    rounds: int
    minutes: float  # for all

    @property
    def audio_tokens(self) -> int:
        """Patches of 16×16 in a spectrogram of 128 bins and a column for each 160 samples."""
        return 128 // 16 * (self.samples // 160 // 16)

    @property
    def video_tokens(self) -> int:
        """Patches of 16×16 pixels in all frames."""
        return self.frames * (self.pixels // 16) ** 2


SMALL = Size(
    batch=8,
    dim=64,
    heads=4,
    samples=10_240,
    frames=4,
    pixels=80,
    fusion_tokens=4,
    depths={"zorro": (2, 4, 8, 12, 24), "towers": (2, 4, 8, 12, 24)},
    predicted_to=8,
    budgets_gb=(0.05, 0.1, 0.25),
    rounds=5,
    minutes=6,
)
FULL = Size(
    batch=8,
    dim=768,
    heads=12,
    samples=102_400,
    frames=8,
    pixels=224,
    fusion_tokens=8,
    depths={"zorro": (3, 6, 12, 24, 48, 96, 192), "towers": (2, 6, 12, 24, 48, 96, 192)},
    predicted_to=6,
    budgets_gb=(8, 16, 80, 141),
    rounds=5,
    minutes=8,
)
LONGEST_ROUNDS = 10.0  # seconds: of slow steps there are fewer rounds
LONGEST_DEEPEST = 60.0  # seconds: a model that takes longer is predicted alone
SHARE_BY_DEPTH = 0.65  # of all the time; the rest is for the deepest models


# Models and their three ways


class Towers(nn.Module):
    """The course's two towers, computed in each of the ways."""

    def __init__(self, depth: int, dim: int) -> None:
        super().__init__()
        self.sequence, self.way = towers(depth, dim), ORDINARY

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """The means of both towers' halves."""
        if self.way != CHECKPOINTED:
            return self.sequence(video, audio, reverse=self.way == REVERSIBLE)
        streams = {"x1": video, "x2": video, "m1": audio, "m2": audio}
        for block in self.sequence.sequence.blocks:
            streams = checkpoint(through, block, streams, use_reentrant=False)
        return (streams["x1"] + streams["x2"]) / 2, (streams["m1"] + streams["m2"]) / 2


def through(block: Any, streams: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The streams after a block, by ordinary autograd and without masks."""
    inputs = dict.fromkeys(("context_mask", "video_mask", "audio_mask"))
    for coupling in block:
        streams = coupling_step(coupling, streams, inputs, None)
    return streams


def make_model(name: str, way: str, size: Size, depth: int) -> nn.Module:
    """A model with random weights."""
    if name == "towers":
        model: nn.Module = Towers(depth, size.dim)
    else:
        model = Zorro(
            size.dim,
            depth,
            heads=size.heads,
            dim_head=size.dim // size.heads,
            num_fusion_tokens=size.fusion_tokens,
            video_temporal_patch_size=1,
        )
    set_way(model, way)
    return model


def set_way(model: Any, way: str) -> None:
    """The same model in another way: the ways then share parameters and optimizer."""
    model.way = way
    model.reversible, model.checkpoint = way == REVERSIBLE, way == CHECKPOINTED


def make_inputs(name: str, size: Size, device: torch.device) -> dict[str, Tensor]:
    """Sound and film for Zorro, tokens for the towers: as many as Zorro makes of them."""
    if name == "towers":
        counts = {"video": size.video_tokens, "audio": size.audio_tokens}
        return {
            modality: torch.randn(size.batch, count, size.dim, device=device)
            for modality, count in counts.items()
        }
    return {
        "audio": torch.randn(size.batch, size.samples, device=device),
        "video": torch.rand(size.batch, 3, size.frames, size.pixels, size.pixels, device=device),
    }


class Bench:
    """A model, its optimizer and its inputs, on the device and ready to run in each way."""

    def __init__(self, name: str, precision: str, size: Size, depth: int) -> None:
        torch.manual_seed(0)
        with DEVICE:  # large weights are drawn faster there
            self.model = make_model(name, ORDINARY, size, depth).to(DEVICE)
        self.optimizer = OPTIMIZER(self.model.parameters())
        self.step = make_step(
            self.model,
            make_inputs(name, size, DEVICE),
            optimizer=self.optimizer,
            autocast=PRECISIONS[precision],
        )

    def run(self, way: str) -> None:
        """A training step."""
        set_way(self.model, way)
        self.step()

    def measure(self, way: str) -> MemoryUse:
        """What a step holds; a plain one before it makes what later ones find there."""
        self.run(way)
        return measure(self.step, model=self.model, optimizer=self.optimizer, warmups=0)

    def times(self, ways: Sequence[str], rounds: int) -> dict[str, list[float]]:
        """Seconds of steps without a ledger; the ways take turns, and a slow machine hits all."""
        first = {way: [seconds(partial(self.run, way))] for way in ways}
        fits = int(LONGEST_ROUNDS / max(1e-9, sum(time for (time,) in first.values())))
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(max(1, min(rounds, fits))):
            for way in ways:
                taken[way].append(seconds(partial(self.run, way)))
        return taken

    def clear(self) -> None:
        """Free all but parameters: a step that failed may have left its state half made."""
        self.optimizer.state.clear()
        self.optimizer.zero_grad()
        free()


def free() -> None:
    """Give back what nothing refers to."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def attempt(work: Callable[[], Any], bench: Bench) -> tuple[Any, str | None]:
    """What it gives, or why it gives nothing."""
    try:
        return work(), None
    except torch.OutOfMemoryError:
        why = "out of memory"
    except RuntimeError as error:  # libraries out of memory have errors of their own
        why = reason(error)
    bench.clear()  # here, where the error no longer holds the tensors of its frames
    return None, why


# Measuring


def compared(use: MemoryUse | None) -> dict[str, int | None]:
    """What is set beside a prediction, and what it leaves out, in bytes at the peak.

    On the CPU `compared` is all that was counted. On CUDA it is what the allocator was asked for,
    without what the step does not read, such as the workspaces that cuBLAS keeps, and without what
    kernels took for themselves; `rounding` is what the allocator gave in excess.
    """
    if use is None:
        return dict.fromkeys(("compared", "workspaces", "rounding"))
    tensors_alone = int((use.total - use.timeline["workspaces"]).max())
    workspaces = use.peak - tensors_alone
    if use.allocator is None:
        return {"compared": tensors_alone, "workspaces": workspaces, "rounding": 0}
    requested, allocated = use.allocator["requested"], use.allocator["allocated"]
    return {
        "compared": requested - use.allocator["other"] - workspaces,
        "workspaces": workspaces,
        "rounding": allocated - requested,
    }


def prediction(name: str, way: str, precision: str, size: Size) -> tuple[Any, ByDepth]:
    """Depth → what a step is predicted to hold: at that depth alone, and from two depths."""
    shapes = make_inputs(name, size, torch.device("meta"))
    model_fn = partial(make_model, name, way, size)
    settings = {
        "device": DEVICE.type,
        "optimizer": OPTIMIZER,
        "autocast": PRECISIONS[precision],
    }

    def alone(depth: int) -> MemoryUse:
        return predict(partial(model_fn, depth), shapes, **settings)

    return alone, predict_by_depth(model_fn, shapes, depths=PREDICTED_FROM, **settings)


def points(name: str, precision: str, depth: int, size: Size, foreseen: Any) -> list[Row]:
    """A row for each way at one depth; the time that measuring memory took is left in it."""
    bench = Bench(name, precision, size, depth)
    failed = {way: attempt(partial(bench.run, way), bench)[1] for way in WAYS}
    alive = [way for way in WAYS if failed[way] is None]
    taken, _ = attempt(partial(bench.times, alive, size.rounds), bench)
    rows = []
    for way in WAYS:
        use, began = None, time.monotonic()
        if way in alive:
            use, failed[way] = attempt(partial(bench.measure, way), bench)
        measuring = time.monotonic() - began
        alone, by_depth = foreseen[name, way, precision]
        predicted = alone(depth) if depth <= size.predicted_to else by_depth.at(depth)
        times, base = ((taken or {}).get(which) for which in (way, ORDINARY))
        rows.append(
            {
                "model": name,
                "way": way,
                "precision": precision,
                "depth": depth,
                "peak": use and use.peak,
                "at_peak": use and use.at_peak,
                "allocator": use and use.allocator and dict(use.allocator),
                **compared(use),
                "predicted": predicted.peak,
                "seconds": times and statistics.median(times),
                "ratio": times
                and base
                and statistics.median(one / other for one, other in zip(times, base, strict=True)),
                "failed": failed[way],
                "measuring": measuring,
            }
        )
    return rows


def deepest(row: Row, size: Size, expected: float | None, left: float) -> None:
    """Measure the deepest model of a row, where there is time, and enter the bytes."""
    if row["depth"] == 0:
        row["why"] = "none fits"
    elif expected is None or expected > min(LONGEST_DEEPEST, left):
        row["why"] = "takes too long"
    else:
        bench = Bench(row["model"], row["precision"], size, row["depth"])
        use, row["why"] = attempt(partial(bench.measure, row["way"]), bench)
        row["measured"] = compared(use)["compared"]


def each() -> list[tuple[str, str, str]]:
    """All models, ways and precisions."""
    return [(name, way, prec) for name in TURNS for prec in PRECISIONS for way in WAYS]


def whole_turns(name: str, depth: int) -> int:
    """The largest depth, not above this one, at which all kinds of layers are equally many."""
    return depth - depth % TURNS[name]


def run(size: Size, threads: int) -> None:
    """Predict, measure at all depths, then measure the deepest; written after every depth."""
    began = time.monotonic()
    result: dict[str, Any] = {**circumstances(size, threads), "by_depth": [], "deepest": []}
    foreseen = {}
    for name, way, precision in each():
        progress(f"{name}, {precision}, {way}: predicting")
        foreseen[name, way, precision] = prediction(name, way, precision, size)

    spent: dict[tuple[str, str], float] = {}  # seconds for each layer, of all that a depth takes
    layer: dict[tuple[str, str, str], float] = {}  # of measuring memory
    depths = sorted({depth for own in size.depths.values() for depth in own})
    for depth, name, precision in ((d, n, p) for d in depths for n in TURNS for p in PRECISIONS):
        if depth not in size.depths[name]:
            continue
        now = time.monotonic()
        expected = spent.get((name, precision), 0) * depth
        if now + expected > began + 60 * size.minutes * SHARE_BY_DEPTH:
            progress(f"{name}, {precision}, depth {depth}: left out, no time")
            continue
        progress(f"{name}, {precision}, depth {depth}")
        for row in points(name, precision, depth, size, foreseen):
            measuring = row.pop("measuring")
            if row["peak"] is not None:
                layer[name, row["way"], precision] = measuring / depth
            result["by_depth"].append(row)
        free()
        spent[name, precision] = (time.monotonic() - now) / depth
        write(result)

    for budget in size.budgets_gb:
        for name, way, precision in each():
            by_depth = foreseen[name, way, precision][1]
            depth = whole_turns(name, by_depth.deepest(int(budget * GB)))
            row = {
                "model": name,
                "way": way,
                "precision": precision,
                "budget_gb": budget,
                "depth": depth,
                "predicted": by_depth.at(depth).peak if depth else None,
                "measured": None,
            }
            progress(f"{name}, {precision}, {way}: {depth} layers in {budget} GB")
            rate = layer.get((name, way, precision))
            left = began + 60 * size.minutes - time.monotonic()
            deepest(row, size, rate and rate * depth, left)
            free()
            result["deepest"].append(row)
        write(result)


def circumstances(size: Size, threads: int) -> dict[str, Any]:
    """What was measured, on what."""
    tokens = {"video_tokens": size.video_tokens, "audio_tokens": size.audio_tokens}
    common = {"batch": size.batch, "dim": size.dim, **tokens}
    clips = {
        "heads": size.heads,
        "dim_head": size.dim // size.heads,
        "fusion_tokens": size.fusion_tokens,
        "samples": size.samples,
        "video": [3, size.frames, size.pixels, size.pixels],
        "patches": {"audio": [16, 16], "video": [1, 16, 16]},
    }
    blocks = {"heads": 4, "dim_head": size.dim // 4, "types": list(towers(2, 4).block_types)}
    memory = torch.cuda.get_device_properties(DEVICE).total_memory if CUDA else None
    return {
        "device": device_name(),
        "kind": DEVICE.type,
        "memory_bytes": memory,
        "cpu": cpu_model(),
        "threads": threads,
        "command": shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        "date": str(date.today()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda if CUDA else None,
            "avlib": version("avlib"),
        },
        "settings": {
            "optimizer": "AdamW, fused",
            "predicted_to": size.predicted_to,
            "predicted_from": PREDICTED_FROM,
            "zorro": {**common, **clips},
            "towers": {**common, **blocks},
        },
    }


def write(result: Mapping[str, Any]) -> None:
    """The numbers and their tables, so far."""
    planner.MEASUREMENTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    TABLES.write_text(tables(result), encoding="utf-8")


# The tables, of the numbers that were written


def tables(result: Mapping[str, Any]) -> str:
    """All tables of a result."""
    unit = (GB, "GB") if result["kind"] == "cuda" else (MB, "MB")
    parts = [header(result, unit[1])]
    for name in TURNS:
        for precision in PRECISIONS:
            rows = [
                row
                for row in result["by_depth"]
                if (row["model"], row["precision"]) == (name, precision)
            ]
            if rows:
                parts += [
                    f"## {name.capitalize()}, {precision}\n",
                    over_depth(rows, unit[0]),
                    beyond_tensors(rows, unit[0]) if result["kind"] == "cuda" else "",
                    at_the_peak(rows, unit),
                ]
    if result["deepest"]:
        parts += ["## The deepest model under a budget\n", deepest_table(result["deepest"])]
    return "\n".join(part for part in parts if part)


def header(result: Mapping[str, Any], unit: str) -> str:
    """What was measured, on what, and what the columns mean."""
    versions, settings = result["versions"], result["settings"]
    zorro, blocks = settings["zorro"], settings["towers"]
    on = result["cpu"]
    if result["kind"] == "cuda":
        on = f"{result['device']}, {result['memory_bytes'] / GB:.1f} GB, CUDA {versions['cuda']}; "
        on += result["cpu"]
    counted = (
        "what the allocator was asked for at the peak, without workspaces and what the step does "
        "not read"
        if result["kind"] == "cuda"
        else "the bytes of tensors alive"
    )
    return f"""# Memory and time of a training step over depth

Written by `{result["command"]}` on {result["date"]}.

- Machine: {on}; CPU threads: {result["threads"]}
- Python {versions["python"]}, torch {versions["torch"]}, avlib {versions["avlib"]}
- Batch {zorro["batch"]}; {zorro["video_tokens"]} video and {zorro["audio_tokens"]} audio tokens of
  width {zorro["dim"]}; {settings["optimizer"]}; bfloat16 is autocast's
- Zorro: {zorro["fusion_tokens"]} fusion tokens, {zorro["heads"]} heads × {zorro["dim_head"]}
- Towers: {blocks["heads"]} heads × {blocks["dim_head"]}; {" and ".join(blocks["types"])} in turn
- Memory: {counted};
  1 {unit} is 10{"⁹" if unit == "GB" else "⁶"} bytes
- Predicted: as a ratio to measured; beyond depth {settings["predicted_to"]} from what is predicted
  at depths {" and ".join(map(str, settings["predicted_from"]))}
- Time: of ordinary, median; of the others the ratio to it in the same round, median
"""


def by_place(rows: Iterable[Row]) -> dict[tuple[int, str], Row]:
    """Depth and way → row."""
    return {(row["depth"], row["way"]): row for row in rows}


def over_depth(rows: Sequence[Row], unit: int) -> str:
    """Memory, prediction and time of each way at each depth."""
    places = by_place(rows)

    def memory(depth: int, way: str) -> list[str]:
        row = places[depth, way]
        measured = row["compared"]
        if measured is None:
            return ["–", "–"]
        return [f"{measured / unit:.2f}", f"{row['predicted'] / measured:.4f}"]

    def times(depth: int) -> list[str]:
        own = places[depth, ORDINARY]["seconds"]
        if own is None:  # nothing to compare with
            return [
                "–",
                *(cell(milliseconds(places[depth, way]), ".0f", " ms") for way in WAYS[1:]),
            ]
        return [
            f"{1000 * own:.0f} ms",
            *(cell(places[depth, way]["ratio"], ".2f", " ×") for way in WAYS[1:]),
        ]

    head = ["depth", *(f"{way}{part}" for way in WAYS for part in ("", ": predicted"))]
    body = [
        [str(depth), *(text for way in WAYS for text in memory(depth, way)), *times(depth)]
        for depth in sorted({row["depth"] for row in rows})
    ]
    why = {
        f"{row['way']}, depth {row['depth']}": row["failed"]
        for row in rows
        if row["failed"] is not None
    }
    return markdown([*head, *(f"time, {way}" for way in WAYS)], body) + listed(why)


def milliseconds(row: Row) -> float | None:
    """A step's time."""
    return None if row["seconds"] is None else 1000 * row["seconds"]


def beyond_tensors(rows: Sequence[Row], unit: int) -> str:
    """What comes on top of the tensors on CUDA, and is not predicted."""
    places = by_place(rows)

    def extra(depth: int, way: str) -> list[str]:
        row = places[depth, way]
        if row["compared"] is None:
            return ["–"] * 4
        given = row["allocator"]
        store = given["reserved"] - given["allocated"]
        shown = (row["workspaces"], row["rounding"], given["other"], store)
        return [f"{part / unit:.3f}" for part in shown]

    kinds = ("workspaces", "rounding", "other", "in store")
    return (
        "On top of that: what kernels take for themselves, what the allocator rounds up, what was "
        "there and is not read by the step, and what the allocator keeps in store.\n\n"
        + markdown(
            ["depth", *(f"{way}: {kind}" for way in WAYS for kind in kinds)],
            [
                [str(depth), *(text for way in WAYS for text in extra(depth, way))]
                for depth in sorted({row["depth"] for row in rows})
            ],
        )
    )


def at_the_peak(rows: Sequence[Row], unit: tuple[int, str]) -> str:
    """What is there at the peak, at the largest depth at which all ways were measured."""
    places = by_place(rows)
    depths = {row["depth"] for row in rows}
    whole = [d for d in depths if all(places[d, way]["at_peak"] for way in WAYS)]
    if not whole:
        return ""
    peaks = {way: places[max(whole), way]["at_peak"] for way in WAYS}
    return f"What is there at the peak, at depth {max(whole)}, in {unit[1]}.\n\n" + markdown(
        ["", *WAYS],
        [
            [kind, *(f"{peaks[way][kind] / unit[0]:.2f}" for way in WAYS)]
            for kind in peaks[ORDINARY]
            if any(peak[kind] for peak in peaks.values())
        ],
    )


def deepest_table(rows: Sequence[Row]) -> str:
    """Predicted depths, and what models as deep were found to hold."""
    budgets = list(dict.fromkeys(row["budget_gb"] for row in rows))
    found = {(r["model"], r["precision"], r["way"], r["budget_gb"]): r for r in rows}

    def shown(row: Row) -> str:
        if row["measured"] is None:
            return f"{row['depth']} ({row['why']})"
        return f"{row['depth']} ({row['measured'] / GB:.4g} GB)"

    body = [
        [f"{name}, {precision}, {way}"] + [shown(found[name, precision, way, b]) for b in budgets]
        for name, way, precision in each()
        if all((name, precision, way, b) in found for b in budgets)
    ]
    return (
        "The most layers that are predicted to fit, and in brackets what they were measured to "
        "hold; of the towers whole turns of both kinds of blocks.\n\n"
        + markdown(["", *(f"{budget} GB" for budget in budgets)], body)
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--small", action="store_true", help="small sizes (default without a GPU)")
    sizes.add_argument("--full", action="store_true", help="the paper's (default on a GPU)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    there = planner.MEASUREMENTS
    if not CUDA and there.exists() and planner.measurements()["kind"] == "cuda":
        parser.error(f"{there} was measured on a GPU; delete it to measure on the CPU")
    run(FULL if args.full or (CUDA and not args.small) else SMALL, args.threads)
    print(TABLES.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

"""Time of fusing K sounds with L films: streams kept and fused late, beside a joint pass a pair.

`python benchmarks/late_fusion.py` measures and writes the table `benchmarks/late_fusion.md`; on a
GPU it measures there and writes `benchmarks/late_fusion-cuda.md`. Of the joint passes a sample is
timed, in turns with the pieces of late fusion, and scaled to all pairs.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import ceil
from typing import Any

import torch
from common import DEVICE, cell, markdown, progress, publish, seconds, taken_on
from torch import Tensor
from zorro import (
    AGREED,
    BASE,
    CUDA,
    DEPTH,
    EVEN,
    FUSION,
    PAPER,
    QUICK_DEPTH,
    Setting,
    eager,
    flops,
    published,
    worst,
)

from avlib import StreamCache, Zorro
from avlib.memory import peak_bytes

WANTED = 0.6  # of the bound by FLOPs
BATCH = 16 if CUDA else 4  # clips encoded, and clips of a joint pass, at once
BLOCK = 4  # batches whose caches are in one piece
TURNS = 16  # joint passes while encoding, and again while fusing
SETTINGS = (
    [(64, Setting(PAPER, "bfloat16")), (256, Setting(PAPER, "bfloat16"))]
    if CUDA
    else [
        (64, Setting(PAPER, "float32")),
        (256, Setting(PAPER, "float32")),
        (64, Setting(EVEN, "float32")),
        (64, Setting(PAPER, "bfloat16")),
    ]
)
QUICK_SETTINGS = [(8, Setting(EVEN, "float32"))]


@dataclass
class Found:
    """What a setting took."""

    clips: int  # K = L
    setting: Setting
    flops: dict[str, int]  # of one: joint pass, audio, video, pair
    joint: dict[str, list[float]] = field(default_factory=dict)  # seconds a pair, by package
    encoded: list[float] = field(default_factory=list)  # seconds for a sound and a film
    fused: list[float] = field(default_factory=list)  # seconds a pair
    difference: float = 0.0
    kept: int = 0  # bytes
    beyond: int = 0

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {name}" for name, n in self.setting.clip.tokens.items())
        return f"{self.clips}×{self.clips} clips, {counts} tokens, {self.setting.precision}"

    @property
    def pairs(self) -> int:
        """How many there are."""
        return self.clips**2

    @property
    def late_flops(self) -> int:
        """All that late fusion computes."""
        encoded = self.flops["audio"] + self.flops["video"]
        return self.clips * encoded + self.pairs * self.flops["pair"]

    @property
    def bound(self) -> float:
        """How many times as fast late fusion would be if all FLOPs took the same time."""
        return self.pairs * self.flops["joint"] / self.late_flops

    @property
    def encoding(self) -> float:
        """Seconds for all clips."""
        return self.clips * statistics.median(self.encoded)

    @property
    def fusing(self) -> float:
        """Seconds for all pairs."""
        return self.pairs * statistics.median(self.fused)

    def joining(self, package: str) -> float:
        """Seconds for a joint pass of each pair."""
        return self.pairs * statistics.median(self.joint[package])

    def faster(self, package: str) -> float:
        """How many times as fast as a joint pass for each pair."""
        return self.joining(package) / (self.encoding + self.fusing)


def score(out: Tensor) -> Tensor:
    """A pair's score: one number for each readout."""
    return out[..., 0]


def encode(model: Zorro, clips: dict[str, Tensor]) -> dict[str, StreamCache]:
    """Both streams of some clips."""
    return {name: model.encode(**{name: tensor}) for name, tensor in clips.items()}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """How long it took, and what came of it."""
    results: list[Any] = []
    taken = seconds(lambda: results.append(run()))
    return taken, results[0]


def measure(clips: int, setting: Setting, depth: int) -> Found:
    """Encode all, fuse all, and time joint passes in between."""
    theirs = published(depth).eval()
    model = eager(theirs).eval()
    theirs = theirs.to(DEVICE)
    one = setting.inputs()
    audio, video = encode(model, one).values()
    found = Found(
        clips,
        setting,
        {
            "joint": flops(lambda: model(**one)),
            "audio": flops(lambda: model.encode(audio=one["audio"])),
            "video": flops(lambda: model.encode(video=one["video"])),
            "pair": flops(lambda: model.fuse(audio, video)),
        },
    )
    many = Setting(setting.clip, setting.precision, clips).inputs()
    sample = {name: tensor[:BATCH] for name, tensor in many.items()}

    def joint_pass() -> None:
        for package, run in (("avlib", model), (BASE, theirs)):
            taken = seconds(partial(run, **sample))
            found.joint.setdefault(package, []).append(taken / BATCH)

    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=setting.autocast):
        progress(f"{found}: warm-up")
        wanted = model(**sample)[:, AGREED].float()
        joint_pass()
        found.joint.clear()
        few = encode(model, sample).values()
        out = model.fuse_pairs(*few, progress=False).diagonal(0, 0, 1).movedim(-1, 0)
        found.difference = worst([out[:, AGREED].float()], [wanted])

        progress(f"{found}: encoding")
        batches = [
            {name: tensor[i : i + BATCH] for name, tensor in many.items()}
            for i in range(0, clips, BATCH)
        ]
        parts: dict[str, list[StreamCache]] = {name: [] for name in many}
        for i, batch in enumerate(batches):
            taken, encoded = timed(partial(encode, model, batch))
            found.encoded.append(taken / len(batch["audio"]))
            if i % ceil(len(batches) / TURNS) == 0:
                joint_pass()
            for name, cache in encoded.items():
                parts[name].append(cache)
        found.kept = sum(cache.num_bytes for some in parts.values() for cache in some)
        blocks: dict[str, list[StreamCache]] = {name: [] for name in many}
        for name, some in parts.items():
            while some:  # each batch goes when its block is there
                blocks[name].append(StreamCache.cat(some[:BLOCK]))
                del some[:BLOCK]
        progress(f"{found}: fusing")
        pieces = list(product(blocks["audio"], blocks["video"]))
        for i, (sounds, films) in enumerate(pieces):
            taken, _ = timed(partial(model.fuse_pairs, sounds, films, score=score, progress=False))
            found.fused.append(taken / len(sounds) / len(films))
            if i % ceil(len(pieces) / TURNS) == 0:
                joint_pass()
        few = [caches[0][:8] for caches in blocks.values()]
        found.beyond = peak_bytes(partial(model.fuse_pairs, *few, score=score, progress=False))
    return found


def section(found: Found) -> str:
    """A setting's table."""
    gflop = {name: value / 1e9 for name, value in found.flops.items()}
    late = found.encoding + found.fusing
    rows = []
    for package in found.joint:
        joint = found.joining(package)
        rows.append(
            [
                f"joint pass a pair, {package}",
                f"{joint:.0f} s (scaled)",
                f"{found.pairs * gflop['joint'] / 1e3:.0f} TFLOP" if package == "avlib" else "",
                cell(found.faster(package), ".1f", " ×"),
                cell(found.faster(package) / found.bound if package == "avlib" else None, ".2f"),
            ]
        )
    rows += [
        [
            f"encode {found.clips} + {found.clips}",
            f"{found.encoding:.1f} s",
            f"{found.clips * (gflop['audio'] + gflop['video']) / 1e3:.2f} TFLOP",
            "",
            "",
        ],
        [
            f"fuse {found.pairs} pairs",
            f"{found.fusing:.1f} s",
            f"{found.pairs * gflop['pair'] / 1e3:.2f} TFLOP",
            "",
            "",
        ],
        ["late fusion in all", f"{late:.1f} s", f"{found.late_flops / 1e12:.2f} TFLOP", "", ""],
    ]
    head = ["", "time", "products", "late fusion is faster", "of the bound"]
    share = found.flops["joint"] / found.flops["pair"]
    return (
        f"## {found}\n\nThe bound by FLOPs is {found.bound:.1f} ×. After encoding, a pair takes "
        f"{found.fusing / found.pairs * 1e3:.2f} ms; its products are 1/{share:.0f} of a joint "
        f"pass's. The caches hold {found.kept / 1e9:.2f} GB; 64 pairs at once need "
        f"{found.beyond / 1e6:.0f} MB beyond them. Difference from the joint pass: "
        f"{found.difference:.0e}.\n\n" + markdown(head, rows)
    )


def targets(results: list[Found]) -> str:
    """What the project wants, and what was found."""
    rows = []
    for found in results:
        share = found.faster("avlib") / found.bound
        met = "met" if share >= WANTED else "missed"
        what = f"{found}: of the bound"
        rows.append([what, f"≥ {WANTED}", f"{share:.2f}", met])
    return "## Targets\n\n" + markdown(["", "wanted", "found", ""], rows)


def header(threads: int, depth: int) -> str:
    """What was measured, on what."""
    return f"""# Late fusion

{taken_on("zorro-pytorch", threads=threads)}
- Width 768; 12 heads × 64; feed-forward × 4; {FUSION} fusion tokens; depth {depth}
- *Joint pass*: the whole model from waveform and film to four readouts, {BATCH} pairs at once
- *Late fusion*: each clip is encoded once, {BATCH} at once; then all pairs are fused, 64 at once.
  All clips and pairs are computed, in pieces that take turns with joint passes; times are medians
  over pieces, scaled to all
- *The bound by FLOPs*: matrix products of all joint passes over those of late fusion; *of the
  bound*: the ratio of times over the ratio of products
- *Difference*: ‖late − joint‖ / ‖joint‖ of fusion and global readouts
- Memory beyond the caches is counted by `avlib.memory.peak_bytes`, in a run of its own

"""


def main() -> None:
    """Measure, print the tables, and write them unless it was a quick run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument(
        "--quick", action="store_true", help="8×8 small clips, depth 1; writes no file"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    depth = QUICK_DEPTH if args.quick else DEPTH
    results: list[Found] = []

    def tables() -> Iterator[str]:
        for clips, setting in QUICK_SETTINGS if args.quick else SETTINGS:
            results.append(measure(clips, setting, depth))
            parts = [header(args.threads, depth) + targets(results), *map(section, results)]
            yield "\n".join(parts)

    publish(tables(), None if args.quick else "late_fusion")


if __name__ == "__main__":
    main()

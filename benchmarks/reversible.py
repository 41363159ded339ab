"""Time and peak memory of a training step through a reversible sequence, avlib's and others'.

`python benchmarks/reversible.py` measures and writes the table `benchmarks/reversible.md`; on a
GPU it measures there and writes `benchmarks/reversible-cuda.md`. All contenders get the same
callables, inputs and upstream gradients. MemCNN and RevTorch come with
`pip install --no-deps -r benchmarks/requirements.txt`; what is missing or fails is left out, and
the table gives the reason.
"""

import argparse
import gc
import importlib
import importlib.metadata
import statistics
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    DEVICE,
    MIB,
    cell,
    listed,
    markdown,
    progress,
    reason,
    seconds,
    taken_on,
)
from einops import rearrange
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import checkpoint

from avlib import Coupling, DualModalityReversibleSequence, ReversibleSequence
from avlib.coupling import step as coupling_step
from avlib.memory import peak_bytes
from avlib.reversible import BLOCK_TYPES

BATCH, VIDEO, AUDIO, CONTEXT = 4, 196, 64, 32  # clips; tokens of each
DIM, HEADS, DIM_HEAD, MULT = 256, 4, 64, 4
DEPTHS, TOWER_DEPTHS, ROUNDS = (3, 6, 12, 24, 48, 64), (12, 64), 5
QUICK_DEPTHS, QUICK_ROUNDS = (3, 12), 2
GRADIENT_DEPTH = 12


# The callables


class Attention(nn.Module):
    """Pre-norm attention, with the published signature of f and j. A mask marks real tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.to_q = nn.Linear(DIM, HEADS * DIM_HEAD, bias=False)
        self.to_kv = nn.Linear(DIM, HEADS * DIM_HEAD * 2, bias=False)
        self.to_out = nn.Linear(HEADS * DIM_HEAD, DIM)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """What is to be added to the other half."""
        normed = self.norm(x)
        key_mask = mask if context is None else context_mask
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", h=HEADS)
            for part in (
                self.to_q(normed),
                *self.to_kv(normed if context is None else context).chunk(2, dim=-1),
            )
        )
        attn_mask = None if key_mask is None else key_mask[:, None, None]
        read = F.scaled_dot_product_attention(q, k, v, attn_mask)
        return self.to_out(rearrange(read, "b h n d -> b n (h d)"))


def feed_forward() -> nn.Module:
    """A pre-norm feed-forward, as g and k."""
    return nn.Sequential(
        nn.LayerNorm(DIM), nn.Linear(DIM, DIM * MULT), nn.GELU(), nn.Linear(DIM * MULT, DIM)
    )


@dataclass
class Work:
    """What all contenders are given: blocks of callables, inputs, the outputs' gradients."""

    blocks: list[list[nn.Module]]
    inputs: dict[str, Tensor]
    upstream: list[Tensor]

    @property
    def types(self) -> list[str]:
        """The block types in turn."""
        return list(islice(cycle(BLOCK_TYPES), len(self.blocks)))

    def leaves(self) -> dict[str, Tensor]:
        """All that gets a gradient, by name."""
        modules = nn.ModuleList(nn.ModuleList(block) for block in self.blocks)
        return self.inputs | dict(modules.named_parameters())

    def clear(self) -> None:
        """Gradients there and zero: a step then adds to them, and does not make them."""
        for leaf in self.leaves().values():
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.zero_()


def work(depth: int, dtype: torch.dtype, *, tower: bool = False) -> Work:
    """The same numbers on every call, drawn in float32. With `tower` one tower: f and g alone."""
    torch.manual_seed(0)
    makers: Sequence[Callable[[], nn.Module]] = (Attention, feed_forward) * (1 if tower else 2)
    blocks = [[make().to(DEVICE, dtype) for make in makers] for _ in range(depth)]
    tokens = {"video": VIDEO} if tower else {"video": VIDEO, "audio": AUDIO, "context": CONTEXT}
    drawn = {name: torch.randn(2, BATCH, n, DIM).to(DEVICE, dtype) for name, n in tokens.items()}
    return Work(
        blocks,
        {name: pair[0].clone().requires_grad_() for name, pair in drawn.items()},
        [pair[1] for name, pair in drawn.items() if name != "context"],
    )


# The contenders: each takes the work and returns its forward pass

Forward = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Contender:
    """A way to compute the same function and its gradients."""

    name: str
    build: Callable[[Work], Forward]
    peak_bytes: Callable[[Callable[[], Any]], int] = peak_bytes


def dual(*, reverse: bool, exact: bool = False) -> Callable[[Work], Forward]:
    """Avlib's dual-modality sequence."""

    def build(w: Work) -> Forward:
        sequence = DualModalityReversibleSequence(w.blocks, w.types, exact=exact)
        return lambda: sequence(**w.inputs, reverse=reverse)

    return build


def dual_checkpoint(w: Work) -> Forward:
    """The same blocks under ordinary autograd, each checkpointed."""
    blocks = DualModalityReversibleSequence(w.blocks, w.types).sequence.blocks
    inputs = dict.fromkeys(("context_mask", "video_mask", "audio_mask"))

    def stored(block: Any, streams: Mapping[str, Tensor], given: Mapping[str, Any]) -> Any:
        for coupling in block:
            streams = coupling_step(coupling, streams, given, None)
        return streams

    def forward() -> Sequence[Tensor]:
        video, audio, context = w.inputs.values()
        streams = {"x1": video, "x2": video, "m1": audio, "m2": audio}
        for block in blocks:
            given = {**inputs, "context": context}
            streams = checkpoint(stored, block, streams, given, use_reentrant=False)
        return (streams["x1"] + streams["x2"]) / 2, (streams["m1"] + streams["m2"]) / 2

    return forward


def dual_nuwa(w: Work) -> Forward:
    """The published sequence."""
    published: Any = importlib.import_module("nuwa_pytorch.reversible_video_audio")
    sequence = published.DualModalityReversibleSequence(w.blocks, w.types)
    return lambda: sequence(**w.inputs, reverse=True)


def tower(*, reverse: bool) -> Callable[[Work], Forward]:
    """Avlib's sequence over two halves."""

    def build(w: Work) -> Forward:
        sequence = ReversibleSequence(
            [[Coupling("x1", "x2", f), Coupling("x2", "x1", g)] for f, g in w.blocks]
        )

        def forward() -> Sequence[Tensor]:
            x = w.inputs["video"]
            out = sequence({"x1": x, "x2": x}, reverse=reverse)
            return [(out["x1"] + out["x2"]) / 2]

        return forward

    return build


def of_halves(sequence: nn.Module, w: Work) -> Forward:
    """The forward pass of a sequence that wants both halves in one tensor."""

    def forward() -> Sequence[Tensor]:
        x = w.inputs["video"]
        y1, y2 = sequence(torch.cat((x, x), dim=-1)).chunk(2, dim=-1)
        return [(y1 + y2) / 2]

    return forward


def tower_revtorch(w: Work) -> Forward:
    """RevTorch's sequence."""
    revtorch: Any = importlib.import_module("revtorch.revtorch")
    blocks = [revtorch.ReversibleBlock(f, g, split_along_dim=-1) for f, g in w.blocks]
    return of_halves(revtorch.ReversibleSequence(nn.ModuleList(blocks)), w)


def tower_memcnn(w: Work) -> Forward:
    """MemCNN's wrapper around each block."""
    memcnn: Any = importlib.import_module("memcnn")
    blocks = [
        memcnn.InvertibleModuleWrapper(memcnn.AdditiveCoupling(f, g, split_dim=-1))
        for f, g in w.blocks
    ]
    return of_halves(nn.Sequential(*blocks), w)


class _ResizedBytes(TorchDispatchMode):
    """As `avlib.memory`, but reads sizes anew each time: MemCNN frees by `storage.resize_(0)`."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._before: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._made: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._count(self._before, self._made, (args, kwargs))
        out = func(*args, **kwargs)
        self._count(self._made, self._before, out)
        return out

    def _count(self, into: Any, unless: Any, tree: Any) -> None:
        for tensor in tree_iter(tree):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in unless:
                into.add(tensor.untyped_storage())
        self.peak = max(self.peak, sum(storage.nbytes() for storage in self._made))


def resized_peak_bytes(step: Callable[[], Any]) -> int:
    """`avlib.memory.peak_bytes` for a step that resizes storages; slower, and otherwise equal."""
    with _ResizedBytes() as counter:
        step()
    return counter.peak


ORDINARY = "ordinary"
DUAL = (
    Contender(ORDINARY, dual(reverse=False)),
    Contender("checkpoint", dual_checkpoint),
    Contender("nuwa-pytorch", dual_nuwa),
    Contender("avlib", dual(reverse=True)),
    Contender("avlib, exact", dual(reverse=True, exact=True)),
)
EXACT_STORED = Contender("avlib, exact, reverse=False", dual(reverse=False, exact=True))
TOWER = (
    Contender(ORDINARY, tower(reverse=False)),
    Contender("RevTorch", tower_revtorch),
    Contender("MemCNN", tower_memcnn, resized_peak_bytes),
    Contender("avlib", tower(reverse=True)),
)


# Measuring


def training_step(forward: Forward, w: Work, autocast: bool) -> None:
    """Forward and backward. As PyTorch asks, only the forward pass is under autocast."""
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
        outputs = forward()
    torch.autograd.backward(list(outputs), w.upstream)


def peak_mib(contender: Contender, step: Callable[[], Any]) -> float:
    """The most memory that a step held above what was there before."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    return contender.peak_bytes(step) / MIB


@dataclass
class Measured:
    """Results by contender, and the reasons why some have none."""

    depths: Sequence[int]
    milliseconds: dict[int, float]  # of ordinary, median, by depth
    ratios: dict[tuple[str, int], float]  # to ordinary in the same round, medians
    mib: dict[tuple[str, int], float]
    failures: dict[str, str]
    spread: float = 0.0  # how far above its median ordinary's slowest step was, the worst of all


def measure(
    contenders: Sequence[Contender],
    depths: Sequence[int],
    rounds: int,
    *,
    tower: bool = False,
    autocast: bool = False,
) -> Measured:
    """Time and peak memory of each contender at each depth."""
    found = Measured(depths, {}, {}, {}, {})
    for depth in depths:
        w = work(depth, torch.float32, tower=tower)
        steps: dict[str, Callable[[], None]] = {}
        for contender in contenders:
            progress(f"depth {depth}: {contender.name}, warm-up and memory")
            w.clear()
            try:
                forward = contender.build(w)
                step = _bound(forward, w, autocast)
                step()
                w.clear()
                found.mib[contender.name, depth] = peak_mib(contender, step)
                steps[contender.name] = step
            except Exception as error:  # whatever it is, the table gives it as the reason
                found.failures[contender.name] = reason(error)
        taken: dict[str, list[float]] = {name: [] for name in steps}
        turns = min(rounds * max(depths) // depth, 5 * rounds)  # short steps vary more
        progress(f"depth {depth}: {turns} rounds")
        for _ in range(turns):  # in turns: when the machine slows down it hits all alike
            for name, step in steps.items():
                w.clear()
                taken[name].append(seconds(step))
        for name, times in taken.items():
            pairs = zip(times, taken[ORDINARY], strict=True)
            found.ratios[name, depth] = statistics.median(one / base for one, base in pairs)
        found.milliseconds[depth] = 1000 * statistics.median(taken[ORDINARY])
        found.spread = max(
            found.spread, 1000 * max(taken[ORDINARY]) / found.milliseconds[depth] - 1
        )
    return found


def _bound(forward: Forward, w: Work, autocast: bool) -> Callable[[], None]:
    return lambda: training_step(forward, w, autocast)


def gradients(
    contender: Contender, dtype: torch.dtype, *, tower: bool, autocast: bool
) -> dict[str, Tensor]:
    """All gradients of a step, in float64."""
    w = work(GRADIENT_DEPTH, dtype, tower=tower)
    w.clear()
    training_step(contender.build(w), w, autocast)
    return {name: leaf.grad.double() for name, leaf in w.leaves().items() if leaf.grad is not None}


def worst(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """‖got − wanted‖ / ‖wanted‖ of the parameter or input for which it is largest."""
    return max(((got[n] - g).norm() / g.norm()).item() for n, g in wanted.items())


# The table


def gradient_table(contenders: Sequence[Contender], *, tower: bool = False) -> str:
    """How far each contender's gradients are from ordinary autograd's."""
    precisions: dict[str, tuple[torch.dtype, bool]] = {
        "float64": (torch.float64, False),
        "float32": (torch.float32, False),
    }
    if DEVICE.type == "cuda":
        precisions["bfloat16 autocast"] = (torch.float32, True)
    notes: dict[str, str] = {}
    rows: dict[str, list[str]] = {contender.name: [] for contender in contenders}
    own: list[str] = []
    truth: dict[str, Tensor] = {}
    for precision, (dtype, autocast) in precisions.items():
        ordinary: dict[str, Tensor] = {}
        for contender in contenders:
            progress(f"gradients in {precision}: {contender.name}")
            try:
                got = gradients(contender, dtype, tower=tower, autocast=autocast)
            except Exception as error:  # whatever it is, the table gives it as the reason
                notes[f"{contender.name}, {precision}"] = reason(error)
                rows[contender.name] += ["–"] * (1 if precision == "float64" else 2)
                continue
            ordinary = ordinary or got
            truth = truth or got
            rows[contender.name].append(f"{worst(got, ordinary):.1e}")
            if precision != "float64":
                rows[contender.name].append(f"{worst(got, truth):.1e}")
            if contender.name == "avlib, exact":
                stored_ = gradients(EXACT_STORED, dtype, tower=tower, autocast=autocast)
                own.append(f"{worst(got, stored_):.1e} in {precision}")
    head = ["", "float64"]
    for precision in list(precisions)[1:]:
        head += [precision, f"{precision}, to ordinary in float64"]
    text = (
        f"Depth {GRADIENT_DEPTH}: ‖difference‖ / ‖gradient‖ of the parameter or input for which it "
        "is largest; to ordinary autograd in the same precision, where no other is named.\n\n"
        + markdown(head, [[name, *cells] for name, cells in rows.items()])
    )
    if own:
        text += (
            "\nExact mode rounds the streams, so it computes a slightly different function; to "
            f"ordinary autograd of that function its difference is {', '.join(own)}.\n"
        )
    return text + listed(notes)


def time_and_memory(contenders: Sequence[Contender], found: Measured) -> str:
    """Both tables of a comparison."""
    names = [c.name for c in contenders]
    others = names[1:]
    low, high = (12 if 12 in found.depths[:-1] else found.depths[0]), found.depths[-1]

    def times(depth: int) -> list[str]:
        ratios = (found.ratios.get((name, depth)) for name in others)
        return [f"{found.milliseconds[depth]:.0f} ms", *(cell(r, ".2f", " ×") for r in ratios)]

    def slope(name: str) -> float | None:
        ends = [found.mib.get((name, depth)) for depth in (low, high)]
        one, other = ends
        return None if one is None or other is None else (other - one) / (high - low)

    slopes = [slope(name) for name in names]
    base = slopes[0] or float("nan")
    memory = [
        [str(depth), *(cell(found.mib.get((name, depth)), ".1f") for name in names)]
        for depth in found.depths
    ]
    memory += [
        [f"a block more ({low} to {high})", *(cell(s, ".2f") for s in slopes)],
        ["of ordinary's", *(cell(s and 100 * s / base, ".1f", " %") for s in slopes)],
    ]
    return (
        "Time: milliseconds for ordinary autograd, for the others their ratio to it in the same "
        "round; medians. Of one depth the slowest ordinary step was up to "
        f"{100 * found.spread:.0f} % above the median.\n\n"
        + markdown(["depth", *names], [[str(d), *times(d)] for d in found.depths])
        + "\nPeak memory in MiB, without parameters, inputs and their gradients: "
        + ("`max_memory_allocated`" if DEVICE.type == "cuda" else "the bytes of tensors alive")
        + ".\n\n"
        + markdown(["depth", *names], memory)
        + listed(found.failures)
    )


def header(args: argparse.Namespace) -> str:
    """What was measured, on what."""
    return f"""# A training step through reversible sequences

{taken_on("nuwa-pytorch", "revtorch", "memcnn", threads=args.threads)}
- Batch {BATCH}; {VIDEO} video, {AUDIO} audio and {CONTEXT} context tokens of width {DIM};
  {HEADS} heads × {DIM_HEAD}; feed-forward × {MULT}; pre-norm; no dropout; no masks
- A step is forward and backward; {args.rounds} rounds or more, in which the contenders take turns
"""


def main() -> None:
    """Measure, print the table, and write it unless it was a quick one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--rounds", type=int, default=None, help=f"default: {ROUNDS}")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"depths {QUICK_DEPTHS}, {QUICK_ROUNDS} rounds; prints the table, writes no file",
    )
    args = parser.parse_args()
    args.rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    depths = QUICK_DEPTHS if args.quick else DEPTHS
    tower_depths = QUICK_DEPTHS if args.quick else TOWER_DEPTHS
    torch.set_num_threads(args.threads)

    parts = [header(args)]
    for autocast in (False, True) if DEVICE.type == "cuda" else (False,):
        precision = "float32"
        aside = ""
        if autocast:
            precision = "bfloat16 autocast"
            aside = (
                "Only the forward pass is under autocast, as PyTorch asks. nuwa-pytorch and "
                "RevTorch do not restore it where they recompute, and MemCNN switches it off.\n\n"
            )
        parts.append(
            f"## Two towers and a context, {precision}\n\n{aside}Block types in turn: "
            f"{', '.join(BLOCK_TYPES)}.\n\n"
            + time_and_memory(DUAL, measure(DUAL, depths, args.rounds, autocast=autocast))
        )
        found = measure(TOWER, tower_depths, args.rounds, tower=True, autocast=autocast)
        parts.append(
            f"## One tower, {precision}\n\nRevTorch and MemCNN know one stream in two halves, and "
            "callables of one tensor: they cannot run the work above. Here the video tower alone, "
            "with self-attention: x1 += f(x2), x2 += g(x1).\n\n" + time_and_memory(TOWER, found)
        )
    parts.append("## Gradients, two towers\n\n" + gradient_table(DUAL))
    parts.append("## Gradients, one tower\n\n" + gradient_table(TOWER, tower=True))
    text = "\n".join(parts)
    print(text)
    if not args.quick:
        name = "reversible-cuda.md" if DEVICE.type == "cuda" else "reversible.md"
        Path(__file__).with_name(name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

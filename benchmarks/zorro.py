"""Time of a training step and of a forward pass of Zorro, avlib's and `zorro-pytorch`'s.

`python benchmarks/zorro.py` measures and writes the table `benchmarks/zorro.md`; on a GPU it
measures there and writes `benchmarks/zorro-cuda.md`. All contenders have the same weights and get
the same inputs and upstream gradients: `Zorro.from_zorro_pytorch` takes the published weights. What
fails is left out, and the table gives the reason.
"""

import argparse
import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import zorro_pytorch
from common import DEVICE, cell, listed, markdown, progress, publish, reason, seconds, taken_on
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from avlib import Zorro
from avlib.masks import Visibility

CUDA = DEVICE.type == "cuda"
DIM, HEADS, DIM_HEAD, FUSION = 768, 12, 64, 8
DEPTH, ROUNDS = (12, 20) if CUDA else (2, 7)
QUICK_DEPTH, QUICK_ROUNDS = 1, 2
SQUARE = 8192  # rows and columns of the matrices whose product gives "the matmul rate"
KINDS = tuple(zorro_pytorch.TokenTypes)  # audio, video, fusion, global
AGREED = slice(2, 4)  # the readouts that the published pooling mask gets right: fusion, global
LIMITS = {"float32": 1e-4, "bfloat16": 0.1}  # of rounding; what differs more is another function
TARGETS = (1.4, 0.75, "float32", "avlib") if not CUDA else (3.0, 0.5, "bfloat16", "avlib, compiled")


# The work


@dataclass(frozen=True)
class Clip:
    """Sizes of a waveform and of a film, and the tokens that they become in both packages."""

    samples: int
    film: tuple[int, int, int]
    tokens: Mapping[str, int]


# Hop 160: 102 400 samples are 641 columns, cropped to 640; n_fft 256: 129 bins, cropped to 128.
SPECTROGRAM = {"spec_n_fft": 256, "spec_win_length": 256, "spec_hop_length": 160}
PAPER = Clip(102_400, (8, 224, 224), {"audio": 320, "video": 1568, "fusion": FUSION})
EVEN = Clip(102_400, (5, 128, 128), {"audio": 320, "video": 320, "fusion": FUSION})


@dataclass(frozen=True)
class Setting:
    """One table: what goes in, how many at once, in which precision."""

    clip: Clip
    precision: str
    batch: int = 1

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.clip.tokens.items())
        autocast = " autocast" if self.autocast else ""
        return f"{counts} tokens; batch {self.batch}; {self.precision}{autocast}"

    @property
    def autocast(self) -> bool:
        """Whether the forward pass runs under autocast."""
        return self.precision == "bfloat16"

    @property
    def dtype(self) -> torch.dtype:
        """The type of the factors of a matrix product."""
        return torch.bfloat16 if self.autocast else torch.float32

    def inputs(self) -> dict[str, Tensor]:
        """A waveform and a film, the same on every call."""
        torch.manual_seed(0)
        audio = torch.randn(self.batch, self.clip.samples)
        video = torch.rand(self.batch, 3, *self.clip.film)
        return {"audio": audio.to(DEVICE), "video": video.to(DEVICE)}


# What matters most comes first, for a run that is cut short.
SETTINGS = (
    [Setting(clip, "bfloat16", batch) for clip in (PAPER, EVEN) for batch in (1, 16)]
    + [Setting(PAPER, "float32", batch) for batch in (1, 16)]
    if CUDA
    else [
        Setting(clip, precision) for precision in ("float32", "bfloat16") for clip in (PAPER, EVEN)
    ]
)
QUICK_SETTINGS = [Setting(EVEN, "float32"), Setting(EVEN, "bfloat16")]


def published(depth: int) -> nn.Module:
    """A published model, the same on every call."""
    torch.manual_seed(0)
    return zorro_pytorch.Zorro(
        dim=DIM,
        depth=depth,
        dim_head=DIM_HEAD,
        heads=HEADS,
        num_fusion_tokens=FUSION,
        video_temporal_patch_size=1,
        return_token_types=KINDS,
        **SPECTROGRAM,
    )


# The contenders: each makes of a published model the one to be timed


class DenseLayers(nn.Module):
    """All layers of a `Zorro` over one concatenation of its streams, under one N×N mask."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers
        self.mask: Tensor | None = None  # made once: it costs no later step anything

    def forward(
        self, streams: Mapping[str, Tensor], visibility: Visibility, key_masks: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The streams after all layers, equal to rounding to what the layers give one by one."""
        assert not key_masks
        sizes = {name: streams[name].shape[1] for name in visibility.readers}
        if self.mask is None:
            self.mask = visibility.dense(sizes).to(DEVICE)
        tokens = torch.cat([streams[name] for name in sizes], 1)
        layers: Any = self.layers
        for layer in layers:
            tokens = tokens + self.read(layer.attention, tokens)
            tokens = tokens + layer.feed_forward(tokens)
        return dict(zip(sizes, tokens.split(list(sizes.values()), 1), strict=True))

    def read(self, attention: Any, tokens: Tensor) -> Tensor:
        """What the tokens read, with the weights of an `avlib` attention."""
        normed = attention.norm(tokens)
        query, key, value = (
            rearrange(part, "b n (h d) -> b h n d", h=attention.heads)
            for part in (attention.to_q(normed), *attention.to_kv(normed).chunk(2, dim=-1))
        )
        heads = F.scaled_dot_product_attention(query, key, value, self.mask)
        return attention.to_out(rearrange(heads, "b h n d -> b n (h d)"))


def eager(theirs: nn.Module) -> Zorro:
    """Avlib's model as it is; it is made on the CPU, wherever the published one lies."""
    return Zorro.from_zorro_pytorch(theirs).to(DEVICE)


def dense(theirs: nn.Module) -> Zorro:
    """Avlib's model with the layers' streams concatenated and masked."""
    model = eager(theirs)
    model.layers = nn.ModuleList([DenseLayers(model.layers)])
    model.trunk = model.trunk[:1]
    return model


def compiled(theirs: nn.Module) -> Any:
    """Avlib's model through `torch.compile`."""
    torch._dynamo.reset()  # or a second size would be compiled for any size
    return torch.compile(eager(theirs), dynamic=False)


def compiled_graphs(theirs: nn.Module) -> Any:
    """The same, its kernels launched as CUDA graphs."""
    torch._dynamo.reset()
    return torch.compile(eager(theirs), dynamic=False, mode="reduce-overhead")


BASE, OURS = "zorro-pytorch", "avlib"
GRAPHS = "avlib, compiled, CUDA graphs"
CONTENDERS: dict[str, Callable[[nn.Module], Any]] = {
    BASE: lambda theirs: theirs.to(DEVICE),
    "avlib, dense mask": dense,
    OURS: eager,
    "avlib, compiled": compiled,
}


def check_dense() -> None:
    """Stop unless the dense variant is avlib's function, outputs and all gradients, in float64."""
    torch.manual_seed(0)
    settings = {"dim": 32, "depth": 2, "heads": 2, "dim_head": 8, "return_token_types": KINDS}
    theirs = zorro_pytorch.Zorro(**settings).double()
    inputs = {"audio": torch.randn(2, 3000), "video": torch.rand(2, 3, 4, 32, 32)}
    inputs = {name: tensor.double().to(DEVICE) for name, tensor in inputs.items()}
    upstream = torch.randn(2, len(KINDS), 32, dtype=torch.float64, device=DEVICE)
    results = []
    for build in (eager, dense):
        model = build(theirs)
        outputs = model(**inputs)
        results.append([outputs, *torch.autograd.grad(outputs, list(model.parameters()), upstream)])
    for ours, other in zip(*results, strict=True):
        torch.testing.assert_close(other, ours, rtol=1e-10, atol=1e-10)


# Measuring


def flops(run: Callable[[], Any]) -> int:
    """Operations of the matrix products."""
    # No fused attention is counted on CPU, the products that it stands for are.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def forward_flops(setting: Setting, model: nn.Module) -> int:
    """Matrix products of avlib's forward pass, embedding and readout included."""
    inputs = Setting(setting.clip, "float32").inputs()
    return setting.batch * flops(lambda: model(**inputs))


def model_products(setting: Setting, layer: nn.Module) -> tuple[Callable[[], Any], float]:
    """A run through the linear maps of a layer, forward and backward, and its operations.

    Each map has three products: of tokens and weights, of gradients and weights, of gradients and
    tokens. All tokens are one matrix, so nothing is lost to small products.
    """
    rows = setting.batch * sum(setting.clip.tokens.values())
    work: list[tuple[Tensor, Tensor, Tensor]] = []
    for linear in layer.modules():
        if isinstance(linear, nn.Linear):
            tokens, gradient, weight = (
                torch.randn(shape, device=DEVICE).to(setting.dtype)
                for shape in (
                    (rows, linear.in_features),
                    (rows, linear.out_features),
                    (linear.out_features, linear.in_features),
                )
            )
            for factors in ((tokens, weight.t()), (gradient, weight), (gradient.t(), tokens)):
                work.append((*factors, torch.mm(*factors)))
    flops = sum(2 * left.shape[0] * left.shape[1] * right.shape[1] for left, right, _ in work)

    def run() -> None:
        for left, right, out in work:
            torch.mm(left, right, out=out)

    return repeated(run, DEPTH if CUDA else 1), flops * (DEPTH if CUDA else 1)


def square_product(setting: Setting) -> tuple[Callable[[], Any], float]:
    """A few large square products, and their operations."""
    left, right = torch.randn(2, SQUARE, SQUARE, device=DEVICE).to(setting.dtype)
    out = left @ right
    times = 5
    return repeated(lambda: torch.mm(left, right, out=out), times), times * 2 * SQUARE**3


def repeated(run: Callable[[], Any], times: int) -> Callable[[], Any]:
    """The run some times over; on CUDA as one graph, or launching would be timed with it."""
    run()
    if not CUDA:
        return lambda: [run() for _ in range(times)]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            run()
    return graph.replay


@dataclass
class Runs:
    """A contender's two kinds of step."""

    model: Any
    inputs: dict[str, Tensor]
    upstream: Tensor
    autocast: bool

    def outputs(self) -> Tensor:
        """The four readouts; as PyTorch asks, only the forward pass is under autocast."""
        if CUDA:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.autocast):
            return self.model(**self.inputs)

    def train(self) -> Tensor:
        """Forward and backward."""
        outputs = self.outputs()
        outputs.backward(self.upstream.to(outputs.dtype))
        return outputs

    def forward(self) -> None:
        """Forward, with nothing stored for a backward pass."""
        with torch.no_grad():
            self.outputs()

    def clear(self) -> None:
        """Gradients there and zero: a step then adds to them, and does not make them."""
        for leaf in self.model.parameters():
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.zero_()

    def sample(self) -> list[Tensor]:
        """Two outputs, and the gradients of the first weights that sound and picture meet."""
        self.clear()
        outputs = self.train().detach()[:, AGREED].float().clone()
        weights = [
            weight
            for name, weight in self.model.named_parameters()
            if "to_tokens" in name and weight.ndim == 2
        ]
        return [outputs, *(weight.grad.clone() for weight in weights)]


# Parts of a step, and how the names of their operations begin; the first that fits counts.
PARTS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product", "aten::_flash", "aten::_efficient", "aten::_cudnn"),
    "norms": ("aten::native_layer_norm", "aten::_fused_rms_norm"),
    "additions and copies": ("aten::add", "aten::copy_", "aten::cat", "aten::fill_", "aten::clone"),
}


def time_by_part(runs: Runs, steps: int = 3) -> dict[str, float]:
    """Which share of a training step goes to what, by PyTorch's profiler."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profile(activities=activities, acc_events=True) as profiled:
        for _ in range(steps):
            runs.train()
    taken = dict.fromkeys((*PARTS, "all else"), 0.0)
    for event in profiled.key_averages():
        part = next((part for part, names in PARTS.items() if event.key.startswith(names)), None)
        time = event.self_device_time_total if CUDA else event.self_cpu_time_total
        taken[part or "all else"] += time
    return {part: time / sum(taken.values()) for part, time in taken.items()}


@dataclass
class Measured:
    """Results of a setting: seconds by kind of step and contender, one for each round."""

    setting: Setting
    flops: int  # of a forward pass
    taken: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)  # operations a second
    differences: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)  # shares of a training step of avlib

    def milliseconds(self, kind: str, name: str) -> float | None:
        """A step's time."""
        times = self.taken.get((kind, name))
        return 1000 * statistics.median(times) if times else None

    def faster(self, kind: str, name: str) -> float | None:
        """How many times as fast as the published package in the same round."""
        base, times = self.taken.get((kind, BASE)), self.taken.get((kind, name))
        if not base or not times:
            return None
        return statistics.median(b / t for b, t in zip(base, times, strict=True))

    def share(self, kind: str, name: str, rate: str) -> float | None:
        """Operations a second over the rate in the same round: floor over time."""
        times, rates = self.taken.get((kind, name)), self.rates.get(rate)
        if not times or not rates:
            return None
        flops = self.flops * (3 if kind == "train" else 1)
        return statistics.median(flops / t / r for t, r in zip(times, rates, strict=True))

    def spread(self) -> float | None:
        """How far above its median a contender's slowest training step was, the worst of all."""
        all_times = [times for (kind, _), times in self.taken.items() if kind == "train"]
        return max((max(t) / statistics.median(t) - 1 for t in all_times), default=None)

    def rate(self, name: str) -> float:
        """A rate's median, in TFLOP/s."""
        return statistics.median(self.rates[name]) / 1e12


def worst(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """‖got − wanted‖ / ‖wanted‖ of the tensor for which it is largest."""
    return max(((g - w).norm() / w.norm()).item() for g, w in zip(got, wanted, strict=True))


def measure(
    setting: Setting, builders: Mapping[str, Callable[[nn.Module], Any]], depth: int, rounds: int
) -> Measured:
    """Times of each contender, in rounds in which they take turns with the bare products."""
    inputs = setting.inputs()
    upstream = torch.randn(setting.batch, len(KINDS), DIM, device=DEVICE)
    upstream[:, : AGREED.start] = 0  # for the check: the same function has the same gradients
    ours = eager(published(depth))
    found = Measured(setting, forward_flops(setting, ours))
    rates = {"products": model_products(setting, ours.layers[0])}
    if CUDA:
        rates["square"] = square_product(setting)
    truth = Runs(ours, inputs, upstream, setting.autocast).sample()
    del ours
    contenders: dict[str, Runs] = {}
    for name, build in builders.items():
        progress(f"{setting}: {name}, warm-up")
        try:
            runs = Runs(build(published(depth)), inputs, upstream, setting.autocast)
            found.differences[name] = difference = worst(runs.sample(), truth)
            if not difference < LIMITS[setting.precision]:
                raise ArithmeticError(f"not avlib's function: difference {difference:.1e}")
            for _ in range(2):
                runs.train()
                runs.forward()
            contenders[name] = runs
        except Exception as error:  # whatever it is, the table gives it as the reason
            found.failures[name] = reason(error)
        gc.collect()
    upstream.normal_()
    progress(f"{setting}: {rounds} rounds")
    for _ in range(rounds):  # in turns: when the machine slows down it hits all alike
        for name, (run, flops) in rates.items():
            found.rates.setdefault(name, []).append(flops / seconds(run))
        for name, runs in contenders.items():
            runs.clear()
            found.taken.setdefault(("train", name), []).append(seconds(runs.train))
        for name, runs in contenders.items():
            found.taken.setdefault(("forward", name), []).append(seconds(runs.forward))
    found.parts = time_by_part(contenders[OURS])
    return found


# The table


def milliseconds(value: float | None) -> str:
    """A time, to about three figures."""
    return cell(value, ".2f" if value and value < 100 else ".0f", " ms")


def section(found: Measured) -> str:
    """A setting's table."""
    rates = {"products": "of the floor", "square": "of the matmul rate"}
    columns = {key: text for key, text in rates.items() if key in found.rates}
    head = [""]
    for kind in ("training step", "forward pass"):
        head += [kind, "faster", *columns.values()]
    names = [
        *found.differences,
        *(name for name in found.failures if name not in found.differences),
    ]
    rows = []
    for name in names:
        row = [name]
        for kind in ("train", "forward"):
            row += [
                milliseconds(found.milliseconds(kind, name)),
                cell(found.faster(kind, name), ".2f", " ×"),
                *(cell(found.share(kind, name, rate), ".2f") for rate in columns),
            ]
        rows.append(row)
    products = found.rate("products")
    floor = [1000 * times * found.flops / products / 1e12 for times in (3, 1)]
    text = (
        f"A forward pass is {found.flops / 1e9:.0f} GFLOP. Products at the model's shapes ran at "
        f"{products:.3g} TFLOP/s: the floor is {milliseconds(floor[0])} for a training "
        f"step, {milliseconds(floor[1])} for a forward pass."
    )
    if "square" in found.rates:
        text += f" The matmul rate is {found.rate('square'):.3g} TFLOP/s."
    spread = found.spread()
    if spread is not None:
        text += (
            f" A contender's slowest training step was up to {100 * spread:.0f} % above its median."
        )
    parts = ", ".join(f"{part} {100 * share:.0f} %" for part, share in found.parts.items())
    differences = "; ".join(f"{name} {value:.0e}" for name, value in found.differences.items())
    return (
        f"## {str(found.setting)[0].upper()}{str(found.setting)[1:]}\n\n{text}\n\n"
        + markdown(head, rows)
        + f"\nWhere avlib's training step spends its time: {parts}.\n"
        + f"\nDifference from avlib: {differences}.\n"
        + listed(found.failures)
    )


def targets(results: Sequence[Measured]) -> str:
    """What the project wants, and what was found."""
    speed, share, precision, name = TARGETS
    rate = "square" if CUDA else "products"
    of = "of the matmul rate" if CUDA else "of the floor"
    rows = []
    for found in results:
        if found.setting.precision != precision or found.setting.clip is not PAPER:
            continue
        for value, wanted, unit in (
            (found.faster("train", name), speed, "× zorro-pytorch's speed"),
            (found.share("train", name, rate), share, of),
        ):
            met = "–" if value is None else "met" if value >= wanted else "missed"
            what = f"{name}, batch {found.setting.batch}, {precision}: {unit}"
            rows.append([what, f"≥ {wanted}", cell(value, ".2f"), met])
    if not rows:
        return ""
    return "## Targets for the training step at the paper's counts\n\n" + markdown(
        ["", "wanted", "found", ""], rows
    )


def header(threads: int, depth: int, rounds: int) -> str:
    """What was measured, on what."""
    tf32 = f"; `allow_tf32` is {torch.backends.cuda.matmul.allow_tf32}, as it comes" if CUDA else ""
    square = (
        f"\n- The matmul rate: products of two {SQUARE}×{SQUARE} matrices, same precision, same "
        "round. *Of the matmul rate*: 3 × (training) or 1 × (forward) the forward pass's FLOPs "
        "over the time, over that rate"
        if CUDA
        else ""
    )
    return f"""# A training step of Zorro

{taken_on("zorro-pytorch", threads=threads)}{tf32}
- Width {DIM}; {HEADS} heads × {DIM_HEAD}; feed-forward × 4; depth {depth}; no dropout
- Timed: the whole model from waveform and film to four readouts. Both packages make of 102 400
  samples a spectrogram of 128 bins × 640 columns (n_fft 256, hop 160, cropped from 129 × 641), so
  320 tokens of 16×16; of 8×224×224 pixels 1568 tokens, of 5×128×128 pixels 320 (patches 1×16×16)
- A training step is forward and backward into gradients that are there, without an optimizer; a
  forward pass stores nothing. {rounds} rounds, in which the contenders take turns; times are
  medians, ratios are taken within a round and then their median
- *faster*: zorro-pytorch's time over the contender's. *Of the floor*: the floor over the time. The
  floor is 3 × (training) or 1 × (forward) the forward pass's FLOPs, hidden pairs not counted, over
  the rate at which `torch.mm` runs a layer's linear maps, forward and backward, in the same round:
  a share above 1 says that something else disturbed the machine{square}
- *avlib, dense mask*: the same weights, streams concatenated, one SDPA under an N×N boolean mask
- All contenders have the weights of one published model and compute one function, but for this: the
  pooling mask of zorro-pytorch is broken, so that its audio and video readouts are other numbers
  for the same work. *Difference*: ‖difference‖ / ‖avlib's‖ of the fusion and global readouts, and
  of the gradients that these two give to the first weights for sound and pictures; the largest

"""


def main() -> None:
    """Measure, print the tables, and write them unless it was a quick run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--rounds", type=int, default=None, help=f"default: {ROUNDS}")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--graphs", action="store_true", help="CUDA: compile with graphs as well")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"depth {QUICK_DEPTH}, {QUICK_ROUNDS} rounds, small clips; writes no file",
    )
    args = parser.parse_args()
    depth = QUICK_DEPTH if args.quick else DEPTH
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    torch.set_num_threads(args.threads)
    builders = dict(CONTENDERS)
    if args.no_compile:
        del builders["avlib, compiled"]
    if args.graphs:
        builders[GRAPHS] = compiled_graphs

    check_dense()
    results: list[Measured] = []

    def tables() -> Iterator[str]:
        for setting in QUICK_SETTINGS if args.quick else SETTINGS:
            results.append(measure(setting, builders, depth, rounds))
            gc.collect()
            if CUDA:
                torch.cuda.empty_cache()
            parts = [header(args.threads, depth, rounds) + targets(results), *map(section, results)]
            yield "\n".join(parts)

    publish(tables(), None if args.quick else "zorro")


if __name__ == "__main__":
    main()

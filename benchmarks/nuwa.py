"""Training and writing with the twin decoder, beside `nuwa-pytorch`'s NUWAVideoAudio.

`python benchmarks/nuwa.py` measures and writes the table `benchmarks/nuwa.md` (a quarter of an hour
on two cores); on a GPU it measures there and writes `benchmarks/nuwa-cuda.md`. Both models have the
same sizes and neighbourhoods, and take turns.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from common import DEVICE, MIB, markdown, progress, publish, seconds, taken_on
from nuwa_pytorch import NUWAVideoAudio, VQGanVAE
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from avlib import neighbours
from avlib.memory import peak_bytes
from avlib.nuwa import TwinDecoder
from avlib.twin_masks import nearby_in_tower

DIM, DEPTH, HEADS, DIM_HEAD = 256, 6, 8, 32
SIZE, SOUND = 16, 64  # rows and columns of a frame, and its sounds
WORDS, CODES = 16, 512  # of the text, and in each codebook
KERNEL, STEPS, EVERY = 3, 7, 3  # windows of film and of sound, layers between cross-attentions
FRAMES = (1, 2, 3)
TURNS = 5
TOKENS, SEVERAL = 320, 4  # the length that the targets are for, and clips written at once
RUNS = (8, 16, 32, 64, 128)
STEP, PEAK, WRITE = 2.0, 2.0, 20.0  # wanted ratios
PACKAGES = "nuwa-pytorch", "avlib"


@dataclass
class Found:
    """What one length took, by package."""

    frames: int
    step: dict[str, list[float]] = field(default_factory=dict)  # seconds
    stored: dict[str, list[float]] = field(default_factory=dict)  # not reversible
    peak: dict[str, int] = field(default_factory=dict)  # bytes
    flops: dict[str, int] = field(default_factory=dict)
    write: dict[str, list[float]] = field(default_factory=dict)
    guided: dict[str, list[float]] = field(default_factory=dict)
    several: dict[str, list[float]] = field(default_factory=dict)  # clips at once

    @property
    def tokens(self) -> int:
        """Of film and sound."""
        return self.frames * (SIZE**2 + SOUND)


def published(frames: int, reversible: bool) -> NUWAVideoAudio:
    """The published model. Its encoder must be reversible: the other one raises a TypeError."""
    vae = VQGanVAE(
        dim=16, image_size=8 * SIZE, num_layers=3, vq_codebook_size=CODES, use_vgg_and_gan=False
    )
    model = NUWAVideoAudio(
        vae=vae,
        dim=DIM,
        image_size=8 * SIZE,
        num_audio_tokens=CODES,
        num_audio_tokens_per_video_frame=SOUND,
        max_video_frames=frames,
        text_num_tokens=CODES,
        text_max_seq_len=WORDS,
        text_enc_depth=2,
        text_enc_heads=HEADS,
        text_enc_dim_head=DIM_HEAD,
        enc_reversible=True,
        dec_reversible=reversible,
        dec_depth=DEPTH,
        dec_heads=HEADS,
        dec_dim_head=DIM_HEAD,
        sparse_3dna_kernel_size=KERNEL,
        sparse_3dna_rel_pos_bias=False,  # ours has none, and with it a batch of two fails
        sparse_2dna_kernel_size=STEPS,
        cross_modality_attn_every=EVERY,
    )
    model.vae.decode = lambda codes: codes  # writing ends with codes, as ours does
    return model.to(DEVICE)


def ours(frames: int, reversible: bool) -> TwinDecoder:
    """The same sizes, and the same windows."""
    return TwinDecoder(
        DIM,
        DEPTH,
        text_words=CODES,
        video_codes=CODES,
        audio_codes=CODES,
        video_size=(SIZE, SIZE),
        audio_size=(SOUND, 1),
        max_frames=frames,
        max_words=WORDS,
        heads=HEADS,
        dim_head=DIM_HEAD,
        text_depth=2,
        video_window=((KERNEL - 1, 0),) * 3,
        audio_window=((STEPS - 1, 0), None),
        cross_every=EVERY,
        reversible=reversible,
    ).to(DEVICE)


def losses(
    frames: int, reversible: bool
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, torch.nn.Module]]:
    """A forward pass of each, over the same codes, and the models."""
    chance = torch.Generator().manual_seed(0)

    def codes(*shape: int) -> Tensor:
        return torch.randint(1, CODES, shape, generator=chance).to(DEVICE)

    text, video, audio = codes(1, WORDS), codes(1, frames, SIZE, SIZE), codes(1, frames, SOUND)
    their, our = published(frames, reversible), ours(frames, reversible)
    theirs: Any = {"text": text, "video": video, "audio": audio.flatten(1), "return_loss": True}
    passes: dict[str, Callable[[], Tensor]] = {
        PACKAGES[0]: lambda: their(**theirs, cond_dropout_prob=0.0),
        PACKAGES[1]: lambda: our.losses(text=text, video=video, audio=audio).total,
    }
    return passes, dict(zip(PACKAGES, (their, our), strict=True))


def measure(frames: int, turns: int) -> Found:
    """One length."""
    found = Found(frames)
    for reversible, times in ((True, found.step), (False, found.stored)):
        both, models = losses(frames, reversible)
        for name, loss in both.items():
            loss().backward()  # warms up, and makes the gradients
            times[name] = []
            if reversible:
                found.peak[name] = peak_bytes(lambda loss=loss: loss().backward())
                models[name].requires_grad_(False)  # the counter's hooks fail on views of weights
                with torch.no_grad(), FlopCounterMode(display=False) as counter:
                    loss()
                models[name].requires_grad_(True)
                found.flops[name] = counter.get_total_flops()
        for _ in range(turns):
            for name, loss in both.items():
                times[name].append(seconds(lambda loss=loss: loss().backward()))
    their, our = published(frames, True), ours(frames, True)
    for clips, guidance, times in (
        (1, 1.0, found.write),
        (1, 2.0, found.guided),
        (SEVERAL, 1.0, found.several),
    ):
        if times is found.write or found.tokens == TOKENS:
            text = torch.ones(clips, WORDS, dtype=torch.long, device=DEVICE)
            our.generate(text, 1, progress=False)  # warms up
            write = partial(our.generate, text, guidance=guidance, progress=False)
            times[PACKAGES[1]] = [seconds(write) for _ in range(turns)]
            write = partial(their.generate, text=text, cond_scale=guidance)
            times[PACKAGES[0]] = [seconds(write)]
    return found


def runs() -> dict[str, list[float]]:
    """Seconds of nearby attention with its backward pass, for runs of some lengths, and dense."""
    frames, side = 10, 16
    mask = nearby_in_tower("video", frames, (1, side, side), [(2, 0), 3, 3])
    chance = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, HEADS, len(mask.readers), 64, generator=chance).to(DEVICE).requires_grad_()
        for _ in range(3)
    )
    ways: dict[str, Callable[[], Tensor]] = {}
    for length in RUNS:
        with patch.object(neighbours, "RUN", length):
            near = neighbours.Neighbours(mask).to(DEVICE)
        ways[str(length)] = lambda near=near: near(query, key, value)  # type: ignore[misc]
    dense = mask.dense().to(DEVICE)
    ways["dense mask"] = lambda: F.scaled_dot_product_attention(query, key, value, dense)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, way in ways.items():
            took = seconds(lambda way=way: way().sum().backward())  # type: ignore[misc]
            if turn:
                found[name].append(took)
    return found


def ratio(of: dict[str, Any]) -> float:
    """How many times as much the published package takes."""
    theirs, mine = (typical(of[name]) for name in PACKAGES)
    return theirs / mine


def typical(value: Any) -> float:
    """The median of several."""
    return statistics.median(value) if isinstance(value, list) else value


def report(turns: int, lengths: tuple[int, ...]) -> Iterator[str]:
    """The text of `nuwa.md`."""
    found: list[Found] = []
    parameters = {
        name: sum(p.numel() for n, p in model.named_parameters() if not n.startswith("vae."))
        for name, model in zip(PACKAGES, (published(2, True), ours(2, True)), strict=True)
    }
    head = f"""# Twin decoder

{taken_on("nuwa-pytorch", threads=torch.get_num_threads())}
- Width {DIM}, {DEPTH} layers, {HEADS} heads of {DIM_HEAD}; {SIZE} × {SIZE} codes of film and \
{SOUND} of sound in a frame; one clip, float32
- Windows as published: {KERNEL} frames, rows and columns back, {STEPS} steps of sound; the towers \
meet every {EVERY} layers
- Parameters: {", ".join(f"{name} {count / 1e6:.1f} M" for name, count in parameters.items())}
- Medians of {turns} turns (writing with `nuwa-pytorch`: once); a step is a forward and a backward \
pass
- `nuwa-pytorch` with `enc_reversible=True`: without it its forward pass raises a TypeError. It \
makes no pictures of its codes

"""
    for frames in lengths:
        progress(f"{frames} frames")
        found.append(measure(frames, turns))
        yield head + tables(found)
    progress("runs")
    lengths_of = {name: statistics.median(times) for name, times in runs().items()}
    rows = [[name, f"{1000 * time:.0f} ms"] for name, time in lengths_of.items()]
    about = "10 frames of 16 × 16, window 3, 8 heads of 64, with the backward pass"
    text = f"\n## Nearby attention: queries in a run\n\n{about}; `neighbours.RUN` is "
    text += f"{neighbours.RUN}.\n\n{markdown(['run', 'time'], rows)}"
    yield head + tables(found) + text


def tables(found: list[Found]) -> str:
    """Targets and all numbers."""
    last = next((f for f in found if f.tokens == TOKENS), found[-1])
    targets = [
        [name, f"≥ {wanted:.0f}", f"{value:.1f}", "met" if value >= wanted else "missed"]
        for name, wanted, value in (
            ("training step, time", STEP, ratio(last.step)),
            ("training step, peak memory", PEAK, ratio(last.peak)),
            ("writing one clip", WRITE, ratio(last.write)),
            ("writing one clip with guidance", WRITE, ratio(last.guided)),
            (f"writing {SEVERAL} clips at once", WRITE, ratio(last.several)),
        )
    ]
    text = f"## Targets, {last.tokens} tokens: published / ours\n\n"
    text += markdown(["", "wanted", "found", ""], targets)
    for title, unit, of, scale in (
        ("Training step, reversible", "s", "step", 1),
        ("Training step, activations stored", "s", "stored", 1),
        ("Peak memory of a reversible step", "MiB", "peak", MIB),
        ("FLOPs of a forward pass", "GFLOP", "flops", 1e9),
        ("Writing all tokens", "s", "write", 1),
        ("Writing with guidance 2, the default of `nuwa-pytorch`", "s", "guided", 1),
        (f"Writing {SEVERAL} clips at once", "s", "several", 1),
    ):
        rows = [
            [
                f"{f.frames} ({f.tokens} tokens)",
                *(f"{typical(getattr(f, of)[name]) / scale:.2f}" for name in PACKAGES),
                f"{ratio(getattr(f, of)):.1f}",
            ]
            for f in found
            if getattr(f, of)
        ]
        text += f"\n## {title}\n\n"
        text += markdown(["frames", *(f"{name}, {unit}" for name in PACKAGES), "ratio"], rows)
    return text


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little of everything, no file")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="nuwa_pytorch")
    turns, lengths = (1, (1,)) if arguments.quick else (TURNS, FRAMES)
    publish(report(turns, lengths), None if arguments.quick else "nuwa")


if __name__ == "__main__":
    main()

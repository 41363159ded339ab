"""Writing with a twin decoder: each token is computed once, the keys and values of all are kept.

Frame by frame first the film is written, then its sound. What is given is taken, what is missing is
drawn: so one way of writing makes clips from a text, goes on from given frames, and writes sound
for a given film.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlib.coupling import moved
from avlib.twin_layers import Cache

if TYPE_CHECKING:
    from avlib.nuwa import TwinDecoder

HALVES = {"video": ("x1", "x2"), "audio": ("m1", "m2")}


class Writer:
    """A clip that is being written: gives the logits of what comes next.

    Use it under `torch.no_grad()`, with the model in eval mode.

    Args:
        model: the decoder.
        text: what it writes about.
        dropped: clips whose text is not read.
    """

    def __init__(
        self,
        model: "TwinDecoder",
        text: Int[Tensor, "b words"],
        dropped: Bool[Tensor, " b"] | None = None,
    ) -> None:
        self.model, self.cache = model, Cache()
        context, real = model.text(text)
        if dropped is not None:
            real = real & ~dropped[:, None]
        self.inputs = {"context": context, "context_mask": None if real.all() else real}

    def write(
        self, tower: str, tokens: Float[Tensor, "b m d"], frame: int
    ) -> Float[Tensor, "b m codes"]:
        """Take the next tokens of a tower, all of one frame; the logits of what follows each."""
        sequence, own = self.model.towers.sequence, HALVES[tower]
        halves = dict.fromkeys(own, tokens)
        if sequence.grid is not None:
            halves = sequence.grid.enter(halves)
        for coupling in (coupling for block in sequence.blocks for coupling in block):
            (target,), (first, *others) = coupling.targets, coupling.reads
            if target in own:
                delta = coupling.fn.step(self.cache, halves[first], frame=frame, **self.inputs)
                halves = moved(halves, {target: delta}, sequence.grid)
            elif others:  # the other tower will read this one, as it is now
                coupling.fn.remember(self.cache, halves[others[0]])
        return self.model.ends[tower].logits((halves[own[0]] + halves[own[1]]) / 2)


def write_clips(
    model: "TwinDecoder",
    text: Int[Tensor, "b words"],
    given: dict[str, Int[Tensor, "b _t _n"]],
    frames: int,
    *,
    temperature: float,
    top_k: int | None,
    guidance: float,
    generator: torch.Generator | None,
    progress: bool,
) -> dict[str, Int[Tensor, "b frames _n"]]:
    """Codes of both towers: those given, and the rest drawn; see `TwinDecoder.generate`."""
    from tqdm.auto import tqdm  # not before it is needed: in a notebook it loads ipywidgets

    batch = len(text)
    towers = model.ends
    versions = 1 if guidance == 1 else 2  # with two each clip is written with its text and without
    dropped = torch.arange(versions, device=text.device).repeat_interleave(batch) == 1
    writer = Writer(model, text.repeat(versions, 1), dropped)
    where = {name: tower.where(frames) for name, tower in towers.items()}
    written = {
        name: torch.zeros(batch, frames, tower.places - 1, dtype=torch.long, device=text.device)
        for name, tower in towers.items()
    }
    total = frames * sum(tower.places - 1 for tower in towers.values())

    def take(name: str, frame: int, codes: Tensor) -> None:
        """Write a frame that is known."""
        written[name][:, frame] = codes
        tokens = towers[name].placed(codes[:, None], where[name][frame : frame + 1])
        writer.write(name, tokens.repeat(versions, 1, 1), frame)

    def draw(name: str, frame: int) -> None:
        """Write a frame code by code."""
        token = where[name][frame, :1].expand(versions * batch, -1, -1)
        for place in range(towers[name].places - 1):
            scores = writer.write(name, token, frame)[:, 0].float().chunk(versions)
            # without + guidance · (with - without), with itself where there is one version
            logits = torch.lerp(scores[-1], scores[0], guidance)
            code = pick(logits, temperature, top_k, generator)
            written[name][:, frame, place] = code
            token = towers[name].embedding(code) + where[name][frame, 1 + place]
            token = token.repeat(versions, 1)[:, None]
        writer.write(name, token, frame)  # the last one, for those that read it

    with tqdm(total=total, unit="token", disable=not progress) as bar:
        for frame in range(frames):
            for name, tower in towers.items():
                if name in given and frame < given[name].shape[1]:
                    take(name, frame, given[name][:, frame])
                else:
                    draw(name, frame)
                bar.update(tower.places - 1)
    return written


def pick(
    logits: Float[Tensor, "b codes"],
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None,
) -> Int[Tensor, " b"]:
    """One code each, at random by softmax(logits / temperature) among the top_k likeliest.

    With temperature 0 it is the likeliest.
    """
    if not logits.isfinite().all():
        raise ValueError(
            "TwinDecoder.generate: the logits are not finite, so no code is likelier than others; "
            "look for NaN in the weights, as a training that failed leaves them"
        )
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None and top_k < logits.shape[-1]:
        scores, codes = logits.topk(top_k, -1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, codes, scores)
    # The highest score first becomes 0: a tiny temperature must not make infinities.
    temperature = max(temperature, torch.finfo(logits.dtype).tiny)
    likely = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    device = likely.device if generator is None else generator.device
    drawn = torch.multinomial(likely.to(device), 1, generator=generator)
    return drawn[:, 0].to(logits.device)

"""What a model is trained for: labels at each readout, readouts of a clip that find each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from avlib.checks import check_counts, check_positive
from avlib.examples import MODALITIES, UNKNOWN, Batch, Example, collate
from avlib.plan import Plan
from avlib.processes import gather, gather_fixed
from avlib.zorro import Zorro


@dataclass(frozen=True)
class Objective:
    """Cross-entropy for each readout and label, and contrastive losses between readouts; all added.

    It lays out what a readout's linear head gives: the logits of each label, one label after the
    other, then the features that are contrasted. So the model is made with
    `num_classes=objective.num_outputs`.

    Args:
        labels: name → number of classes.
        contrast: pairs of readouts, such as ("audio", "video"), that shall find each other in a
            batch by their features.
        features: how many are contrasted.
        temperature: similarities are divided by it.

    Raises:
        ValueError: a number out of range, a pair that is none, or neither labels nor contrast.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    contrast: Sequence[tuple[str, str]] = ()
    features: int = 32
    temperature: float = 0.1

    def __post_init__(self) -> None:
        check_counts("Objective", features=self.features)
        check_counts("Objective", **{f"labels[{name!r}]": n for name, n in self.labels.items()})
        check_positive("Objective", temperature=self.temperature)
        if not self.labels and not self.contrast:
            raise ValueError("Objective: got neither labels nor contrast; give one of them")
        for pair in self.contrast:
            if isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]:
                raise ValueError(
                    f'Objective: contrast has {pair!r}; give pairs such as ("audio", "video")'
                )

    @property
    def num_outputs(self) -> int:
        """Numbers that each readout's head must give."""
        return sum(self.labels.values()) + (self.features if self.contrast else 0)

    def check_model(self, model: Zorro) -> None:
        """Refuse a model with other outputs, without a readout that is contrasted, or with two."""
        readouts = model.kinds
        outputs = model.class_heads[0].out_features if model.class_heads else None
        if outputs != self.num_outputs:
            raise ValueError(
                f"Objective: the model has num_classes={outputs}, the objective needs "
                f"{self.num_outputs}; make it with num_classes=objective.num_outputs"
            )
        for name in {name for pair in self.contrast for name in pair} - {*readouts}:
            raise ValueError(
                f"Objective: contrast names the readout {name!r}, the model has {list(readouts)}; "
                "ask for it with return_token_types"
            )
        if len(set(readouts)) < len(readouts):
            raise ValueError(
                f"Objective: the model has the readouts {list(readouts)}; give each kind once"
            )

    def check_labels(self, labels: Mapping[str, Int[Tensor, " b"]]) -> None:
        """Refuse clips without one of these labels, or of a class that there is not."""
        for name, num_classes in self.labels.items():
            if name not in labels:
                raise ValueError(
                    f"Objective: the clips have the labels {list(labels)}, wanted {name!r} too; "
                    "give it UNKNOWN where nobody knows"
                )
            wrong = (labels[name] < UNKNOWN) | (labels[name] >= num_classes)
            if wrong.any():
                raise ValueError(
                    f"Objective: a clip has class {int(labels[name][wrong][0])} of {name!r}, "
                    f"wanted 0 to {num_classes - 1}, or {UNKNOWN} for UNKNOWN; raise its number of "
                    "classes in the objective"
                )

    def terms(self, readouts: Sequence[str]) -> tuple[str, ...]:
        """Names of the losses, in order: "audio pitch" for a label, "audio - video" for a pair."""
        labels = [f"{readout} {label}" for label in self.labels for readout in readouts]
        return *labels, *(f"{first} - {second}" for first, second in self.contrast)

    def logits(
        self, outputs: Float[Tensor, "b readouts d"]
    ) -> dict[str, Float[Tensor, "b readouts _c"]]:
        """The logits of each label."""
        sizes = list(self.labels.values())
        parts = outputs[..., : sum(sizes)].split(sizes, -1) if sizes else ()
        return dict(zip(self.labels, parts, strict=True))

    def embeddings(
        self, outputs: Float[Tensor, "b readouts d"]
    ) -> Float[Tensor, "b readouts features"]:
        """What is contrasted, scaled to length 1."""
        return F.normalize(outputs[..., sum(self.labels.values()) :], dim=-1)

    # What `train` asks for

    def names(self, model: Zorro) -> tuple[str, ...]:
        """Those of the losses."""
        return self.terms(model.kinds)

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree in, beside the names."""
        return {
            "classes": [int(number) for number in self.labels.values()],
            "temperature": float(self.temperature),
        }

    def unused(self, model: Zorro) -> bool:
        """Whether some weights get no gradient."""
        read = {name for kind in model.kinds for name in model.promise.reads[kind]}
        return read < {*model.promise.keys}

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Clips side by side."""
        return collate(examples)

    def prepare(self, batch: Batch, plan: Plan, step: int, rank: int) -> Batch:
        """The clips as they are learned from: some without their sound or their pictures."""
        self.check_labels(batch.labels)
        return plan.drop_modalities(batch, step, rank)

    def outputs(self, model: Zorro, batch: Batch, through: nn.Module) -> tuple[Tensor, ...]:
        """See `answers`."""
        return answers(model, batch, through)

    def found(
        self, model: Zorro, batch: Batch, outputs: tuple[Tensor, ...]
    ) -> Float[Tensor, " terms"]:
        """The losses of all processes' outputs together."""
        readouts, readable = outputs
        return self.losses(
            gather(readouts.to(torch.promote_types(readouts.dtype, torch.float32))),
            {name: gather_fixed(label) for name, label in batch.labels.items()},
            model.kinds,
            gather_fixed(readable),
        )

    def losses(
        self,
        outputs: Float[Tensor, "b readouts d"],
        labels: Mapping[str, Int[Tensor, " b"]],
        readouts: Sequence[str],
        readable: Bool[Tensor, "b readouts"],
    ) -> Float[Tensor, " terms"]:
        """One loss for each of `terms(readouts)`.

        A term counts only examples whose label is known and whose readout has something to read; it
        is 0 where there are none.

        Args:
            outputs: of the model.
            labels: class of each clip, `UNKNOWN` where nobody knows.
            readouts: their kinds, as in `Zorro.kinds`.
            readable: which readouts had something to read.
        """
        losses = []
        for label, logits in self.logits(outputs).items():
            for i in range(len(readouts)):
                known = torch.where(readable[:, i], labels[label], UNKNOWN)
                total = F.cross_entropy(logits[:, i], known, ignore_index=UNKNOWN, reduction="sum")
                losses.append(total / (known != UNKNOWN).sum().clamp(min=1))
        if self.contrast:
            embeddings = self.embeddings(outputs)
            for first, second in self.contrast:
                i, j = readouts.index(first), readouts.index(second)
                both = readable[:, i] & readable[:, j]
                pair = embeddings[both, i], embeddings[both, j]
                losses.append(contrastive_loss(*pair, self.temperature))
        return torch.stack(losses)


def answers(
    zorro: Zorro, batch: Batch, through: nn.Module | None = None
) -> tuple[Float[Tensor, "b readouts d"], Bool[Tensor, "b readouts"]]:
    """What each readout gives for each clip, and where it had something to read.

    A modality that no clip of the batch has is given as one patch of padding. So every readout
    answers, and every weight is used, whatever a batch lacks.

    Args:
        zorro: the model.
        batch: on the model's device.
        through: what to call in its place, such as the model in `DistributedDataParallel`.
    """
    inputs = dict(batch.inputs)
    video = zorro.video_embedding
    for name, patch in (("audio", (1,)), ("video", (video.channels, *video.patch_size))):
        if name not in inputs:
            inputs[name] = zorro.fusion_tokens.new_zeros(len(batch), *patch)
            inputs[f"{name}_lengths"] = inputs[name].new_zeros(len(batch), dtype=torch.long)
    outputs = (zorro if through is None else through)(**inputs)
    has = {name: batch.has(name) for name in MODALITIES}
    nothing = torch.zeros_like(has["audio"])
    moved_by = zorro.promise.reads
    read = [
        torch.stack([nothing, *(has[n] for n in moved_by[kind] if n in has)]).any(0)
        for kind in zorro.kinds
    ]
    return outputs, torch.stack(read, 1)


def contrastive_loss(
    first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Each row of one shall find its own row of the other among all, and the reverse (InfoNCE).

    The mean of both directions of cross-entropy over similarities; 0 for an empty batch. (Oord et
    al. 2018, arXiv:1807.03748, eq. 4; both directions as in CLIP, arXiv:2103.00020, figure 3.)

    Args:
        first, second: embeddings of length 1; row i of both is of the same clip.
        temperature: similarities are divided by it.
    """
    if not len(first):
        return (first.sum() + second.sum()) * 0
    return matching_loss(first @ second.T / temperature)


def matching_loss(scores: Float[Tensor, "b b"]) -> Float[Tensor, ""]:
    """Cross-entropy where row i belongs to column i: rows look for columns, columns for rows."""
    own = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2

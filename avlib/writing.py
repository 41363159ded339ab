"""What a twin decoder is trained for: each code, given the text and all that is written before."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from avlib.checks import check_between
from avlib.nuwa import TwinDecoder, clip_losses
from avlib.plan import Plan
from avlib.processes import gather


class Codes(NamedTuple):
    """Clips side by side, as `TwinDecoder` takes them."""

    text: Int[Tensor, "b words"]
    video: Int[Tensor, "b t y x"]
    audio: Int[Tensor, "b t n"]
    dropped: Bool[Tensor, " b"]

    def to(self, device: torch.device | str) -> "Codes":
        """The same on another device."""
        return Codes(*(tensor.to(device) for tensor in self))


@dataclass(frozen=True)
class Writing:
    """Cross-entropy of the codes of film and of sound, weighed and added.

    Args:
        video_weight, audio_weight: of the mean over the codes of a modality, 0 or more.
        text_dropout: probability that a clip is learned without its text, so that
            `TwinDecoder.generate` can be asked for guidance.

    Raises:
        ValueError: a number out of range.
    """

    video_weight: float = 1.0
    audio_weight: float = 1.0
    text_dropout: float = 0.0

    def __post_init__(self) -> None:
        weights = {"video_weight": self.video_weight, "audio_weight": self.audio_weight}
        check_between("Writing", 0, inf, **weights)
        check_between("Writing", 0, 1, text_dropout=self.text_dropout)

    # What `train` asks for

    def check_model(self, model: nn.Module) -> None:
        """Refuse what does not write."""
        if not isinstance(model, TwinDecoder):
            raise TypeError(
                f"Writing: the model is a {type(model).__name__}, wanted a TwinDecoder; for a "
                "Zorro give an Objective"
            )

    def names(self, model: TwinDecoder) -> tuple[str, ...]:
        """Those of the losses."""
        return "video", "audio"

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree in, beside the names."""
        return asdict(self)

    def unused(self, model: TwinDecoder) -> bool:
        """Whether some weights get no gradient."""
        return False

    def batch(self, examples: Sequence[Sequence[Tensor]]) -> Codes:
        """Clips (text, video, audio) side by side.

        Raises:
            TypeError: an example is something else.
        """
        for example in examples:
            if not isinstance(example, tuple | list) or len(example) != 3:
                raise TypeError(
                    f"Writing: an example is a {type(example).__name__}, wanted codes (text, "
                    "video, audio); use TensorDataset(text, video, audio)"
                )
        text, video, audio = (torch.stack(part) for part in zip(*examples, strict=True))
        return Codes(text, video, audio, torch.zeros(len(text), dtype=torch.bool))

    def prepare(self, batch: Codes, plan: Plan, step: int, rank: int) -> Codes:
        """The clips as they are learned from: some without their text.

        Raises:
            ValueError: the plan has modality dropout.
        """
        if plan.modality_dropout:
            raise ValueError(
                f"Writing: modality_dropout is {plan.modality_dropout}, and a twin decoder writes "
                "both modalities; leave it out, text_dropout leaves out the text"
            )
        return batch._replace(dropped=plan.draws("text", step, rank) < self.text_dropout)

    def outputs(self, model: TwinDecoder, batch: Codes, through: nn.Module) -> tuple[Tensor, ...]:
        """Logits of both, see `TwinDecoder`."""
        return through(**batch._asdict())

    def found(
        self, model: TwinDecoder, batch: Codes, outputs: tuple[Tensor, ...]
    ) -> Float[Tensor, " 2"]:
        """The losses of all processes' clips together."""
        each = gather(clip_losses(outputs, (batch.video, batch.audio))).mean(0)
        return each * each.new_tensor([self.video_weight, self.audio_weight])

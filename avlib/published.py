"""Weights of the published package, `zorro-pytorch` 0.1.1, in the words of `avlib.Zorro`."""

from collections.abc import Mapping
from typing import Any

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn

from avlib.sound import FrontEnd
from avlib.tokens import pair

# The published defaults: keywords of torchaudio's Spectrogram, there with a prefix `spec_`.
SPECTROGRAM: dict[str, Any] = {
    "n_fft": 128,
    "power": 2,
    "win_length": 24,
    "hop_length": None,
    "pad": 0,
    "center": True,
    "pad_mode": "reflect",
}

# The published package takes these and does nothing with them.
UNUSED = ("spec_aug_stretch_factor", "spec_aug_freq_mask", "spec_aug_time_mask")


def translate(
    source: nn.Module | Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The keywords and the state dict of the `avlib.Zorro` that a published model becomes.

    Arguments and errors are those of `Zorro.from_zorro_pytorch`.
    """
    settings = dict(settings)
    if isinstance(source, nn.Module):
        if settings:
            raise ValueError(
                f"from_zorro_pytorch: got a model and {sorted(settings)}; a model knows its "
                "own settings, leave them out or pass model.state_dict()"
            )
        settings = _published_settings(source)
    state = source.state_dict() if isinstance(source, nn.Module) else source
    if "layers.0.1.3.weight" not in state or "fusion_tokens" not in state:
        raise ValueError(
            f"from_zorro_pytorch: got a state dict with {len(state)} entries and no "
            "'fusion_tokens' or 'layers.0.1.3.weight'; give that of a zorro-pytorch model"
        )
    for name in UNUSED:
        settings.pop(name, None)
    spec = {name: settings.pop(f"spec_{name}", value) for name, value in SPECTROGRAM.items()}
    dim = state["fusion_tokens"].shape[1]
    inner = state["layers.0.1.3.weight"].shape[1]
    heads = settings.pop("heads", 8)
    patch = pair(settings.get("audio_patch_size", 16), "audio_patch_size")
    keywords = {
        "dim": dim,
        "depth": 1 + max(int(n.split(".")[1]) for n in state if n.startswith("layers.")),
        "heads": heads,
        "dim_head": state["attn_pool.to_q.weight"].shape[0] // heads,
        "ff_mult": (inner + 0.5) * 3 / (2 * dim),  # int(dim · mult · 2/3) gives inner back
        "num_fusion_tokens": len(state["fusion_tokens"]),
        "front_end": CroppedSpectrogram(patch, **spec),
        "positions": False,
        **settings,
    }
    # A published norm has no bias either: its beta is a buffer of zeros.
    return keywords, {_renamed(n): t for n, t in state.items() if not n.endswith(".beta")}


def check_fit(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not the model's, in names and shapes."""
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    theirs = {name: tensor.shape for name, tensor in weights.items()}
    if own != theirs:
        wrong = min(name for name, _ in own.items() ^ theirs.items())
        raise ValueError(
            f"from_zorro_pytorch: {wrong!r} does not fit these settings; pass the keywords "
            "that the published model was made with"
        )


def _published_settings(model: Any) -> dict[str, Any]:
    try:
        spec, attention = model.spec, model.attn_pool
        frames, height, width = model.video_patch_size
        (values,) = model.video_to_tokens[1].normalized_shape
        return {
            "heads": attention.heads,
            "audio_patch_size": model.audio_patch_size,
            "video_patch_size": (height, width),
            "video_temporal_patch_size": frames,
            "video_channels": values // (frames * height * width),
            "return_token_types": model.return_token_types,
            **{f"spec_{name}": getattr(spec, name) for name in SPECTROGRAM},
        }
    except AttributeError as missing:
        raise ValueError(
            f"from_zorro_pytorch: got {type(model).__name__}, which is no zorro-pytorch model "
            f"({missing}); pass a zorro_pytorch.Zorro or its state dict"
        ) from None


def _renamed(name: str) -> str:
    """A published weight's name here."""
    parts = name.split(".")
    if parts[0] == "layers":
        block = {"0": "attention", "1": "feed_forward"}[parts[2]]
        rest = parts[3:]
        if block == "feed_forward":
            rest = [{"0": "norm", "1": "to_inner", "3": "to_out"}[rest[0]], *rest[1:]]
        parts = ["layers", parts[1], block, *rest]
    elif parts[0] == "attn_pool":
        parts[0] = "pool"
    elif parts[0] == "spec":
        parts = ["audio_embedding", "front_end", "spectrogram", *parts[1:]]
    elif parts[0] in ("audio_to_tokens", "video_to_tokens"):
        # Its first step is the cutting, a layer there.
        modality, step = parts[0].removesuffix("_to_tokens"), str(int(parts[1]) - 1)
        parts = [f"{modality}_embedding", "to_tokens", step, *parts[2:]]
    return ".".join("weight" if part == "gamma" else part for part in parts)


class CroppedSpectrogram(FrontEnd):
    """The linear power spectrogram of `zorro-pytorch`, cropped to whole patches as there.

    Everything else here pads and loses nothing.

    Args:
        patch_size: (bins, frames).
        settings: keywords of `torchaudio.transforms.Spectrogram`.
    """

    def __init__(self, patch_size: tuple[int, int], **settings: object) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.spectrogram = torchaudio.transforms.Spectrogram(**settings)

    def forward(self, audio: Float[Tensor, "b samples"]) -> Float[Tensor, "b f t"]:
        """Power; (batch, bins, columns), both cropped down to a multiple of the patch."""
        with torch.autocast(audio.device.type, enabled=False):
            power = self.spectrogram(audio.to(self.spectrogram.window.dtype))
        bins, columns = (n // p * p for n, p in zip(power.shape[1:], self.patch_size, strict=True))
        if columns == 0:
            raise ValueError(
                f"Zorro: {audio.shape[-1]} samples give {power.shape[2]} spectrogram columns, "
                f"under one patch of {self.patch_size[1]}; give a longer waveform"
            )
        return power[:, :bins, :columns]

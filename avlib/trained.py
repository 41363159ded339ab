"""The small models of the notebooks, each made for a world and trained in it.

A Zorro for `avlib.world`, and a twin decoder for `avlib.bounce`.
"""

from pathlib import Path
from typing import Any

from avlib import bounce
from avlib.checkpoint import load_tensors
from avlib.nuwa import TwinDecoder
from avlib.objective import Objective
from avlib.sound import LogMelSpectrogram
from avlib.world import FRAMES, SAMPLE_RATE, SIZE
from avlib.zorro import Zorro

WEIGHTS = Path(__file__).parent / "course" / "weights"
NAMES = ("labels", "modality_dropout")  # of what `benchmarks/training.py` trained


def small_front_end() -> LogMelSpectrogram:
    """Spectrograms of 32 mel bins and 32 columns a second."""
    return LogMelSpectrogram(
        sample_rate=SAMPLE_RATE, n_fft=512, hop_length=250, num_mels=32, patch_frames=8
    )


def small_zorro(objective: Objective, **changes: Any) -> Zorro:
    """A Zorro of 3 layers of width 64 for clips of the world: 16 audio and 64 video tokens.

    Args:
        objective: what its readouts are trained for.
        changes: other keywords of `Zorro`, or other values.
    """
    settings: dict[str, Any] = {
        "dim": 64,
        "depth": 3,
        "heads": 8,
        "dim_head": 8,
        "num_fusion_tokens": 16,
        "audio_patch_size": 8,
        "video_patch_size": 4,
        "return_token_types": ("audio", "video", "fusion", "global"),
        "num_classes": objective.num_outputs,
        "front_end": small_front_end(),
        "max_audio_bins": 32,
        "max_audio_frames": 32,
        "max_video_frames": FRAMES,
        "max_video_size": SIZE,
    }
    return Zorro(**{**settings, **changes})


def trained_zorro(name: str = "labels") -> tuple[Zorro, Objective]:
    """A small Zorro with the weights that ship, and what it was trained for.

    Args:
        name: "labels", or "modality_dropout" for one that missed a modality in some of its clips.

    Raises:
        ValueError: there are no such weights.
    """
    if name not in NAMES:
        raise ValueError(f"trained_zorro: no weights {name!r}; choose one of {', '.join(NAMES)}")
    tensors, facts = load_tensors(WEIGHTS / f"{name}.safetensors")
    objective = Objective(**facts["objective"])
    model = small_zorro(objective)
    model.load_state_dict(tensors)
    return model.eval(), objective


def small_twin(**changes: Any) -> TwinDecoder:
    """A twin decoder of 2 layers of width 64 for clips of `avlib.bounce`.

    Args:
        changes: other keywords of `TwinDecoder`, or other values.
    """
    settings: dict[str, Any] = {
        "dim": 64,
        "depth": 2,
        "heads": 4,
        "dim_head": 16,
        "ff_mult": 2,
        "text_depth": 1,
        "text_words": len(bounce.WORDS),
        "video_codes": bounce.CODES,
        "audio_codes": bounce.CODES,
        "video_size": (bounce.SIZE, bounce.SIZE),
        "max_frames": bounce.FRAMES,
        "max_words": bounce.LONGEST,
        "video_window": ((2, 0), None, None),
        "audio_window": ((2, 0), None),
    }
    return TwinDecoder(**{**settings, **changes})


def trained_twin() -> TwinDecoder:
    """A small twin decoder with the weights that ship; it never met `bounce.HELD_OUT`."""
    tensors, _ = load_tensors(WEIGHTS / "writing.safetensors")
    model = small_twin()
    model.load_state_dict(tensors)
    return model.eval()

"""What every test shares: one thread, a fixed seed, and shape checks on all of avlib."""

import os

# Before torch is loaded, here and in what the tests start: tests run side by side, and threads that
# wait for each other's cores take ten times as long.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch
from hypothesis import settings

# Must come before anything imports avlib. PEP 484's tower lets 4 pass for a float.
jaxtyping.install_import_hook(
    "avlib", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

import avlib  # noqa: E402

settings.register_profile("avlib", deadline=None, derandomize=True, database=None, max_examples=20)
settings.load_profile("avlib")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def no_shape_checks() -> Iterator[None]:
    """For calls that are wrong on purpose, so that avlib's own message is seen."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def make_zorro() -> Callable[..., avlib.Zorro]:
    """A seeded little Zorro in eval mode: 16 mel bins and 100 columns a second, 8×8 and 2×4×4
    patches, all four readouts."""

    def make(depth: int = 2, *, patch: int = 8, **changes: object) -> avlib.Zorro:
        torch.manual_seed(0)
        settings: dict[str, object] = {
            "heads": 2,
            "dim_head": 8,
            "num_fusion_tokens": 3,
            "audio_patch_size": patch,
            "video_patch_size": 4,
            "front_end": avlib.LogMelSpectrogram(
                sample_rate=8000, n_fft=256, hop_length=80, num_mels=16, patch_frames=patch
            ),
            "return_token_types": ("audio", "video", "fusion", "global"),
        }
        return avlib.Zorro(24, depth, **{**settings, **changes}).eval()

    return make

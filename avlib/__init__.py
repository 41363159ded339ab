"""Deep audio-visual transformers, complete and small enough to read.

- `sound`, `tokens`: waveforms become spectrograms, and these and film strips tokens, and back
- `masks`: who may read whom, group by group (`Visibility`)
- `token_masks`, `named_tokens`: and token by token (`Mask`, `as_mask`); `gallery` has the masks of
  the literature, `reach` what follows from one, `attention_maps` what a model makes of it
- `leaks`: whether a model keeps to it (`influence`)
- `attention`: attention between groups, feed-forward
- `coupling`, `reversible`: blocks with an inverse, and what is made of them
- `recompute`, `grid`: their backward pass without stored activations, and their exact mode
- `nuwa`: the complete twin decoder, text to video and audio codes; `twin_streams`, `twin_layers`,
  `twin_masks` are its parts, `neighbours` its local attention, `generation` writes with it, and
  `bounce` is a world to write about
- `memory`, `predict`: how many bytes a step holds, or will hold; `ledger` enters them, and
  `as_on_cuda` does as a GPU would
- `embedding`, `layer`, `zorro`: the complete Zorro model; `late_fusion` keeps its streams for later
- `data`, `decode`: clips from files
- `world`, `clip_folder`, `label_table`: clips with labels: from a small world in which every answer
  is known, or your own
- `examples`, `objective`, `training`, `evaluation`: batches, losses, a training that can be stopped
  at any moment, and what was learned; `plan`, `resume`, `checkpoint` and `processes` are its parts
- `writing`: what a twin decoder is trained for; `task`: what `train` asks of that
- `trained`: a small Zorro and a small twin decoder, with weights
- `explorer`: sliders over a mask or a model's attention (`explore`); `draw` is its still picture
- `plots`, `widgets`, `course`: pictures, sliders and exercises for the notebooks

Axes, in every shape: b batch, c channels, t frames, y/x space, f frequency, n tokens, i readers,
j read, h heads, d features.
"""

from typing import Any

from avlib import bounce, gallery
from avlib.attention import Attention, FeedForward, attend
from avlib.clip_folder import ClipFolder
from avlib.coupling import Coupling
from avlib.data import EXAMPLE_CLIP, Clip, load_clip, save_clip
from avlib.evaluation import evaluate
from avlib.examples import Example
from avlib.late_fusion import StreamCache
from avlib.leaks import Influence, influence
from avlib.masks import Visibility, zorro_readout, zorro_trunk
from avlib.nuwa import TwinDecoder
from avlib.objective import Objective
from avlib.reversible import DualModalityReversibleSequence, ReversibleSequence
from avlib.sound import LogMelSpectrogram, SpecAugment
from avlib.token_masks import Mask, as_mask
from avlib.tokens import (
    FactorisedPositions,
    TokenType,
    TokenTypes,
    patchify_audio,
    patchify_video,
    unpatchify_audio,
    unpatchify_video,
)
from avlib.trained import small_twin, small_zorro, trained_twin, trained_zorro
from avlib.training import train
from avlib.world import World
from avlib.writing import Writing
from avlib.zorro import Zorro


def __getattr__(name: str) -> Any:
    """`explore` and `draw`, which load matplotlib and ipywidgets when they are first asked for."""
    if name == "draw":
        from avlib.plots import draw

        return draw
    if name == "explore":
        from avlib.explorer import explore

        return explore
    raise AttributeError(f"module 'avlib' has no attribute {name!r}")

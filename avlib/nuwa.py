"""The twin decoder: a sentence in, film and sound out, token by token.

The text → video + audio extension of NÜWA (Wu et al. 2021, arXiv:2111.12417) that `nuwa-pytorch`
publishes as `NUWAVideoAudio`: a video tower and an audio tower that read the text and each other.
Frame by frame, first the film is written and then its sound.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from avlib.checks import (
    check_between,
    check_codes,
    check_counts,
    check_generator,
    check_marks,
    check_positive,
)
from avlib.gallery import Extent, frame_chunks
from avlib.generation import write_clips
from avlib.neighbours import Neighbours
from avlib.reversible import DualModalityReversibleSequence
from avlib.token_masks import Mask
from avlib.tokens import pair
from avlib.twin_layers import (
    NearbyAttention,
    NormedFeedForward,
    OtherTowerAttention,
    TextAttention,
)
from avlib.twin_masks import for_axes, in_turn, nearby_in_tower
from avlib.twin_streams import TextEncoder, Tower

AXES = {"video": ("batch", "frames", "rows", "columns"), "audio": ("batch", "frames", "codes")}
# The film of a frame is written before its sound, so it reads the sound of the frames before.
LAG = {"video": 1, "audio": 0}
OTHER = {"video": "audio", "audio": "video"}


class Losses(NamedTuple):
    """Cross-entropy of a code in nats, mean over each modality, and both weighed and added."""

    total: Float[Tensor, ""]
    video: Float[Tensor, ""]
    audio: Float[Tensor, ""]


class TwinDecoder(nn.Module):
    """The complete model: a text and what was written so far in, logits of what comes next out.

    A layer of a tower is attention nearby in itself and a feed-forward, then attention to the text
    and a feed-forward; every `cross_every` layers attention to the other tower and a feed-forward
    follow. They are the three blocks of `DualModalityReversibleSequence`.

    Args:
        dim: features of a token.
        depth: layers.
        text_words: size of the vocabulary; word 0 is padding.
        video_codes, audio_codes: sizes of the codebooks.
        video_size: rows and columns of a frame, in codes.
        audio_size: steps in the time of a frame, and codes of a step.
        max_frames, max_words: of a clip and a text, at most.
        heads, dim_head: attention heads and features of each.
        ff_mult: inner size of the feed-forward, see `FeedForward`.
        text_depth: layers of the text encoder.
        video_window: what a video token reads nearby, along frames, rows and columns; see
            `gallery.nearby`.
        audio_window: the same for sound, along steps and the codes of a step.
        video_dilation, audio_dilation: of the windows; layers take them in turn.
        cross_every: layers from one attention between the towers to the next; None for none.
        dropout: probability of dropping attention weights and inner features while training.
        reversible: store no activations for the backward pass but compute them again. The function
            is the same, so the attribute may be changed at any time.
        exact: round the streams to a `Grid`, so that blocks are undone bit for bit.

    Raises:
        ValueError: a size that is no positive whole number, or a window that fits no grid.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        text_words: int,
        video_codes: int,
        audio_codes: int,
        video_size: tuple[int, int],
        audio_size: tuple[int, int] = (1, 1),
        max_frames: int = 8,
        max_words: int = 64,
        heads: int = 8,
        dim_head: int = 64,
        ff_mult: float = 4,
        text_depth: int = 2,
        video_window: Sequence[Extent] = ((2, 0), 3, 3),
        audio_window: Sequence[Extent] = ((6, 0), None),
        video_dilation: Sequence[int | list[int]] = (1,),
        audio_dilation: Sequence[int | list[int]] = (1,),
        cross_every: int | None = 1,
        dropout: float = 0.0,
        reversible: bool = True,
        exact: bool = False,
    ) -> None:
        super().__init__()
        check_counts(
            "TwinDecoder",
            dim=dim,
            depth=depth,
            text_words=text_words,
            video_codes=video_codes,
            audio_codes=audio_codes,
            max_frames=max_frames,
            max_words=max_words,
            heads=heads,
            dim_head=dim_head,
            text_depth=text_depth,
            cross_every=1 if cross_every is None else cross_every,
        )
        check_positive("TwinDecoder", ff_mult=ff_mult)
        check_between("TwinDecoder", 0, 1, dropout=dropout)
        self.reversible, self.max_frames = reversible, max_frames
        sizes: dict[str, Any] = {"heads": heads, "dim_head": dim_head, "dropout": dropout}
        self.text = TextEncoder(text_words, max_words, dim, text_depth, ff_mult=ff_mult, **sizes)
        video_grid = (1, *pair(video_size, "video_size"))
        audio_grid = (*pair(audio_size, "audio_size"), 1)
        self.video = Tower("video", video_codes, video_grid, max_frames, dim)
        self.audio = Tower("audio", audio_codes, audio_grid, max_frames, dim)

        self._crossed = cross_every is not None
        self._windows = {
            "video": for_axes("video_window", video_window, 3),
            "audio": [*for_axes("audio_window", audio_window, 2), 1],
        }
        self._dilations = {
            "video": in_turn("video_dilation", video_dilation, 3),
            "audio": in_turn("audio_dilation", audio_dilation, 2),
        }
        ends, masks = self.ends, self.masks
        near = {name: [Neighbours(mask) for mask in masks[name, name]] for name in ends}
        places = {name: end.places for name, end in ends.items()}
        across = {
            name: {"places": places[name], "other_places": places[OTHER[name]], "lag": LAG[name]}
            for name in ends
        }

        blocks, types = [], []

        def add(kind: str, attention: Any, settings: Mapping[str, Mapping[str, Any]]) -> None:
            block = []
            for name in ends:
                block.append(attention(dim, **sizes, **settings.get(name, {})))
                block.append(NormedFeedForward(dim, mult=ff_mult, dropout=dropout))
            blocks.append(block)
            types.append(kind)

        for layer in range(depth):
            nearby = {name: {"neighbours": some[layer % len(some)]} for name, some in near.items()}
            add("intra_modality_self_attn", NearbyAttention, nearby)
            add("intra_modality_cross_attn", TextAttention, {})
            if cross_every and (layer + 1) % cross_every == 0:
                add("inter_modality_cross_attn", OtherTowerAttention, across)
        self.towers = DualModalityReversibleSequence(blocks, types, exact=exact)

    @property
    def ends(self) -> dict[str, Tower]:
        """Where codes enter and leave each tower."""
        return {"video": self.video, "audio": self.audio}

    @property
    def masks(self) -> dict[tuple[str, str], list[Mask]]:
        """(reader, read) → who reads whom, as ("audio", "video"): one mask for each dilation."""
        masks = {}
        for name, end in self.ends.items():
            masks[name, name] = [
                nearby_in_tower(name, self.max_frames, end.grid, self._windows[name], dilation)
                for dilation in self._dilations[name]
            ]
            if self._crossed:
                keys = {OTHER[name]: (self.max_frames, 1, self.ends[OTHER[name]].places)}
                readers = {name: (self.max_frames, 1, end.places)}
                masks[name, OTHER[name]] = [frame_chunks(readers, keys, lag=LAG[name], null=True)]
        return masks

    def forward(
        self,
        *,
        text: Int[Tensor, "b words"],
        video: Int[Tensor, "b t y x"],
        audio: Int[Tensor, "b t n"],
        dropped: Bool[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b t y x _codes"], Float[Tensor, "b t n _codes"]]:
        """Logits of each code, from the text and from all that is written before it.

        Args:
            text: words, padded with 0. A text of padding alone is none.
            video: codes of the frames.
            audio: codes of the sound of each frame, step by step.
            dropped: clips whose text is not read.

        Raises:
            TypeError, ValueError: shapes, codes or frames that do not fit the model or each other.
        """
        context, real = self.text(text)
        texts = len(real)
        video, audio = self._codes("video", video, texts), self._codes("audio", audio, texts)
        frames = video.shape[1]
        if audio.shape[1] != frames:
            raise ValueError(
                f"TwinDecoder: video has {frames} frames, audio sound for {audio.shape[1]}; give "
                "sound for each frame"
            )
        if dropped is not None:
            check_marks("TwinDecoder", texts, dropped=dropped)
            real = real & ~dropped[:, None]
        streams = self.video(video.flatten(2)), self.audio(audio)
        out = self.towers(*streams, context=context, context_mask=real, reverse=self.reversible)
        video_logits, audio_logits = (
            # Each place but the last of a frame predicts the code after it.
            tower.logits(tokens.unflatten(1, (frames, -1))[:, :, :-1])
            for tower, tokens in zip(self.ends.values(), out, strict=True)
        )
        return video_logits.unflatten(2, video.shape[2:]), audio_logits

    def losses(
        self,
        *,
        text: Int[Tensor, "b words"],
        video: Int[Tensor, "b t y x"],
        audio: Int[Tensor, "b t n"],
        video_weight: float = 1.0,
        audio_weight: float = 1.0,
        text_dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """What training minimises: the cross-entropy of each code, given all before it.

        Args:
            text, video, audio: see `forward`.
            video_weight, audio_weight: of the mean over the codes of a modality, 0 or more.
            text_dropout: probability that a clip is learned without its text, so that `generate`
                can be asked for guidance.
            generator: draws which; by default torch's own.

        Raises:
            TypeError, ValueError: see `forward`; or a number out of range.
        """
        where = "TwinDecoder.losses"
        text = self.text.checked(text)
        check_between(where, 0, inf, video_weight=video_weight, audio_weight=audio_weight)
        check_between(where, 0, 1, text_dropout=text_dropout)
        check_generator(where, generator)
        device = None if generator is None else generator.device
        draws = torch.rand(len(text), generator=generator, device=device)
        dropped = (draws < text_dropout).to(text.device)
        logits = self(text=text, video=video, audio=audio, dropped=dropped)
        each = clip_losses(logits, (video, audio)).mean(0)
        return Losses(video_weight * each[0] + audio_weight * each[1], *each)

    @torch.no_grad()
    def generate(
        self,
        text: Int[Tensor, "b words"],
        num_frames: int | None = None,
        *,
        video: Int[Tensor, "b _t y x"] | None = None,
        audio: Int[Tensor, "b _t n"] | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        guidance: float = 1.0,
        generator: torch.Generator | None = None,
        progress: bool = True,
    ) -> tuple[Int[Tensor, "b frames y x"], Int[Tensor, "b frames n"]]:
        """Write clips in eval mode: each code is drawn, given the text and all before it.

        What is given of film and sound is taken, from the first frame on, and the rest is written:
        frames go on, a film given whole gets its sound, a sound given whole its film (which, frame
        by frame, knows only the sound before).

        Args:
            text: words, padded with 0. A text of padding alone is none.
            num_frames: how many to end with; by default as many as the model allows.
            video, audio: what is given, of so many frames or fewer.
            temperature: logits are divided by it; below 1 likely codes become likelier. At 0 always
                the likeliest code is written.
            top_k: draw from so many of the likeliest codes.
            guidance: how far to go from what is said without the text to what is said with it, and
                beyond it over 1; for a model that was trained with `text_dropout` (classifier-free
                guidance, Ho & Salimans 2022, arXiv:2207.12598). Anything but 1 takes twice the
                work.
            generator: the source of chance; by default torch's own. The same seed gives the same
                clips.
            progress: show a bar.

        Returns:
            Codes of num_frames frames, and of their sound.

        Raises:
            TypeError, ValueError: a number out of range; shapes, codes or frames that do not fit
                the model or each other; or the model's logits are not finite.
        """
        where = "TwinDecoder.generate"
        text = self.text.checked(text)
        frames = self.max_frames if num_frames is None else num_frames
        check_counts(where, num_frames=frames, top_k=1 if top_k is None else top_k)
        check_between(where, 0, inf, temperature=temperature, guidance=guidance)
        check_generator(where, generator)
        given = {
            name: self._codes(name, codes, len(text)).flatten(2)
            for name, codes in (("video", video), ("audio", audio))
            if codes is not None
        }
        if frames > self.max_frames:
            raise ValueError(
                f"{where}: num_frames is {frames}, the model has positions for {self.max_frames}; "
                "ask for fewer, or make it with a larger max_frames"
            )
        for name, codes in given.items():
            if codes.shape[1] > frames:
                raise ValueError(
                    f"{where}: {name} has {codes.shape[1]} frames and {frames} are to be written; "
                    f"give {name}[:, :{frames}] or raise num_frames"
                )
        training = [module for module in self.modules() if module.training]
        try:
            written = write_clips(
                self.eval(),
                text,
                given,
                frames,
                temperature=temperature,
                top_k=top_k,
                guidance=guidance,
                generator=generator,
                progress=progress,
            )
        finally:
            for module in training:
                module.training = True
        return written["video"].unflatten(2, self.video.grid[1:]), written["audio"]

    def _codes(self, name: str, codes: Tensor, texts: int) -> Int[Tensor, "b t *n"]:
        """Codes of one modality; refuse those that do not fit the model or so many texts."""
        tower = self.ends[name]
        codes = check_codes(name, codes, AXES[name], tower.codes)
        grid = tower.grid[1:] if name == "video" else (tower.places - 1,)
        if codes.shape[2:] != grid or len(codes) != texts:
            raise ValueError(
                f"TwinDecoder: {name} has shape {tuple(codes.shape)}, wanted ({texts}, frames, "
                f"{', '.join(map(str, grid))}) for {texts} texts; its axes are "
                f"({', '.join(AXES[name])})"
            )
        if codes.shape[1] > self.max_frames:
            raise ValueError(
                f"TwinDecoder: {name} has {codes.shape[1]} frames, the model has positions for "
                f"{self.max_frames}; give fewer, or make it with a larger max_frames"
            )
        return codes


def clip_losses(
    logits: Sequence[Float[Tensor, "b ... _codes"]], codes: Sequence[Int[Tensor, "b ..."]]
) -> Float[Tensor, "b modalities"]:
    """Cross-entropy in nats, for each clip and modality the mean over its codes."""
    each = []
    for scores, wanted in zip(logits, codes, strict=True):
        scores = scores.flatten(1, -2).to(torch.promote_types(scores.dtype, torch.float32))
        loss = F.cross_entropy(scores.mT, wanted.flatten(1).long(), reduction="none")
        each.append(loss.mean(1))
    return torch.stack(each, 1)

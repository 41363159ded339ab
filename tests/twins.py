"""Small twin decoders of many kinds, clips of codes for them, and the order of writing."""

import torch

from avlib import TwinDecoder

SMALL = {
    "text_words": 7,
    "video_codes": 5,
    "audio_codes": 4,
    "video_size": (2, 2),
    "max_frames": 3,
    "max_words": 4,
    "heads": 2,
    "dim_head": 4,
    "text_depth": 1,
}
KINDS = {
    "plain": {},
    "reversible": {"reversible": True},
    "exact": {"exact": True},
    "towers apart": {"cross_every": None},
    "towers meet in every second layer": {"cross_every": 2, "depth": 3},
    "layers take dilations in turn": {
        "video_dilation": (1, [1, 2, 1]),
        "audio_dilation": (2, [1, 2]),
        "audio_size": (1, 2),
    },
    "several codes of sound": {"audio_size": (2, 3), "max_frames": 2},
    "windows": {"video_window": [(1, 0), 1, None], "audio_window": [3, 1], "audio_size": (2, 2)},
    "runs": {
        "video_size": (3, 5),
        "max_frames": 5,
        "video_window": [(1, 0), 3, 3],
        "audio_window": [(2, 0), None],
    },
    "runs in both": {
        "video_size": (3, 4),
        "audio_size": (6, 2),
        "max_frames": 5,
        "video_window": [(1, 0), 3, 3],
        "audio_window": [(2, 0), None],
        "exact": True,
    },
}


def make_twin(depth=2, **changes):
    """A seeded decoder in eval mode; activations are stored unless asked otherwise."""
    torch.manual_seed(0)
    return TwinDecoder(8, depth, **{**SMALL, "reversible": False, **changes}).eval()


def make_clips(model, batch=2, frames=None, seed=1):
    """Text with padding, film and sound."""
    chance = torch.Generator().manual_seed(seed)
    frames = model.max_frames if frames is None else frames

    def codes(most, *shape):
        return torch.randint(most, (batch, *shape), generator=chance)

    text = 1 + codes(model.text.words - 1, model.text.longest)
    text[0, -1:] = 0
    return {
        "text": text,
        "video": codes(model.video.codes, frames, *model.video.grid[1:]),
        "audio": codes(model.audio.codes, frames, model.audio.places - 1),
    }


def order(model, frames):
    """Where each code is in its flattened modality, in the order of writing."""
    return [
        (name, frame * (tower.places - 1) + place)
        for frame in range(frames)
        for name, tower in model.ends.items()
        for place in range(tower.places - 1)
    ]


def as_written(model, logits):
    """Logits of a clip as a list, in the order of writing."""
    frames = logits[0].shape[1]
    flat = dict(zip(("video", "audio"), (part[0].flatten(0, -2) for part in logits), strict=True))
    return [flat[name][place] for name, place in order(model, frames)]


def slowly(
    model, text, given, frames, *, temperature=0.0, top_k=None, guidance=1.0, generator=None
):
    """What `generate` writes, by running the whole model again for each code."""
    sizes = {"video": model.video.grid[1:], "audio": (model.audio.places - 1,)}
    clip = {name: torch.zeros(len(text), frames, *size).long() for name, size in sizes.items()}
    for name, codes in given.items():
        clip[name][:, : codes.shape[1]] = codes
    for name, at in order(model, frames):
        count = model.ends[name].places - 1
        if name in given and at // count < given[name].shape[1]:
            continue

        def ask(text, name=name, at=at):
            logits = dict(zip(sizes, model(text=text, **clip), strict=True))[name]
            return logits.flatten(1, -2)[:, at]

        with torch.no_grad():
            without = ask(torch.zeros_like(text))
            logits = without + guidance * (ask(text) - without)
        if temperature == 0:
            code = logits.argmax(-1)
        else:
            kept = logits.sort(-1, descending=True).values[:, : top_k or logits.shape[-1]]
            logits = torch.where(logits < kept[:, -1:], -torch.inf, logits)
            likely = (logits / temperature).softmax(-1).float()
            code = torch.multinomial(likely, 1, generator=generator)[:, 0]
        clip[name].view(len(text), -1)[:, at] = code
    return clip

"""Every wrong call that was thought of: what arrived, what was wanted, and what to do about it."""

import re

import jaxtyping
import pytest
import torch
from torch import nn

from avlib import (
    FactorisedPositions,
    LogMelSpectrogram,
    SpecAugment,
    Visibility,
    attend,
    patchify_audio,
    patchify_video,
    unpatchify_audio,
    unpatchify_video,
    zorro_readout,
    zorro_trunk,
)

AUDIO, VIDEO = torch.randn(2, 1300), torch.rand(2, 3, 4, 8, 8)


def forward(**inputs):
    """Call the usual model; what is not given is as it should be, None is left out."""
    inputs = {"audio": AUDIO, "video": VIDEO, **inputs}
    return lambda make: make()(**{name: x for name, x in inputs.items() if x is not None})


def build(**settings):
    """Make a model with wrong settings and call it as one should."""
    return lambda make: make(**settings)(audio=AUDIO, video=VIDEO)


def call(function, *arguments, **keywords):
    return lambda make: function(*arguments, **keywords)


def video(*shape):
    return forward(video=torch.rand(shape))


HEADS, REAL = {"a": torch.ones(1, 2, 3, 4)}, torch.ones(1, 3, dtype=torch.bool)
THREE = {"a": torch.ones(3, 2, 3, 4)}
HEADS_AB = {**THREE, "b": torch.ones(3, 2, 3, 4)}
TWO_BATCHES = {**THREE, "b": torch.ones(1, 2, 3, 4)}

WAVE = "wanted (batch, samples)"
FILM = "wanted (batch, 3, frames, height, width)"
ONE_EACH = "give one for each clip in the batch"

# For each call, pieces of the message in their order: what arrived, what was wanted, a remedy.
TABLE = {
    # Audio
    "audio without batch": (forward(audio=AUDIO[0]), ["shape (1300,)", WAVE, "audio[None]"]),
    "audio with channels": (forward(audio=AUDIO[:, None]), ["(2, 1, 1300)", WAVE, "audio.mean(1)"]),
    "audio of four axes": (forward(audio=AUDIO[None, None]), ["audio has shape (1, 1, 2", WAVE]),
    "integer audio": (
        forward(audio=AUDIO.to(torch.int16)),
        ["audio is torch.int16", "floating-point", "audio / 32768"],
    ),
    "no sample": (forward(audio=AUDIO[:, :0]), ["audio has shape (2, 0)", "one sample"]),
    "no clip of audio": (
        forward(audio=AUDIO[:0], video=VIDEO[:0]),
        ["shape (0, 1300)", "one clip"],
    ),
    # Video
    "no clip of video": (video(0, 3, 4, 8, 8), ["(0, 3, 4, 8, 8)", FILM, "no axis may be empty"]),
    "no frame": (video(2, 3, 0, 8, 8), ["(2, 3, 0, 8, 8)", FILM, "no axis may be empty"]),
    "video without batch": (video(3, 4, 8, 8), ["shape (3, 4, 8, 8)", FILM, "video[None]"]),
    "video of three axes": (video(4, 8, 8), ["(4, 8, 8)", FILM, "add or drop axes"]),
    "frames before channels": (video(2, 4, 3, 8, 8), ["(2, 4, 3", FILM, "video.transpose(1, 2)"]),
    "channels last": (video(2, 4, 8, 8, 3), ["8, 3)", FILM, "video.permute(0, 4, 1, 2, 3)"]),
    "grey video": (video(2, 1, 4, 8, 8), ["(2, 1, 4", FILM, "Zorro(video_channels=1)"]),
    "8-bit video": (
        forward(video=(VIDEO * 255).to(torch.uint8)),
        ["video is torch.uint8", "floating point in [0, 1]", "video.float() / 255"],
    ),
    "odd frames": (
        video(2, 3, 3, 8, 8),
        ["patchify_video: frames 3", "patch 2", "crop to 2 or use"],
    ),
    "odd height": (
        video(2, 3, 4, 30, 8),
        ["height 30 is not divisible by patch 4; crop to 28 or use 2, 3 or 5"],
    ),
    "odd width": (video(2, 3, 4, 8, 7), ["width 7", "patch 4; crop to 4 or use 7"]),
    "tiny height": (video(2, 3, 4, 3, 8), ["height 3", "patch 4; pad to 4 or use 3"]),
    # Both
    "nothing": (forward(audio=None, video=None), ["neither audio nor video", "at least one"]),
    "other batches": (forward(video=VIDEO[:1]), ["batches of [2, 1]", "for the same clips"]),
    "no video": (
        forward(video=None),
        ["readout 1 (video)", "there is audio and fusion", "return_token_indices=(0, 2, 3)"],
    ),
    "no audio": (
        forward(audio=None),
        ["readout 0 (audio)", "there is video and fusion", "return_token_indices=(1, 2, 3)"],
    ),
    "only what was left out": (
        forward(video=None, return_token_indices=[1]),
        ["readout 1 (video)", "there is audio and fusion", "return_token_indices=(0, 2, 3)"],
    ),
    # Lengths
    "length over the end": (
        forward(audio_lengths=[1300, 1301]),
        ["audio_lengths is [1300, 1301]", "2 whole numbers of samples from 0 to 1300", ONE_EACH],
    ),
    "negative length": (
        forward(video_lengths=[-2, 4]),
        ["video_lengths is [-2, 4]", "2 whole numbers of frames from 0 to 4", ONE_EACH],
    ),
    "fractional length": (forward(audio_lengths=[0.5, 1]), ["is [0.5, 1.0]", "whole", ONE_EACH]),
    "boolean lengths": (forward(audio_lengths=[True, False]), ["[True, False]", "whole", ONE_EACH]),
    "one length for two": (forward(video_lengths=[4]), ["is [4]", "wanted 2", ONE_EACH]),
    "nested lengths": (forward(audio_lengths=[[9], [9]]), ["is [[9], [9]]", "wanted 2", ONE_EACH]),
    "length within a patch": (
        forward(video_lengths=[4, 3]),
        ["video_lengths [4, 3]", "temporal patch 2", "repeat a last frame or drop one"],
    ),
    "lengths without audio": (
        forward(audio=None, audio_lengths=[1, 1]),
        ["audio_lengths without audio", "give both"],
    ),
    "lengths without video": (
        forward(video=None, video_lengths=[2, 2]),
        ["video_lengths without video", "give both"],
    ),
    # Readouts
    "negative index": (forward(return_token_indices=(-1,)), ["is (-1,)", "from 0 to 3"]),
    "index too large": (forward(return_token_indices=(0, 4)), ["is (0, 4)", "from 0 to 3"]),
    "repeated index": (forward(return_token_indices=[1, 1]), ["is (1, 1)", "different indices"]),
    "fractional index": (forward(return_token_indices=(0.5,)), ["is (0.5,)", "from 0 to 3"]),
    "no index": (forward(return_token_indices=()), ["is ()", "one or more"]),
    "no type": (build(return_token_types=()), ["return_token_types is empty", "TokenType.GLOBAL"]),
    "unknown name": (build(return_token_types=["sound"]), ["has 'sound'", "wanted AUDIO, VIDEO"]),
    "unknown number": (build(return_token_types=[4]), ["has 4", "wanted AUDIO, VIDEO"]),
    # Sizes
    "patch of 0": (build(audio_patch_size=0), ["audio_patch_size: got 0", "positive whole"]),
    "fractional patch": (
        build(audio_patch_size=1.5),
        ["audio_patch_size: got 1.5", "whole number"],
    ),
    "negative patch": (build(video_patch_size=(4, -4)), ["video_patch_size: got (4, -4)", "pair"]),
    "patch of three": (build(video_patch_size=(2, 4, 4)), ["got (2, 4, 4)", "a pair of two"]),
    "no temporal patch": (
        build(video_temporal_patch_size=0),
        ["video_temporal_patch_size and video_patch_size: got (0, 4, 4)", "three positive whole"],
    ),
    "fractional temporal patch": (
        build(video_temporal_patch_size=1.5),
        ["got (1.5, 4, 4)", "three positive whole numbers"],
    ),
    "too many bins": (build(max_audio_bins=8), ["2 patches", "max_audio_bins allows 1", "raise"]),
    "too long": (build(max_audio_frames=16), ["3 patches", "max_audio_frames allows 2", "raise"]),
    "too many frames": (build(max_video_frames=2), ["2 patches", "max_video_frames allows 1"]),
    "too high": (build(max_video_size=(4, 8)), ["2 patches", "max_video_size (height) allows 1"]),
    "too wide": (build(max_video_size=(8, 4)), ["2 patches", "max_video_size (width) allows 1"]),
    "size of three": (build(max_video_size=(8, 8, 8)), ["max_video_size: got (8, 8, 8)", "a pair"]),
    "two trunks for three layers": (
        build(depth=3, trunk=[zorro_trunk("audio", "video")] * 2),
        ["got 2 trunk visibilities for depth 3", "one for each layer"],
    ),
    # Front end
    "front end of other patches": (
        build(front_end=LogMelSpectrogram(n_fft=1024, patch_frames=9)),
        ["patchify_audio: frames 9 is not divisible by patch 8; crop to 8 or use 3 or 9"],
    ),
    "front end with channels": (
        build(front_end=nn.Unflatten(1, (1, 10, 130))),
        ["patchify_audio: got shape (2, 1, 10, 130)", "wanted (batch, bins, frames)"],
    ),
    "window under two hops": (
        call(LogMelSpectrogram, n_fft=319, hop_length=160),
        ["n_fft 319", "two hops of 160", "raise n_fft to 320"],
    ),
    "no stripe": (call(SpecAugment, 0), ["got 0 stripes", "at least one stripe"]),
    "no width": (call(SpecAugment, width=0), ["width 0", "in (0, 1]"]),
    "wider than all": (call(SpecAugment, width=1.5), ["width 1.5", "in (0, 1]"]),
    # Patches
    "spectrogram without batch": (
        call(patchify_audio, torch.zeros(8, 8), 4),
        ["got shape (8, 8)", "wanted (batch, bins, frames)", "spectrogram[None]"],
    ),
    "odd bins": (
        call(patchify_audio, torch.zeros(1, 9, 8), 4),
        ["patchify_audio: bins 9 is not divisible by patch 4; crop to 8 or use 3 or 9"],
    ),
    "film without batch": (
        call(patchify_video, torch.zeros(3, 2, 8, 8), (2, 4, 4)),
        [
            "got shape (3, 2, 8, 8)",
            "wanted (batch, channels, frames, height, width)",
            "video[None]",
        ],
    ),
    "one number for a box": (
        call(patchify_video, VIDEO, 4),
        ["patchify_video: got 4", "give (frames, height, width)"],
    ),
    "box of no frames": (
        call(patchify_video, VIDEO, (0, 4, 4)),
        ["patchify_video: got (0, 4, 4)", "three positive whole numbers"],
    ),
    "patches for another grid": (
        call(unpatchify_audio, torch.zeros(1, 4, 4), 2, (3, 2)),
        ["shape (1, 4, 4)", "wanted (batch, 6, 4) for grid (3, 2)", "the grid and patch size of"],
    ),
    "boxes for another grid": (
        call(unpatchify_video, torch.zeros(1, 4, 12), (1, 2, 2), (2, 2, 2)),
        ["shape (1, 4, 12)", "wanted (batch, 8, 12) for grid (2, 2, 2)", "grid and patch size of"],
    ),
    "boxes of another size": (
        call(unpatchify_video, torch.zeros(1, 4, 12), (1, 2), (1, 2, 2)),
        ["unpatchify_video: got (1, 2)", "three positive whole numbers"],
    ),
    # Other types and odd sizes
    "NumPy audio": (forward(audio=AUDIO.numpy()), ["audio is a ndarray", "use torch.as_tensor"]),
    "a list of frames": (forward(video=[1, 2]), ["video is a list", "wanted a tensor"]),
    "lengths of nothing": (
        forward(audio_lengths=[None, 3]),
        ["audio_lengths is [None, 3]", "2 whole numbers of samples", ONE_EACH],
    ),
    "a bare index": (
        forward(return_token_indices=0),
        ["return_token_indices is 0", "wanted a sequence", "use (0,)"],
    ),
    "lengths without num_frames": (
        lambda make: make(front_end=nn.Unflatten(1, (16, 80)))(
            audio=torch.randn(2, 1280), video=VIDEO, audio_lengths=[1280, 5]
        ),
        ["got audio_lengths", "Unflatten has no num_frames", "pass clips alone"],
    ),
    "a falsy front end": (
        build(front_end=nn.Sequential()),
        ["patchify_audio: got shape (2, 1300)"],
    ),
    "half a head": (build(heads=1.5), ["Zorro: heads is 1.5", "positive whole number"]),
    "half a feature": (build(dim_head=2.5), ["Zorro: dim_head is 2.5", "positive whole number"]),
    "no channels": (build(video_channels=0), ["Zorro: video_channels is 0", "positive whole"]),
    "negative depth": (build(depth=-1), ["Zorro: depth is -1", "whole number from 0 on"]),
    "depth that is not whole": (
        build(depth=2.0),
        ["Zorro: depth is 2.0", "give a whole number from 0 on"],
    ),
    "no feed-forward": (build(ff_mult=0), ["Zorro: ff_mult is 0", "positive number"]),
    "no heads": (build(heads=0), ["Zorro: heads is 0", "positive"]),
    "heads of no width": (build(dim_head=-4), ["Zorro: dim_head is -4", "positive"]),
    "no fusion tokens": (build(num_fusion_tokens=0), ["num_fusion_tokens is 0", "positive"]),
    "no classes": (build(num_classes=0), ["num_classes is 0", "positive"]),
    "a patch of True": (build(audio_patch_size=True), ["got True", "positive whole number"]),
    "a readout that names no video": (
        build(readout=zorro_readout("audio")),
        ["readout has readers ['audio', 'fusion', 'global']", "wanted readers", "'video'"],
    ),
    "a trunk without video": (
        build(trunk=zorro_trunk("audio")),
        ["trunk has readers ['audio', 'fusion']", "wanted readers ['audio', 'fusion', 'video']"],
    ),
    "no readout can answer": (
        lambda make: make(return_token_types=["audio"])(video=VIDEO),
        ["readout 0 (audio) may read only what was left out", "there is video", "; give audio"],
    ),
    "no mel bins": (call(LogMelSpectrogram, num_mels=0), ["LogMelSpectrogram: num_mels is 0"]),
    "log of nothing": (call(LogMelSpectrogram, floor=0), ["LogMelSpectrogram: floor is 0"]),
    "integer samples": (
        call(LogMelSpectrogram(), torch.zeros(1, 99, dtype=torch.int16)),
        ["LogMelSpectrogram: audio is torch.int16", "audio / 32768"],
    ),
    "a grid of one axis": (
        call(unpatchify_audio, torch.zeros(1, 4, 4), 2, (4,)),
        ["unpatchify_audio: grid is (4,)", "give 2 positive whole numbers"],
    ),
    "a negative grid": (
        call(unpatchify_video, torch.zeros(1, 4, 12), (1, 2, 2), (-1, 2, -2)),
        ["unpatchify_video: grid is (-1, 2, -2)", "give 3 positive"],
    ),
    "positions without axes": (call(FactorisedPositions, 4, {}), ["limits is empty", "one axis"]),
    "positions for another grid": (
        call(FactorisedPositions(4, {"rows": 3}), 2, 2),
        ["positions: grid is (2, 2)", "each of ['rows']"],
    ),
    "rules that are no mapping": (call(Visibility, "audio"), ["got 'audio', wanted a mapping"]),
    "keys that are no list": (
        call(Visibility, {"a": "all"}, "audio"),
        ["keys is 'audio'", "use ['audio']"],
    ),
    "heads split in two ways": (
        call(attend, HEADS, {"a": torch.ones(1, 2, 3, 5)}, HEADS, Visibility({"a": "a"})),
        ["attend: got shapes", "only the tokens differing"],
    ),
    "queries of unlike batches": (
        call(attend, TWO_BATCHES, HEADS_AB, HEADS_AB, Visibility({"a": "a", "b": "b"})),
        ["attend: got shapes", "only the tokens differing"],
    ),
    "keys of another batch": (
        call(attend, HEADS, THREE, THREE, Visibility({"a": "a"})),
        ["attend: got shapes", "only the tokens differing"],
    ),
    "keys with another number of axes": (
        call(attend, HEADS, {"a": torch.ones(1, 1, 2, 3, 4)}, HEADS, Visibility({"a": "a"})),
        ["attend: got shapes", "only the tokens differing"],
    ),
    "values of another batch than keys": (
        call(attend, THREE, HEADS, THREE, Visibility({"a": "a"})),
        ["attend: got shapes", "only the tokens differing"],
    ),
    "a mask for nobody": (
        call(attend, HEADS, HEADS, HEADS, Visibility({"a": "a"}), key_masks={"b": REAL}),
        ["key mask 'b' is torch.bool of shape (1, 3)", "for one of ['a']"],
    ),
    "a mask of numbers": (
        call(attend, HEADS, HEADS, HEADS, Visibility({"a": "a"}), key_masks={"a": REAL.float()}),
        ["key mask 'a' is torch.float32", "wanted a boolean", "True marks a real token"],
    ),
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.usefixtures("no_shape_checks")
def test_the_message_says_what_arrived_and_what_to_do(make_zorro, name):
    wrong_call, pieces = TABLE[name]
    with pytest.raises((TypeError, ValueError), match=".*".join(map(re.escape, pieces))):
        wrong_call(make_zorro)


def test_the_calls_differ_only_in_what_is_wrong(make_zorro):
    assert forward()(make_zorro).isfinite().all()
    assert build(max_audio_bins=16, max_audio_frames=24)(make_zorro).isfinite().all()


def test_the_other_tests_check_shapes_within_avlib(make_zorro):
    layer = make_zorro().layers[0]
    with pytest.raises(jaxtyping.TypeCheckError, match=r"avlib\.layer\.Layer\.forward"):
        layer({"audio": torch.tensor(3.0)}, zorro_trunk("audio", "video"))
    with pytest.raises(jaxtyping.TypeCheckError, match=r"avlib\.tokens\.patchify_audio"):
        patchify_audio(torch.zeros(8, 8), 4)

import pytest
import torch
import zorro_pytorch
from published import Mended, TokenTypes
from torch import nn
from torch.testing import assert_close

from avlib import Zorro

A, V, F, G = TokenTypes

# What the weights do not tell, what they do, and a clip's (frames, height, width).
CONFIGURATIONS = {
    "defaults": ({}, {}, (2, 16, 16)),
    "other attention": (
        {"heads": 3, "return_token_types": (G, F, V, A)},
        {"dim_head": 5, "ff_mult": 2, "num_fusion_tokens": 1},
        (4, 16, 32),
    ),
    "oblong patches": (
        {
            "heads": 2,
            "audio_patch_size": (8, 4),
            "video_patch_size": (4, 8),
            "video_temporal_patch_size": 3,
            "video_channels": 1,
            "return_token_types": (A, G, A, A, G),
        },
        {"dim_head": 8, "ff_mult": 3},
        (6, 12, 16),
    ),
    "other spectrogram": (
        {
            "heads": 1,
            "audio_patch_size": 5,
            "spec_n_fft": 64,
            "spec_power": 1,
            "spec_win_length": 40,
            "spec_hop_length": 30,
            "spec_pad": 9,
            "spec_center": False,
            "return_token_types": (V,),
        },
        {"dim_head": 16, "ff_mult": 4},
        (2, 16, 16),
    ),
    "constant padding": ({"spec_pad_mode": "constant"}, {"dim_head": 8}, (2, 16, 16)),
}


def published(settings, told, dim=22):
    model = Mended(dim=dim, depth=2, **settings, **told)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("source", ["model", "state dict"])
def test_outputs_and_gradients_are_those_of_the_mended_package(name, source):
    settings, told, size = CONFIGURATIONS[name]
    theirs = published(settings, told)
    if source == "model":
        ours = Zorro.from_zorro_pytorch(theirs)
    else:
        ours = Zorro.from_zorro_pytorch(theirs.state_dict(), **settings)
    # In float64 nothing hides behind rounding.
    theirs, ours = theirs.double(), ours.double()
    inputs = {
        "audio": torch.randn(2, 3000),
        "video": torch.rand(2, settings.get("video_channels", 3), *size),
    }
    inputs = {name: tensor.double().requires_grad_() for name, tensor in inputs.items()}
    expected, got = theirs(**inputs), ours(**inputs)
    assert_close(got, expected, rtol=1e-9, atol=1e-9)
    direction = torch.randn_like(got)
    gradients = [
        torch.autograd.grad((out * direction).sum(), list(inputs.values()), materialize_grads=True)
        for out in (got, expected)
    ]
    for mine, wanted in zip(*gradients, strict=True):
        assert (mine - wanted).norm() <= 1e-9 * wanted.norm()


def test_indices_ask_for_the_same_readouts():
    theirs = published({"return_token_types": (A, V, F, G)}, {"dim_head": 8})
    inputs = {"audio": torch.randn(2, 3000), "video": torch.rand(2, 3, 2, 16, 16)}
    ours = Zorro.from_zorro_pytorch(theirs)
    asked = {"return_token_indices": (3, 0)}
    assert_close(ours(**inputs, **asked), theirs(**inputs, **asked), rtol=1e-5, atol=1e-5)


def test_the_package_as_it_is_gives_other_audio_and_video_readouts():
    theirs = zorro_pytorch.Zorro(dim=22, depth=1, dim_head=8, return_token_types=(A, V, F, G))
    inputs = {"audio": torch.randn(2, 3000), "video": torch.rand(2, 3, 2, 16, 16)}
    difference = (Zorro.from_zorro_pytorch(theirs)(**inputs) - theirs(**inputs)).abs().amax((0, 2))
    assert (difference[:2] > 1e-3).all()
    assert (difference[2:] < 1e-5).all()


def test_weights_are_copied_not_shared():
    theirs = published({}, {"dim_head": 8})
    ours = Zorro.from_zorro_pytorch(theirs)
    before = ours.fusion_tokens.clone()
    nn.init.zeros_(theirs.fusion_tokens)
    assert torch.equal(ours.fusion_tokens, before)


@pytest.mark.parametrize(
    ("settings", "misfit"),
    [
        ({"heads": 3}, "layers.0.attention"),
        ({"audio_patch_size": 8}, "audio_embedding.to_tokens"),
        ({"video_patch_size": 8}, "video_embedding.to_tokens"),
        ({"video_channels": 1}, "video_embedding.to_tokens"),
        ({"return_token_types": (A,)}, "return_tokens"),
        ({"spec_win_length": 30}, "front_end.spectrogram.window"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_refused(settings, misfit):
    state = published({}, {"dim_head": 8}).state_dict()
    with pytest.raises(ValueError, match=rf"{misfit}.* does not fit these settings; pass the key"):
        Zorro.from_zorro_pytorch(state, **settings)


def test_what_is_no_published_model_is_refused(make_zorro):
    theirs = published({}, {"dim_head": 8})
    with pytest.raises(ValueError, match=r"a model and \['heads'\]; .* or pass model.state_dict"):
        Zorro.from_zorro_pytorch(theirs, heads=4)
    with pytest.raises(ValueError, match=r"got Linear, which is no zorro-pytorch model"):
        Zorro.from_zorro_pytorch(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"got Zorro, which is no zorro-pytorch model"):
        Zorro.from_zorro_pytorch(make_zorro())
    with pytest.raises(ValueError, match=r"state dict with 2 entries and no 'fusion_tokens'"):
        Zorro.from_zorro_pytorch(nn.Linear(2, 2).state_dict())
    with pytest.raises(ValueError, match=r"no 'fusion_tokens' or 'layers.0.1.3.weight'; give that"):
        Zorro.from_zorro_pytorch(make_zorro().state_dict())
    state = theirs.state_dict()
    del state["norm.gamma"]
    with pytest.raises(ValueError, match=r"'norm.weight' does not fit"):
        Zorro.from_zorro_pytorch(state)
    with pytest.raises(ValueError, match=r"'extra' does not fit"):
        Zorro.from_zorro_pytorch({**theirs.state_dict(), "extra": torch.zeros(1)})


def test_a_clip_too_short_for_a_patch_is_refused():
    ours = Zorro.from_zorro_pytorch(published({}, {"dim_head": 8}))
    with pytest.raises(ValueError, match=r"100 samples give 9 .* under one patch of 16; .* longer"):
        ours(audio=torch.randn(1, 100), return_token_indices=(0, 2))


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_keep_their_precision(dtype):
    theirs = published({}, {"dim_head": 8}).to(dtype)
    ours = Zorro.from_zorro_pytorch(theirs).eval()
    assert ours.fusion_tokens.dtype == dtype
    audio = torch.randn(1, 2000).to(dtype)
    assert ours(audio=audio, return_token_indices=(0,)).dtype == dtype


def test_settings_that_the_package_ignores_are_ignored_here():
    state = published({}, {"dim_head": 8}).state_dict()
    plain, told = (
        Zorro.from_zorro_pytorch(state, **settings) for settings in ({}, {"spec_aug_time_mask": 80})
    )
    audio = torch.randn(1, 2000)
    asked = {"audio": audio, "return_token_indices": (0,)}
    assert torch.equal(plain(**asked), told(**asked))

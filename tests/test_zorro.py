import pytest
import torch
import zorro_pytorch
from batches import clips
from torch import nn
from torch.testing import assert_close

from avlib import LogMelSpectrogram, SpecAugment, TokenType, Visibility, Zorro, zorro_trunk

AUDIO, VIDEO, FUSION, GLOBAL = range(4)


# What is returned


@pytest.mark.parametrize(
    "types",
    [
        ("audio", "Video", "FUSION", "global"),
        (0, 1, 2, 3),
        tuple(TokenType),
        tuple(zorro_pytorch.TokenTypes),
        ["audio", 1, TokenType.FUSION, zorro_pytorch.TokenTypes.GLOBAL],
    ],
)
def test_return_types_may_be_names_numbers_or_either_enum(make_zorro, types):
    model = make_zorro(return_token_types=types)
    assert model.return_token_types == tuple(TokenType)
    assert torch.equal(model(**(inputs := clips())), make_zorro()(**inputs))


@pytest.mark.parametrize("types", [["global"], ["video", "audio"], ["fusion"] * 3, [3, 0, 0, 2, 3]])
def test_one_vector_comes_back_for_each_type_asked_for(make_zorro, types):
    out = make_zorro(return_token_types=types)(**clips(batch=3))
    assert out.shape == (3, len(types), 24)
    assert len(out[0].unique(dim=0)) == len(types)


def test_readouts_by_default_are_audio_video_and_fusion():
    assert Zorro(24, 1).return_token_types == (TokenType.AUDIO, TokenType.VIDEO, TokenType.FUSION)


@pytest.mark.parametrize("kind", ["video", 1, TokenType.VIDEO, zorro_pytorch.TokenTypes.VIDEO])
def test_a_single_type_needs_no_list(kind):
    assert Zorro(24, 1, return_token_types=kind).return_token_types == (TokenType.VIDEO,)


@pytest.mark.parametrize("num_classes", [None, 5])
@pytest.mark.parametrize("indices", [(0,), (3, 0), (4, 2, 0, 1, 3), [2, 4]])
def test_indices_pick_from_the_full_output_in_the_order_asked(make_zorro, num_classes, indices):
    types = ("audio", "video", "fusion", "audio", "global")
    model, inputs = make_zorro(return_token_types=types, num_classes=num_classes), clips()
    full = model(**inputs)
    picked = model(**inputs, return_token_indices=indices)
    assert_close(picked, full[:, list(indices)])
    assert full.shape[2] == (num_classes or 24)


def test_each_readout_has_its_own_head(make_zorro):
    plain, model, inputs = make_zorro(), make_zorro(num_classes=5), clips()
    model.load_state_dict(plain.state_dict(), strict=False)
    vectors, logits = plain(**inputs), model(**inputs)
    for index, head in enumerate(model.class_heads):
        assert_close(logits[:, index], head(vectors[:, index]))


# Modalities left out


@pytest.mark.parametrize(("modality", "other"), [("audio", "video"), ("video", "audio")])
def test_fusion_and_global_answer_from_one_modality(make_zorro, modality, other):
    model, inputs = make_zorro(), clips()
    index = {"audio": AUDIO, "video": VIDEO}
    asked = (index[modality], FUSION, GLOBAL)
    alone = model(**{modality: inputs[modality]}, return_token_indices=asked)
    assert alone.isfinite().all()
    assert not torch.equal(alone[:, 1:], model(**inputs)[:, 2:])
    remedy = (
        rf"readout {index[other]} \({other}\) .* return_token_indices=\({index[modality]}, 2, 3"
    )
    with pytest.raises(ValueError, match=remedy):
        model(**{modality: inputs[modality]})
    none = {f"{other}_lengths": [0, 0]}
    assert_close(model(**inputs, **none, return_token_indices=asked), alone, rtol=1e-5, atol=1e-5)


# Padding


def test_padded_clips_give_what_each_gives_alone(make_zorro):
    samples, frames = [1300, 640, 1, 2000], [4, 2, 6, 2]
    model = make_zorro()
    audio, video = torch.randn(4, 2000), torch.rand(4, 3, 6, 8, 8)
    batch = model(audio=audio, video=video, audio_lengths=samples, video_lengths=frames)
    for clip in range(4):
        one = model(audio=audio[[clip], : samples[clip]], video=video[[clip], :, : frames[clip]])
        assert_close(batch[[clip]], one, rtol=1e-5, atol=1e-5)


def test_lengths_may_be_a_tensor_and_full_lengths_change_nothing(make_zorro):
    model, inputs = make_zorro(), clips()
    full = model(**inputs, audio_lengths=torch.tensor([1300, 1300]), video_lengths=[4, 4])
    assert_close(full, model(**inputs), rtol=1e-5, atol=1e-5)


def test_a_readout_of_padding_alone_is_its_bare_query(make_zorro):
    model, inputs = make_zorro(), clips()
    out = model(**inputs, audio_lengths=[0, 1300], video_lengths=[4, 0])
    assert torch.equal(out[0, AUDIO], model.return_tokens[AUDIO])
    assert torch.equal(out[1, VIDEO], model.return_tokens[VIDEO])
    silent = model(video=inputs["video"], return_token_indices=(VIDEO, FUSION, GLOBAL))
    assert_close(out[0, 1:], silent[0], rtol=1e-5, atol=1e-5)


# Positions and augmentation


def test_positions_tell_frames_apart(make_zorro):
    video = torch.rand(1, 3, 6, 8, 8)
    turned = video.unflatten(2, (3, 2)).flip(2).flatten(2, 3)  # whole temporal patches
    ask = {"return_token_indices": (VIDEO, FUSION)}
    model = make_zorro()
    with torch.no_grad():
        for table in model.video_embedding.positions.tables.values():
            table.normal_()
    assert (model(video=video, **ask) - model(video=turned, **ask)).abs().max() > 1e-2
    model = make_zorro(positions=False)
    assert_close(model(video=video, **ask), model(video=turned, **ask), rtol=1e-5, atol=1e-5)


def test_positions_are_counted_in_patches_and_allow_the_limit_itself(make_zorro):
    limits = {"max_audio_bins": 16, "max_audio_frames": 24, "max_video_frames": 4}
    model = make_zorro(**limits, max_video_size=(8, 12))
    rows = [len(table) for table in model.audio_embedding.positions.tables.values()]
    boxes = [len(table) for table in model.video_embedding.positions.tables.values()]
    assert (rows, boxes) == ([2, 3], [2, 2, 3])
    model(audio=torch.randn(1, 24 * 80), video=torch.rand(1, 3, 4, 8, 12))


def test_spec_augment_runs_while_training_only(make_zorro):
    model, audio, ask = make_zorro(spec_augment=SpecAugment()), torch.randn(2, 4000), (AUDIO,)
    plain = make_zorro()(audio=audio, return_token_indices=ask)
    assert torch.equal(model(audio=audio, return_token_indices=ask), plain)
    model.train()
    assert not torch.equal(model(audio=audio, return_token_indices=ask), plain)


def test_the_default_front_end_gives_whole_patches_of_any_width():
    model = Zorro(24, 1, audio_patch_size=(16, 10), video_patch_size=4)
    assert model(**clips()).shape == (2, 3, 24)


def test_a_front_end_may_be_any_module_and_make_nan_of_padding(make_zorro):
    class Louder(nn.Module):
        """Every column at the same volume: silence becomes 0 / 0."""

        def forward(self, audio):
            columns = audio.unflatten(1, (-1, 8)).mT
            return columns / columns.abs().sum(1, keepdim=True)

        def num_frames(self, samples):
            return samples // 8

    model = make_zorro(front_end=Louder())
    audio, ask = torch.randn(1, 128), {"return_token_indices": (AUDIO, FUSION)}
    alone = model(audio=audio[:, :64], **ask)
    assert_close(model(audio=audio, audio_lengths=[64], **ask), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quiet", ["layers", "pool"])
def test_layers_and_pool_both_drop_while_training_only(make_zorro, quiet):
    model, inputs = make_zorro(dropout=0.5), clips()
    assert torch.equal(model(**inputs), make_zorro()(**inputs))
    getattr(model.train(), quiet).eval()
    assert not torch.equal(model(**inputs), model(**inputs))


# Rules


def test_promise_is_the_readout_through_all_layers(make_zorro):
    assert make_zorro(3).promise == Visibility(
        {"audio": "audio", "video": "video", "fusion": "all", "global": "all"},
        ("audio", "video", "fusion"),
    )


def test_a_trunk_of_its_own_for_each_layer_in_order(make_zorro):
    rule = zorro_trunk("audio", "video")
    leaky = Visibility({"audio": ["audio", "fusion"], "video": "video", "fusion": "all"})
    inputs = clips()
    changed = {**inputs, "video": torch.rand_like(inputs["video"])}

    # Fusion has read the video before audio reads fusion, or not yet.
    for trunk, reach in (
        ([rule, leaky], ("audio", "video", "fusion")),
        ([leaky, rule], ("audio", "fusion")),
    ):
        model = make_zorro(trunk=trunk)
        assert model.promise.reads["audio"] == reach
        assert model.promise.reads["video"] == ("video",)
        before, after = model(**inputs), model(**changed)
        assert torch.equal(after[:, AUDIO], before[:, AUDIO]) == ("video" not in reach)


def test_promise_counts_the_residual_stream(make_zorro):
    trunk = Visibility({"audio": "fusion", "video": "video", "fusion": "fusion"})
    assert make_zorro(1, trunk=trunk).promise.reads["audio"] == ("audio", "fusion")


def test_a_readout_of_ones_own(make_zorro):
    readout = Visibility({"audio": "fusion"}, ("audio", "video", "fusion"))
    model = make_zorro(readout=readout, return_token_types=["audio"])
    assert model.promise.reads == {"audio": ("audio", "video", "fusion")}
    assert model(video=torch.rand(1, 3, 2, 8, 8)).shape == (1, 1, 24)


# As a module


def test_state_dict_brings_everything_back(make_zorro):
    model, inputs = make_zorro(num_classes=5), clips()
    other = make_zorro(num_classes=5)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    assert not torch.equal(other(**inputs), model(**inputs))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(**inputs), model(**inputs))


def test_gradient_reaches_every_parameter(make_zorro):
    model = make_zorro(num_classes=5)
    out = model(audio=torch.randn(2, 1300), video=torch.rand(2, 3, 4, 8, 8))
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_number_of_parameters():
    d, inner, depth, types, classes = 24, 2 * 8, 3, 4, 5
    model = Zorro(
        d, depth, heads=2, dim_head=8, ff_mult=4, num_fusion_tokens=3, audio_patch_size=(8, 4),
        video_patch_size=4, max_audio_bins=16, max_audio_frames=80, max_video_frames=6,
        max_video_size=(8, 16), return_token_types=range(types), num_classes=classes,
        front_end=LogMelSpectrogram(num_mels=16, patch_frames=4, n_fft=1024),
    )  # fmt: skip
    attention = d + 4 * d * inner
    feed_forward = d + 3 * d * int(d * 4 * 2 / 3)
    embed = sum(2 * values + (values + 1) * d + 2 * d for values in (8 * 4, 3 * 2 * 4 * 4))
    positions = (2 + 20) * d + (3 + 2 + 4) * d
    learned = (3 + types) * d
    expected = depth * (attention + feed_forward) + attention + embed + positions + learned + d
    expected += types * (d + 1) * classes
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int64])
def test_lengths_of_any_whole_type_mean_the_same(make_zorro, dtype):
    model, audio = make_zorro(), torch.randn(2, 125)
    small, usual = (
        model(audio=audio, audio_lengths=lengths, return_token_indices=(0,))
        for lengths in (torch.tensor([120, 90], dtype=dtype), [120, 90])
    )
    assert torch.equal(small, usual)


# Reversible


def test_a_reversible_model_has_the_same_parameters_and_another_function(make_zorro):
    ordinary, reversible = make_zorro(), make_zorro(reversible=True)
    reversible.load_state_dict(ordinary.state_dict())
    inputs = clips()
    assert not torch.allclose(ordinary(**inputs), reversible(**inputs), atol=1e-2)


class TwoHalves(nn.Module):
    """The layers of a reversible model in five lines, under ordinary autograd."""

    def __init__(self, model):
        super().__init__()
        self.layers, self.trunk = model.layers, model.trunk

    def forward(self, streams, _, key_masks):
        first, second = streams, streams
        for layer, trunk in zip(self.layers, self.trunk, strict=True):
            read = layer.attention(second, trunk.only(tuple(streams)), key_masks=key_masks)
            first = {name: first[name] + read[name] for name in first}
            second = {name: second[name] + layer.feed_forward(first[name]) for name in second}
        return {name: (first[name] + second[name]) / 2 for name in first}


@pytest.mark.parametrize("lengths", [{}, {"audio_lengths": [800, 1300], "video_lengths": [4, 2]}])
@pytest.mark.parametrize("alone", [False, True])
def test_a_reversible_model_has_the_gradients_of_its_ordinary_peer(make_zorro, lengths, alone):
    reversible, peer = make_zorro(3, reversible=True).double(), make_zorro(1).double()
    peer.load_state_dict(reversible.state_dict(), strict=False)
    peer.layers = nn.ModuleList([TwoHalves(reversible)])
    inputs = {name: tensor.double().requires_grad_() for name, tensor in clips().items()}
    given = {**inputs, **lengths}
    if alone:
        given = {name: given[name] for name in given if "audio" in name}
        given["return_token_indices"] = (2, 0)
    results = []
    for model in (peer, reversible):
        out = model(**given)
        loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()
        leaves = [inputs["audio"], *reversible.layers.parameters()]
        results.append((out, *torch.autograd.grad(loss, leaves)))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, rtol=1e-11, atol=1e-13)
        assert other.abs().max() > 1e-6

import copy

import pytest
import torch
from einops import rearrange
from torch import nn
from torch.testing import assert_close

from avlib import Attention, Visibility, zorro_readout, zorro_trunk
from avlib.attention_maps import AttentionMaps
from avlib.named_tokens import Tokens

CLIP = {"audio": torch.randn(1300).double(), "video": torch.rand(3, 4, 8, 8).double()}
GRIDS = {"audio": (2, 3), "video": (2, 2, 2), "fusion": 3}
MIXED = Visibility(
    {"video": ["fusion", "video"], "fusion": "all", "audio": "fusion"}, ("fusion", "audio", "video")
)
TURNED = Visibility({"fusion": "all", "audio": ["audio"], "video": ["video"]})


def attended(model, clip, **ask):
    """What every `Attention` of a model got and gave, in order, from hooks of our own."""
    calls = []
    hooks = [
        module.register_forward_hook(
            lambda module, args, keywords, out: calls.append((module, args, keywords, out)),
            with_kwargs=True,
        )
        for module in model.modules()
        if isinstance(module, Attention)
    ]
    with torch.no_grad():
        model(**{name: tensor[None] for name, tensor in clip.items()}, **ask)
    for hook in hooks:
        hook.remove()
    return calls


def values(attention, streams, kept, name):
    """The values of a group, (heads, tokens, features)."""
    if kept:
        return kept[name][1][0]
    features = attention.to_kv(attention.norm(streams[name])).chunk(2, -1)[1][0]
    return features.unflatten(-1, (attention.heads, -1)).transpose(0, 1)


def check_maps(model, clip, ask=None):
    """Rows times values, through to_out, are what the model's own attention gave."""
    maps, calls = AttentionMaps(model, **clip), attended(model, clip, **(ask or {}))
    assert maps.layers == (*range(1, len(calls)), "readout")
    for layer, (attention, (streams, rules), keywords, out) in zip(maps.layers, calls, strict=True):
        readers, keys = maps.readers(layer), maps.keys(layer)
        assert tuple(readers.grids) == rules.readers
        assert tuple(keys.grids) == rules.keys
        kept = keywords.get("kept")
        value = torch.cat([values(attention, streams, kept, name) for name in rules.keys], 1)
        heads = torch.stack([maps.rows(layer, head) for head in range(maps.heads)])
        assert heads.dtype == torch.float64
        read = attention.to_out(rearrange(heads @ value, "h n d -> n (h d)"))
        given = torch.cat([out[name][0] for name in rules.readers])
        assert_close(read, given, rtol=1e-12, atol=1e-12)

        assert_close(heads.sum(-1), torch.ones_like(heads[..., 0]), rtol=1e-12, atol=1e-12)
        visible = rules.dense(readers.sizes, keys.sizes)
        assert torch.equal(heads > 0, visible.expand_as(heads))
        assert_close(maps.rows(layer, None), heads.mean(0), rtol=1e-12, atol=1e-12)
    return maps


@pytest.mark.parametrize("way", [{}, {"reversible": True}, {"checkpoint": True}])
@pytest.mark.parametrize("missing", ["", "audio", "video"])
@pytest.mark.parametrize("trunk", [zorro_trunk("audio", "video"), [TURNED, MIXED, TURNED]])
def test_rows_are_the_attention_of_the_model(make_zorro, way, missing, trunk):
    clip = {name: CLIP[name] for name in CLIP if name != missing}
    asked = [n for n, kind in enumerate(("audio", "video", "fusion", "global")) if kind != missing]
    model = make_zorro(3, trunk=trunk, **way).double()
    maps = check_maps(model, clip, {"return_token_indices": asked})
    grids = {name: grid for name, grid in GRIDS.items() if name != missing}
    assert dict(maps.keys(1).grids) == dict(Tokens(grids).grids)
    assert (maps.spectrogram is None) == (missing == "audio")
    assert maps.video is clip.get("video")


@pytest.mark.parametrize(
    "kinds",
    [("global", "audio", "global"), ("fusion",), ("video", "audio", "audio", "global", "audio")],
)
def test_readouts_may_repeat_and_come_in_any_order(make_zorro, kinds):
    maps = check_maps(make_zorro(1, return_token_types=kinds).double(), CLIP)
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    assert maps.readers("readout") == Tokens(counts)
    # The queries of a kind keep their order: alone, the last gives the last row.
    index, kind = len(kinds) - 1, kinds[-1]
    model = make_zorro(1, return_token_types=kinds).double()
    alone = copy.deepcopy(model)
    alone.kinds, alone.return_token_types = (kind,), model.return_token_types[-1:]
    alone.return_tokens = nn.Parameter(model.return_tokens[index:])
    last = maps.readers("readout").spans[kind].stop - 1
    row = AttentionMaps(alone, **CLIP).rows("readout", 1)
    assert_close(maps.rows("readout", 1, [last]), row, rtol=1e-12, atol=1e-12)


def test_a_readout_of_ones_own_and_no_layers(make_zorro):
    readout = Visibility(
        {"global": ["fusion", "audio"], "audio": "video"}, ("fusion", "video", "audio")
    )
    model = make_zorro(0, readout=readout, return_token_types=("audio", "global")).double()
    maps = check_maps(model, CLIP)
    assert maps.layers == ("readout",)
    with pytest.raises(ValueError, match=r"no layer 1; choose one of \('readout',\)"):
        maps.rows(1, 0)


@pytest.mark.parametrize("index", [0, 2])
def test_a_readout_that_may_read_nothing_that_is_there_is_left_out(make_zorro, index):
    name, other = [("audio", "video"), None, ("video", "audio")][index]
    maps = AttentionMaps(make_zorro().double(), **{name: CLIP[name]})
    assert list(maps.readers("readout").grids) == [name, "fusion", "global"]
    alone = make_zorro(return_token_types=(other,)).double()
    with pytest.raises(ValueError, match=rf"readout 0 \({other}\) may read only what was left out"):
        AttentionMaps(alone, **{name: CLIP[name]})


def test_some_rows_are_rows_of_all_in_the_order_asked(make_zorro):
    maps = AttentionMaps(make_zorro().double(), **CLIP)
    everything = maps.rows(2, 1)
    for rows in ([16, 0, 7, 0], torch.tensor([3, 9]), range(2), []):
        expected = everything[torch.as_tensor([*rows], dtype=torch.int64)]
        assert_close(maps.rows(2, 1, rows), expected, rtol=1e-12, atol=1e-12)


def test_half_precision_is_shown_in_single(make_zorro):
    clip = {name: tensor.bfloat16() for name, tensor in CLIP.items()}
    model = make_zorro().double()
    exact = AttentionMaps(model, **CLIP).rows("readout", 0)
    maps = AttentionMaps(make_zorro().float(), **{k: v.float() for k, v in CLIP.items()})
    assert maps.rows("readout", 0).dtype == torch.float32
    assert_close(maps.rows("readout", 0).double(), exact, rtol=1e-4, atol=1e-5)
    rough = AttentionMaps(make_zorro(positions=False).bfloat16(), video=clip["video"]).rows(1, 0)
    assert rough.dtype == torch.float32
    assert_close(rough.sum(1), torch.ones(11), rtol=0.02, atol=0)


def test_looking_leaves_the_model_and_its_gradients_alone(make_zorro):
    model = make_zorro(reversible=True)
    clip = {name: tensor.float().requires_grad_() for name, tensor in CLIP.items()}
    maps = AttentionMaps(model, **clip)
    assert not maps.rows(1, 0).requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_hooks_are_gone_after_a_clip_is_refused(make_zorro):
    model = make_zorro()
    with pytest.raises(ValueError, match="neither audio nor video"):
        AttentionMaps(model)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_the_spectrogram_is_what_the_patches_were_cut_from(make_zorro):
    model = make_zorro(spec_augment=nn.Hardtanh()).double()
    maps = AttentionMaps(model, **CLIP)
    expected = model.audio_embedding.front_end(CLIP["audio"][None])[0].clamp(-1, 1)
    assert_close(maps.spectrogram, expected)
    assert maps.patches == {"audio": (8, 8), "video": (2, 4, 4)}
    assert {name: maps.keys(1).grids[name] for name in ("audio", "video")} == {
        "audio": tuple(n // 8 for n in maps.spectrogram.shape),
        "video": (4 // 2, 8 // 4, 8 // 4),
    }


# In words


def test_a_sentence_gives_the_shares_of_a_row(make_zorro):
    maps = AttentionMaps(make_zorro().double(), **CLIP)
    for layer, head, token, begin in (
        (1, 0, 7, "In layer 1, head 0: query 7, video 1 (frame 0, row 0, column 1), gives "),
        (2, None, 16, "In layer 2, the mean of all heads: query 16, fusion 2, gives "),
        ("readout", 1, 3, "In the readout, head 1: query 3, global, gives "),
    ):
        (row,) = maps.rows(layer, head, [token])
        parts = row.split([6, 8, 3])
        shares = ", ".join(
            f"{100 * part.sum():.0f} % to {name}" for part, name in zip(parts, GRIDS, strict=True)
        )
        most = max(range(17), key=lambda j: row[j])
        place = maps.keys(layer).place(most)
        assert maps.sentence(layer, head, token) == (
            f"{begin}{shares}; most to {place}, {100 * row[most]:.0f} %."
        )


# Attention.weights


def test_weights_over_padding_are_zero_and_nan_is_not_hidden():
    attention, rules = (
        Attention(8, heads=2, dim_head=4).double(),
        Visibility({"a": "all"}, ("a", "b")),
    )
    streams = {name: torch.randn(2, 3, 8, dtype=torch.float64) for name in "ab"}
    real = {"b": torch.tensor([[True, False, True], [False] * 3])}
    with torch.no_grad():
        weights = attention.weights(streams["a"], rules, "a", streams=streams, key_masks=real)
        assert torch.equal(weights["b"] == 0, ~real["b"][:, None, None].expand(2, 2, 3, 3))
        assert_close(sum(part.sum(-1) for part in weights.values()), torch.ones(2, 2, 3).double())
        alone = Visibility({"a": "b"}, ("a", "b"))
        weights = attention.weights(streams["a"], alone, "a", streams=streams, key_masks=real)
        assert_close(
            weights["b"].sum(-1), torch.tensor([1.0, 0])[:, None, None].expand(2, 2, 3).double()
        )
        streams["b"][0, 0] = torch.nan
        weights = attention.weights(streams["a"], alone, "a", streams=streams)
        assert weights["b"][0].isnan().all()


def test_kept_keys_weigh_as_their_streams_do():
    attention, rules = Attention(8, heads=2, dim_head=4), zorro_readout("audio")
    streams = {name: torch.randn(1, 3, 8) for name in ("audio", "fusion")}
    query = torch.randn(1, 2, 8)
    kept = {name: attention.keys_values(attention.norm(s)) for name, s in streams.items()}
    fresh = attention.weights(query, rules, "global", streams=streams)
    for name, part in attention.weights(query, rules, "global", kept=kept).items():
        assert_close(part, fresh[name])


@pytest.mark.parametrize(
    ("reader", "given", "message"),
    [
        ("sound", {}, r"got reader 'sound' and keys of \['audio'\], wanted one of \['audio', 'fus"),
        ("fusion", {}, r"got reader 'fusion' and keys of \['audio'\], .* as streams or kept"),
    ],
)
def test_weights_of_what_is_not_there_are_refused(reader, given, message):
    stream = torch.randn(1, 2, 8)
    with pytest.raises(ValueError, match=message):
        Attention(8).weights(stream, zorro_trunk("audio"), reader, streams={"audio": stream})


# Wrong calls


@pytest.mark.parametrize("part", ["", "layers.0.attention", "pool", "audio_embedding"])
def test_a_model_in_training_is_refused(make_zorro, part):
    model = make_zorro()
    model.get_submodule(part).train()
    with pytest.raises(ValueError, match=r"the model is in training mode, .* model.eval\(\) first"):
        AttentionMaps(model, **CLIP)


def test_another_model_is_refused(no_shape_checks):
    with pytest.raises(TypeError, match="got Linear, wanted a Zorro; of a compiled model give"):
        AttentionMaps(nn.Linear(2, 2).eval(), **CLIP)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda maps: maps.rows(3, 0), r"no layer 3; choose one of \(1, 2, 'readout'\)"),
        (lambda maps: maps.rows(0, 0), "no layer 0; choose one of"),
        (lambda maps: maps.rows(True, 0), "no layer True; choose one of"),
        (lambda maps: maps.readers("pool"), "no layer 'pool'; choose one of"),
        (lambda maps: maps.keys(None), "no layer None; choose one of"),
        (lambda maps: maps.rows(1, 2), "AttentionMaps: got head 2, there are 2; count from 0 to 1"),
        (lambda maps: maps.rows(1, -1), "got head -1, there are 2"),
        (lambda maps: maps.rows(1, False), "got head False, there are 2"),
        (lambda maps: maps.rows(1, 0, [17]), "got token 17, there are 17; count from 0 to 16"),
        (lambda maps: maps.rows(1, 0, [-1]), "got token -1, there are 17"),
        (lambda maps: maps.rows(1, 0, torch.ones(17).bool()), "got token True, there are 17"),
        (lambda maps: maps.rows(1, 0, torch.tensor([0.5])), "got token 0.5, there are 17"),
        (lambda maps: maps.rows(1, 0, 3), r"got 3, wanted a list; use \[3\]"),
        (lambda maps: maps.rows("readout", 0, [4]), "got token 4, there are 4"),
        (lambda maps: maps.sentence(1, 0, 17), "got token 17, there are 17"),
        (lambda maps: maps.sentence(1, 0, "0"), "got token '0', there are 17"),
    ],
)
def test_layers_heads_and_tokens_that_are_not_there_are_refused(
    make_zorro, no_shape_checks, call, message
):
    maps = AttentionMaps(make_zorro().double(), **CLIP)
    with pytest.raises(ValueError, match=message):
        call(maps)


def test_a_clip_that_the_model_refuses_is_refused(make_zorro, no_shape_checks):
    with pytest.raises(ValueError, match=r"video has shape \(1, 3, 3, 8, 8\)|frames 3"):
        AttentionMaps(make_zorro(), video=torch.rand(3, 3, 8, 8))
    with pytest.raises(ValueError, match=r"audio has shape \(1, 1, 1300\), wanted"):
        AttentionMaps(make_zorro(), audio=torch.randn(1, 1300))

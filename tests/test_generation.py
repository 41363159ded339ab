"""Writing with kept keys and values is running the whole model again for each code."""

import pytest
import torch
from twins import KINDS, make_clips, make_twin, slowly

from avlib.generation import Writer, pick

kinds = pytest.mark.parametrize("kind", KINDS)


def same(found, wanted):
    for one, other in zip(found, (wanted["video"], wanted["audio"]), strict=True):
        assert torch.equal(one, other)


def generate(model, text, *args, temperature=0, **settings):
    return model.generate(text, *args, temperature=temperature, progress=False, **settings)


# Step by step


@kinds
@pytest.mark.parametrize("seed", [None, 0], ids=["code by code", "mixed"])
@torch.no_grad()
def test_a_writer_gives_the_logits_of_the_whole_model(kind, seed):
    model = make_twin(**KINDS[kind])
    exact = "exact" in KINDS[kind]
    model = model if exact else model.double()
    clips = make_clips(model)
    wanted = [logits.flatten(2, -2) for logits in model(**clips)]
    tokens = {"video": model.video(clips["video"].flatten(2)), "audio": model.audio(clips["audio"])}
    writer = Writer(model, clips["text"])
    chance = torch.Generator().manual_seed(seed or 0)
    for frame in range(model.max_frames):
        for (name, tower), logits in zip(model.ends.items(), wanted, strict=True):
            own = tokens[name].unflatten(1, (-1, tower.places))[:, frame]
            found = []
            while own.shape[1]:  # so many of them at once
                most = own.shape[1]
                count = 1 if seed is None else int(torch.randint(1, most + 1, (), generator=chance))
                found.append(writer.write(name, own[:, :count], frame))
                own = own[:, count:]
            found = torch.cat(found, 1)[:, :-1]
            # On a grid of 2⁻¹² another order of sums may round a number to the next point.
            error = (found - logits[:, frame]).abs().max()
            assert error < (5e-3 if exact else 1e-12)


@torch.no_grad()
def test_whole_frames_at_once_are_the_same_in_float32():
    model = make_twin(**KINDS["runs"])
    clips = make_clips(model)
    writer = Writer(model, clips["text"], torch.tensor([True, False]))
    wanted = model(**clips, dropped=torch.tensor([True, False]))
    for frame in range(model.max_frames):
        for (name, tower), logits in zip(model.ends.items(), wanted, strict=True):
            tokens = tower(clips[name].flatten(2)).unflatten(1, (-1, tower.places))[:, frame]
            found = writer.write(name, tokens, frame)[:, :-1]
            torch.testing.assert_close(found, logits[:, frame].flatten(1, -2), rtol=0, atol=1e-5)


def test_an_exact_model_writes_on_its_grid():
    model = make_twin(exact=True)
    means = []
    for tower in model.ends.values():
        tower.norm.register_forward_hook(lambda _, inputs, __: means.append(inputs[0]))
    generate(model, make_clips(model)["text"], guidance=2.0)
    model.towers.check()
    assert len(means) == 3 * 7
    points = 2 ** (model.towers.sequence.grid.BITS + 1)  # means of two of its points
    assert all(torch.equal(mean * points, (mean * points).round()) for mean in means)


def test_each_token_is_computed_once():
    model = make_twin()
    layer = model.towers.sequence.blocks[0][0].fn.attention.to_kv
    seen = []
    layer.register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    generate(model, make_clips(model)["text"])
    assert sum(seen) == 3 * 5  # frames · places


# Clips


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "runs in both"])
def test_at_temperature_0_the_likeliest_code_is_written(kind):
    model = make_twin(**KINDS[kind])
    model = model if "exact" in KINDS[kind] else model.double()
    text = make_clips(model)["text"]
    frames = min(3, model.max_frames) if model.video.places < 10 else 2
    found = generate(model, text, frames)
    same(found, slowly(model, text, {}, frames))
    assert [part.dtype for part in found] == [torch.long] * 2


@pytest.mark.parametrize("guidance", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 3])
def test_at_random_the_same_codes_are_drawn(top_k, guidance):
    model = make_twin(audio_size=(1, 2)).double()
    text = make_clips(model)["text"]
    ways = {"temperature": 0.7, "top_k": top_k, "guidance": guidance}
    seed = torch.Generator().manual_seed
    found = generate(model, text, **ways, generator=seed(5))
    same(found, slowly(model, text, {}, 3, **ways, generator=seed(5)))


@pytest.mark.parametrize(
    ("kind", "name", "frames"),
    [
        *(("plain", name, frames) for name in ("video", "audio") for frames in (1, 2, 3)),
        ("several codes of sound", "video", 1),
        ("several codes of sound", "audio", 1),
        ("runs", "video", 4),
    ],
)
def test_what_is_given_is_kept_and_goes_on(kind, frames, name):
    model = make_twin(**KINDS[kind]).double()
    clips = make_clips(model)
    given = {name: clips[name][:, :frames]}
    found = dict(zip(("video", "audio"), generate(model, clips["text"], **given), strict=True))
    assert torch.equal(found[name][:, :frames], given[name])
    same(found.values(), slowly(model, clips["text"], given, model.max_frames))
    alone = dict(zip(("video", "audio"), generate(model, clips["text"]), strict=True))
    assert not torch.equal(found[name], alone[name])


def test_film_and_sound_are_given_of_different_lengths():
    model = make_twin().double()
    clips = make_clips(model)
    given = {"video": clips["video"][:, :2].int(), "audio": clips["audio"][:, :1].short()}
    same(generate(model, clips["text"], **given), slowly(model, clips["text"], given, 3))


def test_a_clip_given_whole_comes_back():
    model = make_twin()
    clips = make_clips(model)
    text = clips.pop("text")
    same(generate(model, text, temperature=1.0, **clips), clips)


def test_fewer_frames_are_the_beginning():
    model = make_twin().double()
    text = make_clips(model)["text"]
    whole = generate(model, text)
    for frames in (1, 2):
        for part, long in zip(generate(model, text, frames), whole, strict=True):
            assert torch.equal(part, long[:, :frames])


def test_the_same_seed_writes_the_same_clips_and_another_others():
    model = make_twin()
    text = make_clips(model)["text"]

    def film(seed):
        return generate(model, text, temperature=1, generator=torch.Generator().manual_seed(seed))

    one, again, other = film(1), film(1), film(2)
    assert all(map(torch.equal, one, again))
    assert not all(map(torch.equal, one, other))
    torch.manual_seed(3)
    one = generate(model, text, temperature=1)
    torch.manual_seed(3)
    assert all(map(torch.equal, one, generate(model, text, temperature=1)))


def test_the_likeliest_of_one_is_the_likeliest():
    model = make_twin().double()
    text = make_clips(model)["text"]
    likeliest = generate(model, text)
    for ways in ({"top_k": 1, "temperature": 1.0}, {"temperature": 1e-300}, {"temperature": 1e-9}):
        assert all(map(torch.equal, generate(model, text, **ways), likeliest))


def test_guidance_goes_from_what_is_said_without_the_text_and_beyond():
    model = make_twin().double()
    text = make_clips(model)["text"]
    none = generate(model, torch.zeros_like(text))
    assert all(map(torch.equal, generate(model, text, guidance=0.0), none))
    assert all(map(torch.equal, generate(model, text[:, :0]), none))
    with_text = generate(model, text)
    assert not all(map(torch.equal, with_text, none))
    far = generate(model, text, guidance=20.0)
    same(far, slowly(model, text, {}, 3, guidance=20.0))
    assert not all(map(torch.equal, far, with_text))


def test_guidance_of_1_costs_one_model_and_any_other_two():
    model = make_twin()
    text = make_clips(model)["text"]
    rows = set()
    model.video.to_logits.register_forward_hook(lambda _, __, out: rows.add(len(out)))
    for guidance, wanted in ((1, 2), (1.0, 2), (0, 4), (2.5, 4)):
        rows.clear()
        generate(model, text, guidance=guidance)
        assert rows == {wanted}


def test_a_bar_counts_the_codes(capsys):
    model = make_twin()
    text = make_clips(model)["text"]
    model.generate(text)
    assert "15/15" in capsys.readouterr().err
    model.generate(text, progress=False)
    assert not capsys.readouterr().err


# What is left behind


def test_it_writes_without_dropout_and_leaves_the_modes_as_they_were():
    model = make_twin(dropout=0.9)
    text = make_clips(model)["text"]
    wanted = generate(model, text)
    model.train()
    model.text.eval()  # frozen
    modes = [module.training for module in model.modules()]
    assert all(map(torch.equal, generate(model, text), wanted))
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert False in modes

    def interrupt(*_):
        raise KeyboardInterrupt

    model.audio.to_logits.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(model, text)
    assert [module.training for module in model.modules()] == modes


def test_nothing_is_recorded_for_a_backward_pass_and_no_gradient_is_touched():
    model = make_twin(reversible=True)
    clips = make_clips(model)
    model.losses(**clips).total.backward()
    before = [weight.grad.clone() for weight in model.parameters()]
    kept = []
    model.video.to_logits.register_forward_hook(lambda _, __, out: kept.append(out.requires_grad))
    generate(model, clips["text"])
    assert kept
    assert not any(kept)
    for weight, gradient in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_models_of_every_precision_write(dtype):
    model = make_twin().to(dtype)
    text = make_clips(model)["text"]
    video, audio = generate(model, text, temperature=0.5, guidance=2.0)
    assert video.shape == (2, 3, 2, 2)
    assert audio.shape == (2, 3, 1)


@pytest.mark.parametrize("kind", ["plain", "exact"])
def test_under_autocast(kind):
    model = make_twin(**KINDS[kind])
    text = make_clips(model)["text"]
    with torch.autocast("cpu", torch.bfloat16):
        video, _ = generate(model, text, guidance=2.0)
    assert video.shape == (2, 3, 2, 2)


# One code


def test_a_code_is_drawn_as_often_as_it_is_likely():
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0]).log_softmax(0)
    chance = torch.Generator().manual_seed(0)

    def often(temperature, top_k):
        drawn = pick(logits.expand(20_000, -1), temperature, top_k, chance)
        return torch.bincount(drawn, minlength=4) / 20_000

    for temperature in (0.5, 1.0, 2.0):
        likely = (logits / temperature).softmax(0)
        torch.testing.assert_close(often(temperature, None), likely, rtol=0, atol=0.015)
        two = torch.tensor([likely[0], 0, likely[2], 0]) / (likely[0] + likely[2])
        torch.testing.assert_close(often(temperature, 2), two, rtol=0, atol=0.015)


def test_of_equal_codes_no_more_are_kept_than_asked():
    drawn = pick(torch.zeros(200, 6), 1.0, 2, torch.Generator().manual_seed(0))
    assert len(drawn.unique()) == 2


# Wrong calls


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 2.0}, "num_frames is 2.0; give a positive whole number"),
        ({"num_frames": 0}, "num_frames is 0; give a positive whole"),
        ({"num_frames": True}, "num_frames is True; give a positive whole"),
        ({"num_frames": 4}, "num_frames is 4, the model has positions for 3; ask for fewer, or"),
        ({"top_k": 0}, "top_k is 0; give a positive whole number"),
        ({"top_k": 1.5}, "top_k is 1.5; give a positive whole"),
        ({"temperature": -0.1}, "temperature is -0.1; give a number of 0 or more, not infinite"),
        ({"temperature": float("nan")}, "temperature is nan; give a number"),
        ({"temperature": None}, "temperature is None; give a number"),
        ({"guidance": -1}, "guidance is -1; give a number of 0 or more"),
        ({"guidance": float("inf")}, "guidance is inf; give a number of 0 or more, not infinite"),
        ({"guidance": True}, "guidance is True; give a number"),
    ],
)
def test_numbers_out_of_range(no_shape_checks, settings, message):
    model = make_twin()
    with pytest.raises(ValueError, match=f"TwinDecoder.generate: {message}"):
        model.generate(make_clips(model)["text"], **settings)


@pytest.mark.parametrize("name", ["video", "audio"])
def test_more_is_given_than_is_to_be_written(name):
    model = make_twin()
    clips = make_clips(model)
    message = f"{name} has 3 frames and 2 are to be written; give {name}\\[:, :2\\] or raise num_"
    with pytest.raises(ValueError, match=f"TwinDecoder.generate: {message}"):
        model.generate(clips["text"], 2, **{name: clips[name]})


@pytest.mark.parametrize("ways", [{"temperature": 0}, {"top_k": 2}, {"guidance": 2.0}])
def test_weights_that_are_not_finite(ways):
    model = make_twin().train()
    text = make_clips(model)["text"]
    model.video.to_logits.weight.data[0, 0] = torch.nan
    message = "the logits are not finite, so no code is likelier .* look for NaN in the weights"
    with pytest.raises(ValueError, match=f"TwinDecoder.generate: {message}"):
        generate(model, text, **{"temperature": 1.0, **ways})
    assert model.training

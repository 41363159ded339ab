"""What notebook 08 draws and asks: codes, masks, a scene, and a training that is watched."""

import pytest
import torch
from drawn import closed, words  # noqa: F401
from torch.utils.data import TensorDataset

from avlib import Writing, bounce, plots, small_twin, train, trained_twin
from avlib.course import results, twin_decoder
from avlib.course.twin_decoder import IMPACT, every_change, scene, silence, whole_mask


def test_codes_are_drawn_with_letters_and_sounds_in_words():
    video, audio = bounce.play(bounce.encode("a blue square moves right"), torch.tensor([2]))
    ax = plots.codes(video[0], audio[0])
    said = words(ax)
    assert said.count("B") == 8
    assert [word for word in said if word != "B"] == [
        "♪ blue" if code else "–" for code in audio[0, :, 0]
    ]


def test_frames_that_are_wrong_are_framed():
    video, audio = bounce.play(bounce.encode("a blue square moves right"), torch.tensor([2]))
    right = torch.tensor([True] * 5 + [False] * 3)
    framed = [p for p in plots.codes(video[0], audio[0], right=right).patches if not p.get_fill()]
    assert len(framed) == 3
    left = [frame.get_x() for frame in framed]
    assert left == sorted(left)
    assert left[0] == pytest.approx(5 * 5 - 0.2)


def test_the_order_of_writing_numbers_all_codes_and_no_start():
    said = words(plots.writing_order(frames=3, film=2))
    assert [int(word) for word in said if word.isdigit()] == list(range(1, 10))
    assert said.count("start") == 6


def test_the_whole_mask_is_what_one_layer_reads():
    model = small_twin()
    mask = whole_mask(model, words=7).dense()
    size = {name: 8 * end.places for name, end in model.ends.items()}
    assert mask.shape == (7 + sum(size.values()),) * 2
    text, film, sound = slice(7), slice(7, 7 + size["video"]), slice(7 + size["video"], None)
    assert mask[:, text].all()
    assert not mask[text, 7:].any()
    for name, rows in (("video", film), ("audio", sound)):
        assert torch.equal(mask[rows, rows], model.masks[name, name][0].dense())
    for j in range(size["audio"]):
        for i in range(size["video"]):
            assert mask[film, sound][i, j] == (j // 2 < i // 17)
            assert mask[sound, film][j, i] == (i // 17 <= j // 2)


def test_every_change_is_what_the_model_says_of_each():
    changes, (text, video, audio) = every_change(), scene()
    model = trained_twin()
    for frame, row, column, code in [(0, 1, 2, 3), (1, 1, 2, 0), (2, 0, 1, 0), (2, 3, 3, 4)]:
        film = video.clone()
        film[0, frame, row, column] = code
        with torch.no_grad():
            _, heard = model(text=text, video=film, audio=audio)
        said = heard[0, IMPACT, 0].softmax(-1)[0]
        torch.testing.assert_close(changes[frame, row, column, code], said, rtol=1e-4, atol=1e-6)


def test_the_scene_has_one_answer_and_it_is_clear():
    assert silence(scene()[1])[0] < 0.1
    above = every_change() > twin_decoder.QUIET
    assert above.nonzero().tolist() == [[2, 0, 1, 0]]
    assert every_change()[~above].max() < 0.1


def test_a_training_that_is_watched_is_the_same_and_leaves_its_stages():
    data = TensorDataset(*(part[::40] for part in bounce.clips()))
    settings = {"steps": 4, "batch_size": 2, "progress": False}
    models = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = small_twin(depth=1, dropout=0.1)
        watch = twin_decoder.Watch(model, "a red square moves up", 5, every=2) if watched else None
        train(model, data, Writing(), watch=watch, **settings)
        models.append(model)
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert list(watch.stages) == [0, 2, 4]
    assert watch.picture._repr_mimebundle_()["text/plain"] == "after 4 steps: a red square moves up"
    titles = [ax.get_title() for ax in watch.draw([0, 4]).axes]
    assert titles == ["after 0 steps", "after 4 steps", "the truth"]


def test_shares_are_those_of_the_results():
    runs = ["twin decoder", "towers that do not meet"]
    said = words(twin_decoder.draw_shares(runs))
    for run in runs:
        found = results.one(run, 0, results.WRITING)["held out"]
        assert f"{found['frames from the first on']:.2f}  {run}" in said
        assert f"{found['dubbed sound on impact']:.2f}  {run}" in said

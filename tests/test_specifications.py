"""What an exercise shows of its answer, in numbers or as a picture, is what its solution gives."""

import re
from pathlib import Path

import nbformat
import pytest
import torch
from drawn import closed, words  # noqa: F401
from test_course import EXERCISES, solution

from avlib import Mask, plots
from avlib.course import fusion, mask_gallery, memory, patchify, reversible, training, zorro_mask
from avlib.world import World

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def asked(name):
    """The text of an exercise, as one line without the marks of quotes."""
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            text = re.search(rf"^> \*\*Exercise[^\n]*`{name}`.*", cell.source, re.M | re.S)
            if cell.cell_type == "markdown" and text:
                return " ".join(text[0].replace("\n>", " ").split())
    raise KeyError(name)


def solved(name):
    return solution(next(exercise for exercise in EXERCISES if exercise.name == name))


SIMILAR = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.2, 0.7, 0.6]])


@pytest.mark.parametrize(
    ("name", "arguments", "answer", "words"),
    [
        ("count_patches", (64, 32, 16), 8, "64 × 32 pixels has 8 patches of side 16"),
        (
            "place_of",
            (23, (2, 3, 4)),
            (1, 2, 3),
            "23 in a grid of `(2, 3, 4)` is the last: `(1, 2, 3)`",
        ),
        (
            "sum_positions",
            (torch.tensor([[10], [20]]), torch.tensor([[1], [2], [3]])),
            [[11], [12], [13], [21], [22], [23]],
            "`[[11], [12], [13], [21], [22], [23]]`",
        ),
        (
            "uncouple",
            (9, 21, lambda n: n + 1, lambda n: 2 * n),
            (5, 3),
            "`uncouple(9, 21, f, g)` gives `(5, 3)`",
        ),
        ("weight_bytes", (16, "SGD with momentum"), 192, "need 192"),
        ("layers_needed", (8, 3), 3, "`layers_needed(8, 3)` is 3"),
        ("best_guess", (torch.tensor([[0.1, 0.3, 0.0], [0.1, 0.1, 0.4]]),), 0.7, "gives 0.7:"),
        ("least_loss", (torch.tensor([[0.6, 0.0], [0.2, 0.2]]),), 0.28, "gives 0.28."),
        ("contrast", (SIMILAR, torch.eye(3), 0.5), 0.60, "is 0.60."),
        ("loss_floor", ((0, 0, 0, 1, 1, 2),), 0.78, "give 0.78."),
        ("break_even", (2, 1), 5, "`break_even(2, 1)` is 5"),
    ],
)
def test_an_example_is_what_the_solution_gives(name, arguments, answer, words):
    found = solved(name)(*arguments)
    found = found.tolist() if isinstance(found, torch.Tensor) else found
    assert found == (pytest.approx(answer, abs=0.005) if isinstance(answer, float) else answer)
    assert words in asked(name)


def test_the_reach_in_the_text_is_the_solution():
    rows = re.search(r"2 layers ([01 ]+) ```", asked("reach"))[1].split()
    reads, one, two = torch.tensor([int(n) for n in rows]).reshape(3, 3, 3).bool().unbind(1)
    assert torch.equal(solved("reach")(reads, 1), one)
    assert torch.equal(solved("reach")(reads, 2), two)


def test_the_bridge_in_the_text_is_the_solution():
    bridge = solved("slow_bridge")()
    said = ["yes" if "audio" in bridge.after(n).reads["video"] else "no" for n in (1, 2, 3, 4)]
    assert f"yours: video holds something of audio {' '.join(said)}" in asked("slow_bridge")


def test_the_two_lines_about_two_pasts_are_true_and_false():
    lines = re.search(r"```python (.*) ```", asked("two_pasts"))[1]
    means, pasts = lines.replace(" torch.allclose(torch.cat", "\ntorch.allclose(torch.cat").split(
        "\n"
    )
    tiny, (h1, h2, s1, s2) = reversible.some_outputs()
    known = {"torch": torch, "tiny": tiny, "h1": h1, "h2": h2, "s1": s1, "s2": s2}
    for yours, other in ((solved("two_pasts")(), True), ((h1, h2, s1, s2), False)):
        assert eval(means, {**known, "yours": yours})
        assert eval(pasts, {**known, "yours": yours}) is not other


def test_the_label_in_the_text_is_xor():
    factors = World(100_000, seed=1).factors
    first = (factors["tone"] ^ factors["motion"])[:8].tolist()
    assert f"`xor`: {', '.join(map(str, first))} for the eight" in asked("my_label")
    assert "xor under another name" in training.my_label.judge(lambda f: f["tone"] ^ f["motion"])


def test_the_patches_in_the_picture_are_the_solution():
    *colours, _, patches = patchify.draw_cut_image().axes
    image = torch.tensor([[int(n) for n in words(ax)] for ax in colours]).reshape(2, 4, 4)
    found = solved("cut_image")(image, 2)
    assert words(patches) == [str(n) for n in found.flatten().tolist()]


def test_the_third_modality_in_the_picture_is_the_solution():
    rules = solved("third_modality")().after(5).reads
    ax = zorro_mask.draw_third_modality()
    groups = [label.get_text() for label in ax.get_yticklabels()]
    held = [
        n[0].upper() if n in rules[g] else "never"
        for g in groups
        for n in ("audio", "video", "touch")
    ]
    assert words(ax) == held


def test_the_one_way_block_in_the_picture_is_the_solution():
    held = reversible._held(
        [(t, (r,) if isinstance(r, str) else r) for t, r in solved("one_way_block")()], 1
    )
    _, wanted = reversible.draw_one_way_block().axes
    found = [
        letter if any(stream[0] == tower for stream in held[name]) else "never"
        for name in ("x1", "x2", "m1", "m2")
        for tower, letter in (("x", "V"), ("m", "A"))
    ]
    assert words(wanted) == found


def test_the_segments_in_the_picture_add_up():
    said = " ".join(words(memory.draw_best_segment()))
    peaks = {}
    for count, stream, length, layer, peak in re.findall(
        r"(\d) · (\d) \+ (\d) · (\d) = (\d+)", said
    ):
        assert int(count) == -(-7 // int(length))
        peaks[int(length)] = int(count) * int(stream) + int(length) * int(layer)
        assert peaks[int(length)] == int(peak)
    assert min(peaks, key=peaks.get) == solved("best_segment")(7, 3, 2) == 4


def test_the_masks_in_the_pictures_are_the_solutions():
    def cells(ax):
        return ax.images[0].get_array()

    window = Mask(solved("last_four")(), 8)
    assert (cells(mask_gallery.draw_last_four()) == cells(plots.draw(window))).all()
    real = torch.tensor([[True, False, True, True, False, True]])
    lost = solved("lost_frames")(real)[0]
    drawn = mask_gallery.draw_lost_frames()
    assert (cells(drawn) == cells(plots.draw(lost, {"video": 6}))).all()
    assert words(drawn)[-2:] == ["1 was lost", "4 was lost"]


def test_the_draws_in_the_picture_get_the_answers_of_the_solution():
    ax = fusion.draw_keep_modalities()
    keep_audio, keep_video = solved("keep_modalities")(torch.tensor([0.1, 0.5, 0.9]), 0.4)
    said = [
        str(v) for pair in zip(keep_audio.tolist(), keep_video.tolist(), strict=True) for v in pair
    ]
    assert [text for text in words(ax) if text in ("True", "False")] == said
    assert ax.get_title() == "probability = 0.4"

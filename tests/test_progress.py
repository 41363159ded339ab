"""What is solved is kept, whoever writes at once, and nothing where it is not asked for."""

import json
import multiprocessing

import pytest
from drawn import closed, words  # noqa: F401

from avlib.course import chapters, progress, start_here


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / progress.FILE
    monkeypatch.setenv(progress.VARIABLE, str(path))
    return path


def right(height, width, patch):
    return (height // patch) * (width // patch)


def stub(*_):
    raise NotImplementedError


def test_a_check_keeps_what_was_tried_and_solved(file, capsys):
    start_here.count_patches.check(stub)
    assert not file.exists()
    start_here.count_patches.check(lambda *_: 0)
    assert progress.solved() == {"start_here.count_patches": False}
    start_here.count_patches.check(right)
    start_here.count_patches.check(lambda *_: 0)  # what was solved stays solved
    assert progress.solved() == {"start_here.count_patches": True}
    assert capsys.readouterr().out.count("✓") == 1


def test_nothing_is_kept_unless_a_file_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    start_here.count_patches.check(right)
    assert not [*tmp_path.iterdir()]
    assert progress.solved() == {}


def write_many(number):
    for i in range(300):
        progress.record("chapter", f"exercise_{number}_{i}", True)


def test_notebooks_that_write_at_once_lose_nothing(file):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = file.read_text().splitlines()
    assert len(lines) == 1200
    assert len({json.loads(line)["exercise"] for line in lines}) == 1200
    assert len(progress.solved()) == 1200


def test_a_damaged_file_costs_only_its_damaged_lines(file):
    progress.record("one", "a", True)
    with file.open("ab") as damaged:
        damaged.write(b'{"exercise": "one.b", "ri\n\xff\xfe\n[]\n{"exercise": 3}\n')
    progress.record("one", "c", False)
    assert progress.solved() == {"one.a": True, "one.c": False}


def test_a_file_that_cannot_be_written_stops_no_exercise(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "missing" / "file"))
    start_here.count_patches.check(right)
    assert "✓" in capsys.readouterr().out


def test_the_picture_counts_and_marks(file):
    progress.record("start_here", "count_patches", True)
    progress.record("patchify", "cut_image", False)
    ax = chapters.draw_progress()
    said = words(ax)
    assert said.count("✓") == said.count("~") == 1
    assert ax.get_title().startswith("1 of 42")
    assert said.index("✓") < said.index("~")

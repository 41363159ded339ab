"""A class of made-up learners, graded by the real nbgrader: each gets what the answers deserve."""

import re
import zipfile
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from learners import School, expected

from avlib.course import classroom
from avlib.course.chapters import CHAPTERS, exercises_of
from avlib.course.grading import MarkAgain, RunExercises

ASSIGNMENT = "02_zorro_mask"
# Learner → what is done in each of the five exercises, in order.
CLASS = {
    "diligent": ["right", "loud", "helped", "right", "right"],
    "puzzled": ["wrong", "raises", "right", "number", "empty"],
    "unlucky": ["crashing", "endless", "right", "crashing at once", "helped"],
    "stubborn": ["deaf", "mute", "endless at once", "hungry", "right"],
    "careless": ["runaway", "leaves", "syntax", "right", "deleted"],
}


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    return School(tmp_path_factory.mktemp("school"), seconds=8)


@pytest.fixture(scope="module")
def sources(school):
    return {name: school.read("source", name) for name in school.assignments}


def test_every_exercise_of_the_course_has_its_points(school, sources):
    found = {}
    for assignment in school.assignments:
        found |= school.points(assignment)
    every = [exercise for chapter in CHAPTERS.values() for exercise in exercises_of(chapter)]
    assert len(every) >= 30
    assert found == {exercise.name: exercise.difficulty for exercise in every}


def test_the_source_holds_solutions_and_hidden_checks_and_one_set_up(sources):
    for notebook in sources.values():
        facts = [cell.metadata.get("nbgrader") for cell in notebook.cells]
        marked = [cell for cell, fact in zip(notebook.cells, facts, strict=True) if fact]
        ids = [cell.metadata.nbgrader.grade_id for cell in marked]
        assert ids[0] == "set_up"
        assert "from avlib.course import" in marked[0].source
        assert len(set(ids)) == len(ids)
        for answer, check in zip(marked[1::2], marked[2::2], strict=True):
            name = answer.metadata.nbgrader.grade_id
            assert answer.source.count("### BEGIN SOLUTION") == 1
            assert "NotImplementedError" not in answer.source
            assert check.metadata.nbgrader.grade_id == f"check_{name}"
            assert f".{name}.grade({name})\n### END HIDDEN TESTS" in check.source
            assert check.metadata.nbgrader.locked


def test_right_answers_get_all_points_in_every_notebook(sources):
    for name, notebook in sources.items():
        solved, _ = RunExercises(seconds=120).preprocess(nbformat.from_dict(notebook), {})
        troubles = [
            output.evalue
            for cell in solved.cells
            for output in cell.get("outputs", [])
            if output.output_type == "error"
        ]
        assert not troubles, name


def test_marks_that_are_lost_or_there_twice_are_put_right(school):
    path = classroom.NOTEBOOKS / f"{ASSIGNMENT}.ipynb"
    lost = nbformat.read(path, as_version=4)  # as in the zip
    twice = school.read("source", ASSIGNMENT)
    twice.cells += deepcopy([cell for cell in twice.cells if cell.metadata.get("nbgrader")])
    without_set_up = school.read("source", ASSIGNMENT)
    del without_set_up.cells[:2]
    checks = [f"check_{name}" for name in school.points(ASSIGNMENT)]
    for notebook in (lost, twice, without_set_up):
        notebook, _ = MarkAgain().preprocess(notebook, {"nbgrader": {"notebook": ASSIGNMENT}})
        facts = [cell.metadata.get("nbgrader") for cell in notebook.cells]
        ids = [fact["grade_id"] for fact in facts if fact]
        assert ids.count("set_up") == 1
        assert facts[0]["grade_id"] == "set_up"
        assert [name for name in ids if name.startswith("check_")] == checks
        assert {} not in facts


def test_a_class_gets_what_it_deserves(school):
    points = school.points(ASSIGNMENT)
    plans = {learner: dict(zip(points, kinds, strict=True)) for learner, kinds in CLASS.items()}
    school.teach(ASSIGNMENT, plans)
    grades = school.grades()
    assert {learner: grades[ASSIGNMENT, learner] for learner in plans} == {
        learner: expected(points, plan) for learner, plan in plans.items()
    }
    assert min(expected(points, plan) for plan in plans.values()) > 0

    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert b"sleep\x00987654\x00" not in running

    released = school.read("release", ASSIGNMENT)
    text = "\n".join(cell.source for cell in released.cells)
    assert "SOLUTION" not in text
    assert ".grade(" not in text
    assert text.count("raise NotImplementedError") == len(points)

    school.call("generate_feedback", ASSIGNMENT)
    page = school.folder / "feedback" / "unlucky" / ASSIGNMENT / f"{ASSIGNMENT}.html"
    said = page.read_text(encoding="utf-8")
    assert "no answer after 8 seconds" in said
    assert "this cell ended Python" in said


def test_the_zip_holds_the_course_without_solutions(tmp_path):
    path = classroom.hand_out(tmp_path / "course.zip")
    names = zipfile.ZipFile(path).namelist()
    assert f"{classroom.COURSE}/notebooks/{ASSIGNMENT}.ipynb" in names
    assert f"{classroom.COURSE}/Makefile" in names
    assert not [name for name in names if re.search("solutions|right_answers|/my/", name)]


def test_the_catalogue_names_every_exercise_with_its_text_and_wrong_answers(sources):
    text = classroom.catalogue()
    sections = re.split(r"^### ", text, flags=re.M)[1:]
    assert len(sections) == sum(len(school_of(notebook)) for notebook in sources.values())
    for section in sections:
        asked = section.split("\n\n")[1]
        assert len(asked) > 40, section
        assert section.count("\n| ") >= 5, section


def school_of(notebook):
    return [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade")]


def test_slides_have_one_for_each_section_and_no_stubs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = classroom.slides(classroom.NOTEBOOKS / f"{ASSIGNMENT}.ipynb")
    page = path.read_text(encoding="utf-8")
    notebook = nbformat.read(classroom.NOTEBOOKS / f"{ASSIGNMENT}.ipynb", as_version=4)
    headings = [
        cell
        for cell in notebook.cells
        if re.match(r"##? ", cell.source) and cell.cell_type != "code"
    ]
    assert page.count("<section>\n") + page.count("<section >") >= len(headings)
    assert "NotImplementedError" not in page


def test_a_solution_that_does_not_fit_its_stub_is_refused():
    with pytest.raises(ValueError, match=r"the solution f\(b\) and the stub f\(a\) have different"):
        classroom._with_solution(
            "def f(a):\n    raise NotImplementedError", "def f(b):\n    return b\n", "f"
        )


def test_comments_imports_and_the_hint_of_a_stub_are_kept():
    stub = "def f(a):\n    raise NotImplementedError  # return {…}"
    solutions = "import math\nimport torch\n\n\ndef f(a):\n    # why\n    return math.pi * a\n"
    assert classroom._with_solution(stub, solutions, "f") == (
        "def f(a):\n    # return {…}\n    ### BEGIN SOLUTION\n    import math\n    # why\n"
        "    return math.pi * a\n    ### END SOLUTION"
    )

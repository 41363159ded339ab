"""Notebooks as a learner has them: half solved and fully solved ones run to the end too."""

import ast
import inspect
import re
from pathlib import Path

import nbformat
import pytest
from execute_notebooks import execute
from test_course import EXERCISES, SOLUTIONS, solution

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def stubs(notebook):
    """Exercise cells: the name of the function that the learner writes → the cell."""
    found = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "raise NotImplementedError" in cell.source:
            (function,) = ast.parse(cell.source).body
            found[function.name] = cell
    return found


def printed(notebook):
    return "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )


def by_name():
    return {exercise.name: exercise for exercise in EXERCISES}


def test_every_exercise_stands_in_exactly_one_notebook():
    names = [name for path in NOTEBOOKS for name in stubs(nbformat.read(path, as_version=4))]
    assert sorted(names) == sorted(by_name())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_untouched_notebook_says_not_attempted(path):
    notebook = nbformat.read(path, as_version=4)
    for name in stubs(notebook):
        assert f"· {name}: not attempted yet" in printed(notebook)


@pytest.mark.parametrize("share", ["half", "all"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_solved_notebook_runs_to_the_end(path, share):
    notebook = nbformat.read(path, as_version=4)
    names = list(stubs(notebook))
    solved = names if share == "all" else names[::2]
    for name, cell in stubs(notebook).items():
        if name in solved:
            exercise = by_name()[name]
            function = solution(exercise)
            source = (SOLUTIONS / f"{exercise.chapter}.py").read_text()
            imports = [line for line in source.splitlines() if line.startswith(("import", "from"))]
            cell.source = "\n".join([*imports, "", inspect.getsource(function)])
    text = printed(execute(notebook))
    for name in names:
        assert (f"✓ {name}: right." if name in solved else f"· {name}: not attempted") in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small_and_plain(path):
    assert path.stat().st_size < 800_000
    notebook = nbformat.read(path, as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert not [source for source in code if "sys.path" in source or "%pip" in source]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
            assert output.get("name") != "stderr"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_between_notebooks_lead_somewhere(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", cell.source):
                assert (path.parent / target).exists(), target

"""The course for nbgrader, from the notebooks and their solutions; and a zip for others."""

import ast
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from avlib.course.chapters import CHAPTERS, exercises_of
from avlib.course.exercise import Exercise

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
COURSE = "audio-visual-transformers"
IMPORTS = "from avlib.course import"  # the first cell with it is the set-up
SOLVED = ("notebooks/solutions/", "tests/right_answers/")  # right answers, not to be handed out
CONFIG = '''"""Made by `make classroom`; yours to change."""

c = get_config()
c.CourseDirectory.course_id = {course!r}
# Where learners fetch and submit, if all are on one machine; see TEACHING.md.
c.Exchange.root = {exchange!r}
# A stub is what the notebooks have, not nbgrader's own.
c.ClearSolutions.code_stub = {{"python": "raise NotImplementedError"}}
# Each exercise is run on its own, with limits.
c.Autograde.autograde_preprocessors = [
    "avlib.course.grading.RunExercises",
    "nbgrader.preprocessors.IgnorePattern",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
# Before that, marks that are lost or there twice are put right.
c.Autograde.sanitize_preprocessors = [
    "nbgrader.preprocessors.ClearOutput",
    "avlib.course.grading.MarkAgain",
    "nbgrader.preprocessors.OverwriteKernelspec",
    "nbgrader.preprocessors.OverwriteCells",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.RunExercises.seconds = 60
c.RunExercises.megabytes = 1000
'''


def build(folder: Path) -> list[str]:
    """Write an nbgrader course: one assignment for each notebook with exercises.

    What is there stays, but for `source/`, which is made anew, and a configuration that exists.

    Args:
        folder: of the course.

    Returns:
        The names of the assignments.

    Raises:
        ValueError: a solution is missing, or its arguments are not those of the stub.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nbgrader_config.py"
    if not config.exists():
        exchange = folder.resolve() / "exchange"
        exchange.mkdir(exist_ok=True)
        exchange.chmod(0o777)
        config.write_text(CONFIG.format(course=COURSE, exchange=str(exchange)), encoding="utf-8")
    names = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        exercises = mark(notebook)
        if exercises:
            target = folder / "source" / path.stem / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, target)
            names.append(path.stem)
    return names


def mark(notebook: NotebookNode) -> list[Exercise]:
    """Turn a notebook into nbgrader's source: solutions with marks, checks with points.

    Returns its exercises, in order.
    """
    exercises: list[Exercise] = []
    set_up = False
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs, cell.execution_count = [], None
        name = stub(cell.source)
        if name is not None:
            exercise, solutions = _find(notebook, name)
            cell.source = _with_solution(cell.source, solutions, name)
            _nbgrader(cell, name, solution=True)
            exercises.append(exercise)
        elif exercises and cell.source.strip() == _check(exercises[-1]):
            exercise = exercises[-1]
            cell.source = (
                f"{_check(exercise)}\n### BEGIN HIDDEN TESTS\n"
                f"{_check(exercise).replace('.check(', '.grade(')}\n### END HIDDEN TESTS"
            )
            _nbgrader(cell, f"check_{exercise.name}", points=exercise.difficulty)
        elif not set_up and IMPORTS in cell.source:
            _nbgrader(cell, "set_up")  # read-only: the grader runs it
            set_up = True
        else:
            cell.metadata["avlib"] = "experiment"  # the grader leaves it out
    return exercises


def catalogue() -> str:
    """Every exercise: what it asks, how long it takes, what wrong answers reveal; in Markdown."""
    lines = [
        "# The exercises",
        "",
        "Made by `make classroom` from the notebooks and the checks. Points are the difficulty.",
    ]
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        texts = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        exercises = mark(notebook)
        if exercises:
            lines += ["", f"## {path.stem}"]
        for exercise in exercises:
            asked = re.search(
                rf"^> \*\*Exercise[^\n]*`{exercise.name}`[^\n]*\n((?:>[^\n]*\n?)+)", texts, re.M
            )
            words = re.sub(r"^> ?", "", asked[1] if asked else "", flags=re.M).strip()
            lines += [
                "",
                f"### {exercise.name}: {exercise.minutes} minutes, {exercise.difficulty} points",
                "",
                words,
                "",
                *(f"{number}. *Hint:* {hint}" for number, hint in enumerate(exercise.hints, 1)),
                "",
                "| wrong answer | what the check says of it |",
                "|---|---|",
                *(
                    f"| {name} | {_cell(mistake.says)} |"
                    for name, mistake in exercise.mistakes.items()
                ),
            ]
    return "\n".join(lines) + "\n"


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ")


def slides(path: Path) -> Path:
    """A notebook as slides beside where it is called: one for each section, without exercises."""
    from nbconvert import SlidesExporter

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        kind = "-"
        if cell.cell_type == "markdown" and re.match(r"##? ", cell.source):
            kind = "slide"
        elif cell.cell_type == "markdown" and cell.source.startswith("### "):
            kind = "subslide"
        elif cell.cell_type == "code" and (stub(cell.source) or ".check(" in cell.source):
            kind = "skip"
        cell.metadata["slideshow"] = {"slide_type": kind}
    page, _ = SlidesExporter().from_notebook_node(notebook)
    target = Path(f"{path.stem}.slides.html")
    target.write_text(page, encoding="utf-8")
    return target


def stub(source: str) -> str | None:
    """The name of the function that a learner is to write in this cell."""
    if "raise NotImplementedError" not in source:
        return None
    return next(node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))


def _check(exercise: Exercise) -> str:
    return f"{exercise.chapter}.{exercise.name}.check({exercise.name})"


def _find(notebook: NotebookNode, name: str) -> tuple[Exercise, str]:
    """The exercise of this name among the chapters that a notebook checks, and its solutions."""
    for chapter in CHAPTERS.values():
        path = NOTEBOOKS / "solutions" / f"{chapter}.py"
        for exercise in exercises_of(chapter):
            checked = any(_check(exercise) in cell.source for cell in notebook.cells)
            if exercise.name == name and checked and path.exists():
                return exercise, path.read_text(encoding="utf-8")
    raise ValueError(
        f"classroom: no solution to {name!r} in {NOTEBOOKS / 'solutions'}; put the folder back"
    )


def _with_solution(source: str, solutions: str, name: str) -> str:
    """The stub with a solution between nbgrader's marks, and what it imports."""
    module = ast.parse(solutions)
    (function,) = (n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == name)
    (wanted,) = (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef))
    if ast.unparse(wanted.args) != ast.unparse(function.args):
        raise ValueError(
            f"classroom: the solution {name}({ast.unparse(function.args)}) and the stub "
            f"{name}({ast.unparse(wanted.args)}) have different arguments; change one of them"
        )
    used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    imports = [
        ast.unparse(n)
        for n in module.body
        if isinstance(n, ast.Import | ast.ImportFrom)
        and used & {alias.asname or alias.name for alias in n.names}
    ]
    lines = solutions.splitlines()
    # From the line after the head, so that comments stay.
    body = lines[function.lineno : function.end_lineno]
    while body and not body[0].strip():
        body.pop(0)
    head, _, after = source.partition("raise NotImplementedError")
    hint = f"    {after.strip()}\n" if after.strip() else ""
    inside = "\n".join([*imports, textwrap.dedent("\n".join(body))])
    region = f"### BEGIN SOLUTION\n{inside}\n### END SOLUTION"
    return f"{head.rstrip()}\n{hint}{textwrap.indent(region, '    ')}"


def _nbgrader(
    cell: NotebookNode, name: str, *, solution: bool = False, points: int | None = None
) -> None:
    cell.metadata["nbgrader"] = {
        "grade_id": name,
        "grade": points is not None,
        "solution": solution,
        "locked": not solution,
        "task": False,
        "schema_version": 3,
        **({} if points is None else {"points": points}),
    }


def hand_out(target: Path) -> Path:
    """The course as a zip without solutions, for those who use no nbgrader.

    It holds what git keeps, and no answers.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in filter(None, listed):
            path = ROOT / name
            if path.is_file() and not name.startswith(SOLVED):
                archive.write(path, f"{COURSE}/{name}")
    return target


def nbgrader(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """An nbgrader command in a course; it calls alembic, which may be in this environment alone."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "nbgrader", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )


def main(folder: Path) -> int:
    """`python -m avlib.course classroom [FOLDER]`: the source, the release, the zip."""
    names = build(folder)
    for name in names:
        done = nbgrader(folder, "generate_assignment", name, "--create", "--force")
        if done.returncode:
            print(f"✗ {name}\n{done.stdout}{done.stderr}")
            return 1
        print(f"✓ {name}")
    (folder / "exercises.md").write_text(catalogue(), encoding="utf-8")
    print(f"✓ {hand_out(folder / f'{COURSE}.zip').name}, without solutions")
    print(f"Go on in {folder} with nbgrader, as TEACHING.md says.")
    return 0

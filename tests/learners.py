"""A class of made-up learners, graded by the real nbgrader.

`python tests/learners.py 60` gives sixty of them the whole course and prints how grading went.
"""

import argparse
import csv
import random
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from avlib.course import classroom

# What a learner writes in place of a right answer, by how it goes wrong. {stub} is the stub.
ANSWERS = {
    "empty": "{stub}",
    "wrong": "{head}\n    return 'wrong'",
    "raises": "{head}\n    raise ValueError('mine')",
    "syntax": "{head}\n    return ((",
    "crashing": "{head}\n    import os\n    os._exit(1)",
    "crashing at once": "import os\nos._exit(1)",
    "endless": "{head}\n    while True: pass",
    "endless at once": "while True: pass",
    "deaf": (  # it does not stop when it is interrupted
        "{head}\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass"
    ),
    "runaway": (  # a process that outlives the kernel
        "import subprocess\nsubprocess.Popen(['sleep', '987654'], start_new_session=True)\n{stub}"
    ),
    "leaves": "{head}\n    raise SystemExit",
    "number": "{head}\n    return 1",
}
RIGHT = ("right", "loud", "helped", "mute")
HUNGRY = "bytearray(1_500_000_000)"  # before a right answer; it may not


def answered(notebook: NotebookNode, source: NotebookNode, plan: Mapping[str, str]) -> NotebookNode:
    """The released notebook with an answer to each exercise, by kind."""
    solutions = {
        cell.metadata.nbgrader.grade_id: cell.source
        for cell in source.cells
        if cell.metadata.get("nbgrader", {}).get("solution")
    }
    cells = []
    for cell in notebook.cells:
        facts = cell.metadata.get("nbgrader", {})
        name = facts.get("grade_id", "").removeprefix("check_")
        kind = plan.get(name)
        if kind == "deleted":
            continue
        if facts.get("solution") and kind in (*RIGHT, "hungry"):
            written = re.sub(r"^ *### (BEGIN|END) SOLUTION\n?", "", solutions[name], flags=re.M)
            head, rest = written.split("\n", 1)
            extra = {"helped": f"    assert {name}_helper()\n", "hungry": f"    {HUNGRY}\n"}
            cell.source = f"{head}\n{extra.get(kind, '')}{rest}"
            if kind == "mute":
                cell.source += "\nimport sys\nsys.stdout.close()"
            if kind == "loud":  # warnings and a last line with a value take no points
                cell.source = f"import warnings\nwarnings.warn('loud')\n{cell.source}\n0.5"
        elif facts.get("solution") and kind is not None:
            head = cell.source.split("\n")[0]
            cell.source = ANSWERS[kind].format(stub=cell.source, head=head)
        cells.append(cell)
        if name == "set_up":  # cells of the learner's own
            cells += [
                new_code_cell(f"def {helped}_helper():\n    return True")
                for helped, kind in plan.items()
                if kind == "helped"
            ]
    notebook.cells = cells
    return notebook


class School:
    """An nbgrader course in a folder, with learners.

    Args:
        folder: of the course.
        seconds: that a cell may take.
    """

    def __init__(self, folder: Path, seconds: int) -> None:
        self.folder = folder
        self.assignments = classroom.build(folder)
        config = folder / "nbgrader_config.py"
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace("seconds = 60", f"seconds = {seconds}"), encoding="utf-8")

    def call(self, *arguments: str, folder: Path | None = None) -> str:
        """An nbgrader command that must succeed, in the course or in a learner's folder."""
        done = classroom.nbgrader(folder or self.folder, *arguments)
        if done.returncode:
            raise RuntimeError(f"nbgrader {' '.join(arguments)}\n{done.stdout}\n{done.stderr}")
        return done.stdout + done.stderr

    def read(self, part: str, assignment: str) -> NotebookNode:
        """A notebook of the source or the release."""
        path = self.folder / part / assignment / f"{assignment}.ipynb"
        return nbformat.read(path, as_version=4)

    def points(self, assignment: str) -> dict[str, int]:
        """Exercise → its points."""
        return {
            cell.metadata.nbgrader.grade_id.removeprefix("check_"): cell.metadata.nbgrader.points
            for cell in self.read("source", assignment).cells
            if cell.metadata.get("nbgrader", {}).get("grade")
        }

    def teach(self, assignment: str, plans: Mapping[str, Mapping[str, str]]) -> None:
        """Release, have each learner submit, collect, grade.

        Args:
            assignment: which one.
            plans: learner → exercise → kind of answer.
        """
        self.call("generate_assignment", assignment, "--create", "--force")
        self.call("release_assignment", assignment, "--force")
        for learner, plan in plans.items():
            home = self.folder / "homes" / learner / assignment
            home.mkdir(parents=True, exist_ok=True)
            notebook = answered(
                self.read("release", assignment), self.read("source", assignment), plan
            )
            nbformat.write(notebook, home / f"{assignment}.ipynb")
            exchange = f"--Exchange.root={self.folder.resolve() / 'exchange'}"
            course = f"--course={classroom.COURSE}"
            self.call(
                "submit", assignment, f"--student={learner}", exchange, course, folder=home.parent
            )
        self.call("collect", assignment)
        self.call("autograde", assignment)

    def grades(self) -> dict[tuple[str, str], float]:
        """(assignment, learner) → points, from nbgrader's own export."""
        self.call("export")
        with (self.folder / "grades.csv").open(newline="") as file:
            return {
                (row["assignment"], row["student_id"]): float(row["score"] or 0)
                for row in csv.DictReader(file)
            }


def expected(points: Mapping[str, int], plan: Mapping[str, str]) -> int:
    """What a learner deserves."""
    return sum(points[name] for name, kind in plan.items() if kind in RIGHT)


def main() -> None:
    """A class of many, over all notebooks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("learners", type=int, nargs="?", default=60)
    parser.add_argument("--assignments", nargs="*")
    options = parser.parse_args()
    chance = random.Random(0)
    kinds = [*RIGHT, *RIGHT, *ANSWERS, "hungry", "deleted"]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        school = School(Path(folder), seconds=20)
        for assignment in options.assignments or school.assignments:
            points = school.points(assignment)
            plans = {
                f"learner{n:02}": {name: chance.choice(kinds) for name in points}
                for n in range(options.learners)
            }
            begun = time.monotonic()
            school.teach(assignment, plans)
            found = school.grades()
            for learner, plan in plans.items():
                got, deserved = found.get((assignment, learner)), expected(points, plan)
                if got != deserved:
                    wrong += 1
                    print(f"✗ {assignment} {learner}: {got} in place of {deserved}: {plan}")
            took = (time.monotonic() - begun) / options.learners
            print(f"{assignment}: {options.learners} learners, {took:.1f} s each", flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()

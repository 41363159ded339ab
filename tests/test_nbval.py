"""The notebook check is strict: a changed output fails, a cell that was not run is refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).parents[1]


def nbval(folder, *cells):
    """Run nbval as `make test` does, on a notebook of its own."""
    shutil.copy(ROOT / "notebooks" / "conftest.py", folder)
    nbformat.write(new_notebook(cells=list(cells)), folder / "one.ipynb")
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (line,) = (line for line in makefile.splitlines() if line.startswith("NBVAL := "))
    arguments = line.split()[3:-1]
    sanitize = ROOT / "tests" / "nbval_sanitize.cfg"
    arguments[arguments.index("--nbval-sanitize-with") + 1] = str(sanitize)
    command = [sys.executable, "-m", "pytest", *arguments, str(folder), "--rootdir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return done.returncode, done.stdout + done.stderr


def cell(source, printed, count=1):
    outputs = [new_output("stream", name="stdout", text=printed)] if printed else []
    return new_code_cell(source, outputs=outputs, execution_count=count)


def test_the_stored_output_passes(tmp_path):
    code, said = nbval(tmp_path, cell("print(6 * 7)", "42\n"))
    assert code == 0, said


@pytest.mark.parametrize("printed", ["43\n", ""])
def test_a_changed_or_missing_output_fails(tmp_path, printed):
    code, said = nbval(tmp_path, cell("print(6 * 7)", printed))
    assert code == 1, said
    assert "1 failed" in said


@pytest.mark.parametrize("count", [None, 2])
def test_a_cell_that_was_not_run_is_refused(tmp_path, count):
    code, said = nbval(tmp_path, cell("print(6 * 7)", "42\n", count))
    assert code != 0
    assert "not run from top to bottom" in said


def test_warnings_and_players_are_not_compared(tmp_path):
    source = (
        "import sys; from IPython.display import HTML; print('at 1', file=sys.stderr); HTML('<b>2')"
    )
    stored = [
        new_output("stream", name="stderr", text="at 0\n"),
        new_output(
            "execute_result",
            data={"text/html": "<b>1", "text/plain": "<IPython.core.display.HTML object>"},
            execution_count=1,
        ),
    ]
    code, said = nbval(tmp_path, new_code_cell(source, outputs=stored, execution_count=1))
    assert code == 0, said

"""`make lab` and `make doctor` as a person meets them."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest
from lab_browser import served

from avlib.course import __main__ as course


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder of its own, so that nobody's `my/` is touched."""
    (tmp_path / "notebooks").mkdir()
    for path in (course.ROOT / "notebooks").glob("*.ipynb"):
        (tmp_path / "notebooks" / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(course, "ROOT", tmp_path)
    return tmp_path


def test_lab_copies_what_is_absent_and_overwrites_nothing(project, monkeypatch):
    calls = []

    def run(command, cwd, env, check):
        assert env["AVLIB_PROGRESS"] == str(project / "my" / "progress.jsonl")
        calls.append((command, cwd))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    (project / "my").mkdir()
    (project / "my" / "01_patchify.ipynb").write_text("my own work")
    assert course.lab([]) == 0
    names = {path.name for path in (project / "notebooks").glob("*.ipynb")}
    assert {path.name for path in (project / "my").glob("*.ipynb")} == names
    assert (project / "my" / "01_patchify.ipynb").read_text() == "my own work"
    copy = nbformat.read(project / "my" / "00_start_here.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in copy.cells), (
        "an answer shows before its question"
    )
    ((command, cwd),) = calls
    assert "00_start_here.ipynb" in " ".join(command)
    assert cwd == project / "my"


def test_lab_without_a_clone_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(course, "ROOT", tmp_path)
    assert course.lab([]) == 1
    assert "pip install -e ." in capsys.readouterr().out


def test_lab_serves_the_notebooks_behind_a_token(project):
    with served(project) as address:
        server, token = address.split("/lab")[0], address.split("token=")[1]
        assert "00_start_here.ipynb" in address
        contents = f"{server}/api/contents"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetch(contents)
        listed = json.loads(fetch(f"{contents}?token={token}"))["content"]
        assert "00_start_here.ipynb" in {entry["name"] for entry in listed}


def fetch(address, patience=30):
    """The server prints its address a moment before it answers."""
    for _ in range(patience):
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            error.close()
            raise
        except urllib.error.URLError:
            time.sleep(1)
    raise TimeoutError(address)


def test_doctor_reports_and_passes():
    done = subprocess.run(
        [sys.executable, "-m", "avlib.course", "doctor"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("python", "torch", "device", "threads", "✓ Zorro keeps its streams pure"):
        assert word in done.stdout


def test_import_is_light():
    # As in a kernel, where some packages (tqdm.auto) load more.
    code = (
        "import sys; sys.modules['ipykernel.zmqshell'] = sys; import IPython, avlib; "
        "sys.exit(any(m in sys.modules for m in ('matplotlib', 'ipywidgets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Grading with nbgrader: each exercise is run with limits, and costs no other one."""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty
from signal import SIGKILL
from subprocess import DEVNULL
from typing import Any

import nbformat
from jupyter_client.manager import KernelManager
from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Integer

from avlib.course.classroom import NOTEBOOKS, mark

MOST = 50_000  # characters that a cell may print and have kept
START = 120  # seconds that a new kernel may take
# Run in the kernel after the set-up: what may be allocated from now on. It cannot be raised again.
LIMIT = """
def _limit(room):
    import resource
    with open("/proc/self/status") as file:
        used = next(line for line in file if line.startswith("VmData:"))
    limit = int(used.split()[1]) * 1024 + room
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
_limit({room})
del _limit
"""


class MarkAgain(NbGraderPreprocessor):
    """Puts right the marks of cells by which nbgrader knows them.

    They are lost where a learner worked on a notebook that did not come from nbgrader (a zip, say),
    and there twice where a cell was copied; nbgrader then gives no points, or stops.
    """

    def preprocess(
        self, nb: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """Mark the cells of the course; of copies the last."""
        path = NOTEBOOKS / f"{resources['nbgrader']['notebook']}.ipynb"
        original = nbformat.read(path, as_version=4) if path.exists() else NotebookNode(cells=[])
        shown = {cell.source.strip(): cell for cell in original.cells if cell.cell_type == "code"}
        mark(original)
        known = set()
        for cell in reversed(nb.cells):
            facts = cell.metadata.get("nbgrader", {})
            if not facts and (came := shown.get(cell.source.strip())) is not None:
                facts = came.metadata.get("nbgrader", {})
                if "avlib" in came.metadata:
                    cell.metadata["avlib"] = came.metadata["avlib"]
            cell.metadata.pop("nbgrader", None)
            if facts and facts.get("grade_id") not in known:
                known.add(facts.get("grade_id"))
                cell.metadata["nbgrader"] = facts
        # The set-up stands first, also where it was deleted: all else needs it, and the limit.
        set_up = [cell for cell in original.cells if _is_set_up(cell)]
        if set_up:
            nb.cells = set_up + [cell for cell in nb.cells if not _is_set_up(cell)]
        return nb, resources


def _is_set_up(cell: NotebookNode) -> bool:
    return bool(cell.metadata.get("nbgrader", {}).get("grade_id") == "set_up")


class RunExercises(NbGraderPreprocessor):
    """Runs the set-up, what the learner wrote, and the checks; nothing else of a notebook.

    A cell that takes too long, or ends the kernel, gets an error. A new kernel is then brought to
    where the old one was, by the cells that had run well.
    """

    seconds = Integer(60, help="how long one cell may take").tag(config=True)
    megabytes = Integer(1000, help="what a learner may allocate").tag(config=True)

    def preprocess(
        self, nb: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """Fill in the outputs of the cells that count."""
        kernel = _Kernel(self.seconds)
        try:
            for cell in nb.cells:
                facts = cell.metadata.get("nbgrader", {})
                experiment = cell.metadata.get("avlib") == "experiment" and not facts.get("grade")
                if cell.cell_type != "code" or experiment:
                    continue
                source = cell.source
                if facts.get("grade"):  # the hidden line alone, and the chapter by its own name
                    grading = next(line for line in source.splitlines() if ".grade(" in line)
                    source = f"from avlib.course import {grading.partition('.')[0]}\n{grading}"
                printed, trouble = kernel.run(source, keep=not facts.get("grade"))
                if facts.get("grade") and not trouble:
                    printed += "✓ right\n"
                # No warnings and no values: nbgrader takes points for the ones and reads the others
                # as points.
                cell.outputs = [new_output("stream", name="stdout", text=printed)] * bool(printed)
                if trouble:
                    name, words = trouble.split(": ", 1)
                    cell.outputs.append(
                        new_output("error", ename=name, evalue=words, traceback=[trouble])
                    )
                cell.execution_count = 1
                if _is_set_up(cell) and not trouble:
                    kernel.run(LIMIT.format(room=self.megabytes * 1_000_000), keep=True)
        finally:
            kernel.close()
        return nb, resources


class _Kernel:
    """A kernel that may be lost, and what to tell the next one."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._kept = seconds, list[str]()
        self._start()

    def _start(self) -> None:
        # A folder of its own: a file torch.py, left by a cell that failed, must harm no other.
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._manager = KernelManager(kernel_name="python3")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        environment["AVLIB_GRADING"] = self._folder.name
        quiet = {"stdout": DEVNULL, "stderr": DEVNULL}
        self._manager.start_kernel(cwd=self._folder.name, env=environment, **quiet)
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=START)
        for source in self._kept:
            self._execute(source, START)

    def run(self, source: str, *, keep: bool) -> tuple[str, str | None]:
        """What a cell printed, and what went wrong."""
        printed, trouble, lost = self._execute(source, self._seconds)
        if lost:
            self.close()
            self._start()
        elif keep and trouble is None:
            self._kept.append(source)
        return printed, trouble

    def _execute(self, source: str, seconds: float) -> tuple[str, str | None, bool]:
        asked = self._client.execute(source, store_history=False, allow_stdin=False)
        end = time.monotonic() + seconds
        printed, trouble = "", None
        while time.monotonic() < end:
            try:
                message = self._client.get_iopub_msg(timeout=0.2)
            except Empty:
                if not self._manager.is_alive():
                    return printed, "DeadKernelError: this cell ended Python", True
                continue
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream" and content["name"] == "stdout":
                printed = (printed + content["text"])[:MOST]
            elif kind == "error":
                trouble = f"{content['ename']}: {content['evalue']}"
            elif kind == "status" and content["execution_state"] == "idle":
                return printed, trouble, not self._manager.is_alive()
        return printed, f"TimeoutError: no answer after {seconds:.0f} seconds", True

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        for process in Path("/proc").glob("[0-9]*"):  # what left the kernel's group to live on
            with suppress(OSError):
                if self._folder.name.encode() in (process / "environ").read_bytes():
                    os.kill(int(process.name), SIGKILL)
        self._folder.cleanup()

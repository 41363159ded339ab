"""Run every notebook from top to bottom and store its outputs (`make notebooks`)."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def execute(notebook: nbformat.NotebookNode, timeout: int = 300) -> nbformat.NotebookNode:
    """Run in a fresh kernel; no times are stored, so that running twice changes nothing."""
    NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=False,
        resources={"metadata": {"path": str(FOLDER)}},
    ).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            # A live widget cannot be stored; its picture can, and shows wherever no kernel runs.
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "version": "3.11"},
    }
    return notebook


if __name__ == "__main__":
    names = sys.argv[1:] or sorted(str(path) for path in FOLDER.glob("*.ipynb"))
    for name in names:
        notebook = nbformat.read(name, as_version=4)
        nbformat.write(execute(notebook), name)
        print(f"ran {name}: {Path(name).stat().st_size // 1000} kB")

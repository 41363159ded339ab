"""`python -m avlib.course lab` opens the course, `doctor` reports, `classroom` is for teachers."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "torchaudio", "einops", "av", "matplotlib", "ipywidgets", "jupyterlab")


def lab(arguments: list[str]) -> int:
    """Copy the notebooks to `my/` where they are absent, and open JupyterLab there.

    The copies hold no outputs: who is asked to predict must not see the answer below.

    Further arguments go to JupyterLab, for example `--port 9000` or `--no-browser`.
    """
    from avlib.course.progress import FILE, VARIABLE

    source, own = ROOT / "notebooks", ROOT / "my"
    if not source.is_dir():
        print(f"lab: found no notebooks at {source}; install with `pip install -e .` in a clone")
        return 1
    own.mkdir(exist_ok=True)
    for notebook in sorted(source.glob("*.ipynb")):
        if not (own / notebook.name).exists():
            _copy_without_outputs(notebook, own / notebook.name)
            print(f"copied {notebook.name} to my/")
    first = "--LabApp.default_url=/lab/tree/00_start_here.ipynb"
    command = [sys.executable, "-m", "jupyterlab", first, *arguments]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # in a container root is the only user there is
    print("Opening JupyterLab. With no browser here, open the address with ?token= printed below.")
    environment = {**os.environ, VARIABLE: str(own / FILE)}
    try:
        return subprocess.run(command, cwd=own, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0


def _copy_without_outputs(source: Path, target: Path) -> None:
    import nbformat

    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, target)


def doctor() -> int:
    """Print what to paste when asking for help: versions, device, threads, a self-check."""
    import torch

    print(f"python     {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        print(f"{package:<10} {version(package)}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
    print(f"device     {device}")
    print(
        f"cpu        {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    )
    passed = [_check(name, test) for name, test in SELF_CHECKS.items()]
    return 0 if all(passed) else 1


def _check(name: str, test: Callable[[], bool]) -> bool:
    begun = time.perf_counter()
    try:
        good, trouble = test(), ""
    except Exception as error:
        good, trouble = False, f": {type(error).__name__}: {error}"
    mark = "✓" if good else "✗"
    print(f"{mark} {name} ({time.perf_counter() - begun:.1f} s){trouble}")
    return good


def _clip_decodes() -> bool:
    import avlib

    clip = avlib.load_clip(avlib.EXAMPLE_CLIP, duration=1.0)
    return clip.video is not None and clip.audio is not None


def _streams_are_pure() -> bool:
    import torch

    import avlib

    torch.manual_seed(0)
    model = avlib.Zorro(64, 2, heads=2, dim_head=32, video_patch_size=8).eval()
    inputs = {"audio": torch.randn(1, 16_000), "video": torch.rand(1, 3, 4, 32, 32)}
    names = {kind: i for i, kind in enumerate(model.kinds)}
    return not avlib.influence(model, inputs, names, model.promise).leaks


def _kernel_starts() -> bool:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(startup_timeout=60, stderr=subprocess.DEVNULL)
    try:
        return client.execute_interactive("6 * 7;", timeout=60)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


SELF_CHECKS = {
    "the clip decodes": _clip_decodes,
    "Zorro keeps its streams pure": _streams_are_pure,
    "a notebook kernel starts": _kernel_starts,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["lab"]:
        sys.exit(lab(sys.argv[2:]))
    if sys.argv[1:] == ["doctor"]:
        sys.exit(doctor())
    if sys.argv[1:2] == ["classroom"] and len(sys.argv) <= 3:
        from avlib.course.classroom import main

        sys.exit(main(Path(*sys.argv[2:] or ["classroom"])))
    if sys.argv[1:2] == ["slides"] and len(sys.argv) == 3:
        from avlib.course.classroom import slides

        print(slides(Path(sys.argv[2])))
        sys.exit(0)
    sys.exit(
        "usage: python -m avlib.course lab [options for JupyterLab] | doctor | classroom [folder] "
        "| slides notebook"
    )

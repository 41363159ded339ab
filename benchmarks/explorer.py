"""From the key press to the redrawn picture: `explore` beside `interactive` with matplotlib.

`PYTHONPATH=tests python benchmarks/explorer.py` opens both in one JupyterLab in one Chromium, moves
their query sliders by keyboard, in turns, and writes `benchmarks/explorer.md`. Needs Chromium.

A move is over at the first frame that the browser paints after the slider's pictures, and the
sentence where there is one (it comes last), are other ones than before.
"""

import argparse
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import torch
from common import markdown, progress, publish, taken_on
from lab_browser import Visit, chromium, lab_and_browser
from nbformat.v4 import new_code_cell, new_notebook

from avlib import explore, gallery
from avlib.widgets import PictureSliders

GRIDS = {512: (8, 8, 8), 1024: (16, 8, 8), 2048: (32, 8, 8), 4096: (16, 16, 16)}
MOVES, LAYERS = 20, 6
SETUP = """
import ipywidgets, matplotlib.pyplot as plt, torch
from avlib import explore, gallery
torch.set_num_threads(1)

def mask(*grid):
    return gallery.nearby({"video": grid}, [3, 5, 5], causal=True)

def peer(*grid):
    "What one writes without a library: the mask, the other rows faded."
    visible = mask(*grid).dense().float().numpy()

    def draw(query):
        faded = 0.3 * visible
        faded[query] = visible[query]
        figure, ax = plt.subplots(figsize=(10.24, 10.24), dpi=100)
        ax.imshow(faded, cmap="Blues", interpolation="nearest")
        ax.set_title(f"query {query} reads {int(visible[query].sum())} tokens")
        plt.show()

    top = len(visible) - 1
    return ipywidgets.interactive(draw, query=ipywidgets.IntSlider(min=0, max=top, value=top // 2))
"""
# `window.took` becomes the milliseconds from the key press to the frame with other pictures.
MEASURE = """box => { window.took = new Promise(resolve => {
    const pictures = () => [...box.querySelectorAll("img")];
    const words = () => [...box.querySelectorAll("[role=status]")].map(node => node.textContent);
    const sources = () => pictures().map(image => image.src);
    const [wordsBefore, before] = [words(), sources()];
    const began = performance.now();
    let pressed = null;
    document.addEventListener(
        "keydown", () => { pressed = performance.now(); }, {once: true, capture: true});
    const look = async () => {
        const changed = pressed && pictures().length >= before.length
            && sources().some(source => !before.includes(source))
            && words().every(text => !wordsBefore.includes(text));
        if (!changed && performance.now() - began < 30000) return requestAnimationFrame(look);
        await Promise.all(pictures().map(image => image.decode().catch(() => null)));
        requestAnimationFrame(() => resolve(performance.now() - pressed));
    };
    look();
}); }"""


def notebook(folder: Path, name: str, *sources: str) -> None:
    """Write one that starts with the set-up."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [new_code_cell(source) for source in (SETUP, *sources)]
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")


def moves(visit: Visit, slider: int, times: int) -> list[float]:
    """Milliseconds of so many steps to the right, so that nothing drawn before comes again."""
    handle = visit.page.locator(".noUi-handle").nth(slider)
    box = handle.locator("xpath=ancestor::*[contains(@class, 'widget-vbox')][1]")
    took = []
    for _ in range(times):
        handle.focus()
        box.evaluate(MEASURE)
        visit.page.wait_for_timeout(100)  # the browser has nothing left to do
        visit.page.keyboard.press("ArrowRight")
        took.append(visit.page.evaluate("window.took"))
    return took


def in_the_browser(sizes: list[int], times: int) -> dict[tuple[str, int], list[float]]:
    """(who, tokens) → milliseconds of each move."""
    project = Path(tempfile.mkdtemp())
    (project / "notebooks").mkdir()
    for n in sizes:
        grid = ", ".join(map(str, GRIDS[n]))
        notebook(project / "notebooks", f"explore-{n}", f"explore(mask({grid}), query={n // 2})")
        notebook(project / "notebooks", f"interactive-{n}", f"peer({grid})")
    found: dict[tuple[str, int], list[float]] = {}
    with lab_and_browser(project, chromium()) as lab:
        for n in sizes:
            for who, slider in (("explore", 0), ("interactive", 0), ("layers", 1)):
                name = "interactive" if who == "interactive" else "explore"
                with Visit(lab, f"{name}-{n}.ipynb") as visit:
                    visit.run_all()
                    assert visit.trouble == [], visit.trouble
                    visit.page.wait_for_selector(".noUi-handle")
                    visit.page.wait_for_timeout(1500)
                    if slider == 0:
                        moves(visit, slider, 4)
                    found[who, n] = moves(visit, slider, min(times, LAYERS) if slider else times)
                progress(f"{who} {n}: {statistics.median(found[who, n]):.0f} ms")
    return found


def in_the_kernel(n: int, times: int) -> tuple[float, float, int]:
    """Milliseconds from a slider's value to the encoded pictures: query, layers; and bytes."""
    torch.set_num_threads(1)
    mask = gallery.nearby({"video": GRIDS[n]}, [3, 5, 5], causal=True)
    sliders = explore(mask, query=n // 2)
    query = [_seconds(sliders, 0, n // 2 + 1 + step) for step in range(times)]
    size = sum(len(image.value) for image in sliders.images)
    layers = [_seconds(sliders, 1, 2 + step) for step in range(min(times, LAYERS))]
    return 1000 * statistics.median(query), 1000 * statistics.median(layers), size


def _seconds(sliders: PictureSliders, slider: int, value: int) -> float:
    begun = time.perf_counter()
    sliders.sliders[slider].value = value
    return time.perf_counter() - begun


def report(sizes: list[int], times: int) -> Iterator[str]:
    """The page."""
    kernel = {n: in_the_kernel(n, times) for n in sizes}
    found = in_the_browser(sizes, times)
    rows = []
    for n in sizes:
        ours, theirs, layers = (found[who, n] for who in ("explore", "interactive", "layers"))
        ratio = statistics.median(theirs) / statistics.median(ours)
        query, layer, size = kernel[n]
        rows.append(
            [
                f"{n} × {n}",
                _median(ours),
                _median(theirs),
                f"{ratio:.1f}",
                _median(layers),
                f"{query:.0f}",
                f"{layer:.0f}",
                f"{size / 1024:.0f}",
            ]
        )
    head = [
        "mask",
        "`explore`, ms",
        "`interactive`, ms",
        "times as long",
        "`layers`, ms",
        "kernel: query",
        "kernel: layers",
        "KiB a move",
    ]
    yield f"""# From the key press to the redrawn picture

{taken_on("ipywidgets", "jupyterlab", "matplotlib", "pillow", threads=1)}
- Chromium {_chromium()}, headless, {platform.system()}

A causal 3-D nearby mask (windows of 3 × 5 × 5) as frames of patches and as a matrix. The `query`
slider goes one step to the right by keyboard, {times} times; given are the median and the largest.
A move is over at the first frame painted after the pictures and the sentence have changed.
`interactive` draws the matrix alone, with `plt.subplots` and `imshow` at 1024 × 1024 pixels.
`layers` computes and shows one layer more. *Kernel*: from the slider's new value to the encoded
pictures.

{markdown(head, rows)}"""


def _median(took: list[float]) -> str:
    return f"{statistics.median(took):.0f} ({max(took):.0f})"


def _chromium() -> str:
    said = subprocess.run([chromium(), "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split()[1]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few moves; print, write nothing")
    quick = parser.parse_args().quick
    sizes, times = ([512, 1024], 4) if quick else ([*GRIDS], MOVES)
    publish(report(sizes, times), None if quick else "explorer")


if __name__ == "__main__":
    main()

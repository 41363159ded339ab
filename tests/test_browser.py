"""Every notebook as a learner meets it: in JupyterLab, in a browser, with no way out."""

import base64
import io
import shutil
from pathlib import Path

import nbformat
import pytest
from lab_browser import WIDGETS_ARE_SHOWN, Visit, chromium, lab_and_browser
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from avlib import World, explore, trained_zorro
from avlib.attention_maps import AttentionMaps

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCREENSHOTS = ROOT / "build" / "screenshots"  # to look at; the folder is git-ignored

# Faulty cells, each with the trouble that the visit must report.
FAULTS = {
    "stderr: careful": "import sys; print('careful', file=sys.stderr)",
    "the page asked for http://example.org/a.png": (
        "from IPython.display import HTML, Javascript; HTML('<img src=http://example.org/a.png>')"
    ),
    "the page asked for ws://192.0.2.1/": "Javascript('new WebSocket(\"ws://192.0.2.1\")')",
    "JavaScript: wrong": "Javascript('setTimeout(() => { throw Error(\"wrong\") })')",
    "broken picture: http://example.org/a.png": "",
    "broken player": "HTML('<audio src=\"data:audio/wav;base64,AAAA\" controls></audio>')",
    "Python asked for socket.connect 192.0.2.1": """
import contextlib, socket
with contextlib.suppress(OSError):
    socket.socket().connect(("192.0.2.1", 80))
""",
    "Python asked for socket.getaddrinfo example.org": """
with contextlib.suppress(OSError):
    socket.create_connection(("example.org", 80))
""",
    "ZeroDivisionError: division by zero\nin the cell: 1 / 0": "1 / 0",
}
FORMULAS = {
    r"formula: Missing argument for \frac": r"$\frac{1}$",
    "formula: unknown command": r"$\unknowncommand$",
    r"formula as text: No code: $\sqrt{2$": r"No code: $\sqrt{2$, but `$HOME` is.",
}
# The second and the last slider are right; the last but one fails when it comes to 2.
SLIDERS = """
import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import display
from avlib.widgets import PictureSlider

def draw(moving_picture, moving_sentence):
    def drawn(value):
        value / (value != 2)
        figure = plt.figure(figsize=(1, 1))
        figure.text(0, 0, str(value if moving_picture else ""))
        return figure, f"Now {value}." if moving_sentence else "Always."
    return drawn

display(ipywidgets.IntSlider())
for picture, sentence, start in [(1, 1, 0), (0, 1, 0), (1, 0, 0), (1, 1, 1), (1, 1, 4)]:
    display(PictureSlider("value", range(5), draw(picture, sentence), value=start))
"""
SLIDER_TROUBLE = [
    "slider 1 of 6 has no picture with a sentence",
    "slider 3 of 6 does not change its picture",
    "slider 4 of 6 does not change its sentence: Always.",
    "slider 5 of 6: Not drawn: division by zero",
]
FAULTY = {
    "outputs": [*map(new_markdown_cell, FORMULAS.values()), *map(new_code_cell, FAULTS.values())],
    "sliders": [new_code_cell(SLIDERS)],
    "endless": [new_code_cell("1"), new_code_cell("import time; time.sleep(1000)")],
}
# Without a kernelspec JupyterLab would ask for one.
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
EXPLORERS = [
    "import avlib\nfrom avlib import gallery\nmodel, _ = avlib.trained_zorro()",
    "avlib.explore(model, avlib.World(20)[3])",
    "avlib.explore(gallery.nearby({'video': (3, 4, 4)}, 3))",
    "sizes = {'audio': 6, 'video': (2, 4), 'fusion': 2}",
    "avlib.explore(avlib.zorro_trunk('audio', 'video'), sizes, start={'layers': 2})",
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    executable = chromium()
    project = tmp_path_factory.mktemp("lab")
    (project / "notebooks").mkdir()
    for path in NOTEBOOKS:
        shutil.copy(path, project / "notebooks")
    for name, cells in {**FAULTY, "explorers": map(new_code_cell, EXPLORERS)}.items():
        notebook = new_notebook(cells=[*cells], metadata=KERNEL)
        nbformat.write(notebook, project / "notebooks" / f"{name}.ipynb")
    with lab_and_browser(project, executable) as lab:
        yield lab


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_its_sliders_move(lab, path):
    with Visit(lab, path.name) as visit:
        visit.run_all()
        if not visit.trouble:
            visit.move_sliders()
        visit.photograph(SCREENSHOTS, "light", width=1400)
        visit.photograph(SCREENSHOTS, "dark", width=1000)
    assert visit.trouble == []


def test_trouble_in_outputs_is_seen(lab):
    with Visit(lab, "outputs.ipynb") as visit:
        visit.run_all()
    said = "\n".join(visit.trouble)
    assert [wanted for wanted in [*FAULTS, *FORMULAS] if wanted not in said] == [], said
    assert len(visit.trouble) == len(FAULTS) + len(FORMULAS), said


def test_a_slider_that_does_nothing_is_seen(lab):
    with Visit(lab, "sliders.ipynb") as visit:
        visit.run_all()
        assert visit.trouble == []
        assert visit.move_sliders(patience=5) == 6
    assert visit.trouble == SLIDER_TROUBLE


def test_a_cell_that_does_not_end_is_named(lab):
    with Visit(lab, "endless.ipynb") as visit:
        visit.run_all(patience=5)
    assert visit.trouble == ["after 5 s still running: import time; time.sleep(1000)"]


def test_explorers_follow_the_keyboard(lab):
    example = World(20)[3]
    maps = AttentionMaps(trained_zorro()[0], audio=example.audio, video=example.video)
    with Visit(lab, "explorers.ipynb") as visit:
        visit.run_all()
        assert visit.move_sliders() == 3 + 2 + 2
        said = visit.page.locator("[role=status][aria-live=polite]")
        assert said.count() == 3
        assert said.first.text_content() == maps.sentence(1, None, 0)
        query, layer, head = visit.page.locator(".noUi-handle").all()[:3]
        for handle, steps in ((query, 2), (layer, 1), (head, 3)):
            handle.focus()
            for _ in range(steps):
                visit.page.keyboard.press("ArrowRight")
        visit.wait_until(lambda: said.first.text_content() == maps.sentence(2, 2, 2))

        play = visit.page.locator(".widget-play button").first
        play.focus()
        visit.page.keyboard.press("Space")
        visit.wait_until(lambda: float(query.get_attribute("aria-valuenow")) > 3)
        visit.page.keyboard.press("Space")
        visit.page.wait_for_timeout(500)
        paused = float(query.get_attribute("aria-valuenow"))
        visit.page.wait_for_timeout(1000)
        assert float(query.get_attribute("aria-valuenow")) == paused
        assert said.first.text_content() == maps.sentence(2, 2, int(paused))
        visit.photograph(SCREENSHOTS, "light", width=1400)
        visit.photograph(SCREENSHOTS, "dark", width=1000)
    assert visit.trouble + lab.calls_out() == []


def test_an_explorer_without_a_kernel_is_a_picture_with_its_sentence(lab):
    stored = explore(trained_zorro()[0], World(20)[3])._repr_mimebundle_()
    picture = stored["image/png"]
    data = {**stored, "image/png": base64.b64encode(picture).decode()}
    cell = new_code_cell("1", outputs=[new_output("execute_result", data, execution_count=1)])
    notebook = new_notebook(cells=[cell], metadata=KERNEL)
    plain = new_notebook(cells=[new_code_cell("1")], metadata=KERNEL)
    project = lab.guard_log.parents[1]
    nbformat.write(notebook, project / "my" / "stored.ipynb")
    with Visit(lab, "stored.ipynb") as visit:
        output = visit.page.locator(".jp-OutputArea-output img")
        visit.wait_until(lambda: output.evaluate_all(SIZES) == [size(picture)])
    assert visit.trouble == []

    asked = []
    for name, exported in (("stored", notebook), ("plain", plain)):
        page = lab.browser.new_page()
        path = project / f"{name}.html"
        path.write_text(HTMLExporter().from_notebook_node(exported)[0])
        requests = set()
        page.on("request", lambda request, requests=requests: requests.add(request.url))
        page.goto(path.as_uri(), wait_until="load")
        asked.append(requests - {path.as_uri()})
        if name == "stored":
            assert page.locator(".jp-OutputArea-output img").evaluate_all(SIZES) == [size(picture)]
        page.close()
    assert asked[0] == asked[1]  # what any exported page asks for


def test_a_notebook_that_is_opened_again_shows_its_widgets(lab):
    cell = new_code_cell("from avlib import explore, gallery\nexplore(gallery.causal(8), query=5)")
    notebook = new_notebook(cells=[cell], metadata=KERNEL)
    nbformat.write(notebook, lab.guard_log.parents[1] / "my" / "again.ipynb")
    with Visit(lab, "again.ipynb") as visit:
        visit.run_all()
        visit.page.wait_for_function(WIDGETS_ARE_SHOWN, timeout=60_000)
        visit.page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    with Visit(lab, "again.ipynb") as visit:
        sentence = visit.page.locator("[role=status]")
        visit.wait_until(lambda: "Query 5 reads 6 of 8 tokens." in sentence.all_text_contents())
        assert visit.page.locator(".widget-image").count() == 1
    assert visit.trouble == []


SIZES = "images => images.map(image => [image.naturalWidth, image.naturalHeight])"


def size(picture):
    return [*Image.open(io.BytesIO(picture)).size]


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)]
)
def test_without_chromium_the_remedy_is_told(monkeypatch, ci, outcome):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="apt install chromium"):
        chromium()

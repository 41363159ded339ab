"""JupyterLab as `make lab` starts it, a browser in it, and a watch on what leaves the machine."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, sync_playwright

# Every Python of this JupyterLab loads it, kernels too: nothing is let out, and the try is noted.
GUARD = """
import ipaddress, socket, sys

def is_here(host):
    try:
        return not host or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in HERE

def refuse(event, arguments):
    if event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
        host = arguments[1][0] if isinstance(arguments[1], tuple) else None  # else a Unix socket
    elif event in {"socket.getaddrinfo", "socket.gethostbyname"}:
        host = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
    else:
        return
    if not is_here(host):
        with open(LOG, "a") as log:
            print(event, host, file=log)
        raise PermissionError(f"the tests let nothing out: {event} {host}")

HERE = {"localhost", socket.gethostname()}
sys.addaudithook(refuse)
"""
CHROMIUM_FLAGS = [
    "--no-sandbox",  # in a container root is the only user there is
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
PANEL = "window.jupyterapp?.shell.currentWidget"
CODE_CELLS = f"{PANEL}.content.widgets.filter(cell => cell.model.type === 'code')"


def chromium() -> str:
    """Where Chromium is; without it the test is skipped, and fails where CI is set."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        remedy = "no Chromium to open the notebooks in; on Debian: apt install chromium"
        pytest.fail(remedy) if os.environ.get("CI") else pytest.skip(remedy)
    return found


@dataclass
class Lab:
    """A running JupyterLab and a browser."""

    address: str
    token: str
    guard_log: Path
    browser: Browser

    def calls_out(self) -> list[str]:
        """What its Pythons wanted from elsewhere since this was last asked."""
        calls = self.guard_log.read_text().splitlines()
        self.guard_log.write_text("")
        return calls


@contextmanager
def served(project: Path, *options: str, **environment: str) -> Iterator[str]:
    """`make lab` for the notebooks in `project`, where all settings and all it writes are kept.

    Yields the address that it prints, token included.
    """
    folders = ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")
    private = {name: str(project / name.lower()) for name in (*folders, "JUPYTER_RUNTIME_DIR")}
    start = (
        "import sys; from pathlib import Path; from avlib.course import __main__ as course; "
        f"course.ROOT = Path({str(project)!r}); "
        f"sys.exit(course.lab(['--no-browser', '--port', '0', *{options}]))"
    )
    with (project / "server.log").open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", start],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **private, **environment},
            start_new_session=True,
        )
    try:
        yield _printed_address(server, project / "server.log")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


@contextmanager
def lab_and_browser(project: Path, executable: str) -> Iterator[Lab]:
    """The notebooks of `project` served, under the guard, and a browser."""
    guard = project / "guard"
    guard.mkdir()
    log = guard / "log"
    log.touch()
    (guard / "sitecustomize.py").write_text(f"LOG = {str(log)!r}\n{GUARD}")
    expose = "--LabApp.expose_app_in_browser=True"
    with served(project, expose, PYTHONPATH=str(guard)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        server, token = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/.*token=(\w+)", address).groups()
        yield Lab(server, token, log, browser)
        browser.close()


def _printed_address(server: subprocess.Popen, log: Path, patience: float = 120) -> str:
    end = time.monotonic() + patience
    while time.monotonic() < end and server.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+/lab\S*[?&]token=\w+", log.read_text())
        if found:
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"JupyterLab printed no address:\n{log.read_text()}")


@dataclass
class Visit:
    """One notebook in the browser. `trouble` holds a sentence for all that is not as it should."""

    lab: Lab
    name: str
    trouble: list[str] = field(default_factory=list)

    def __enter__(self) -> "Visit":
        self.context = self.lab.browser.new_context(viewport={"width": 1400, "height": 1000})
        self.context.on("request", lambda request: self._requested(request.url))
        self.page = self.context.new_page()
        self.page.on("websocket", lambda socket: self._requested(socket.url))
        self.page.on("pageerror", lambda error: self.trouble.append(f"JavaScript: {error}"))
        # `reset`: else the notebooks of the visits before are opened too.
        self.page.goto(f"{self.lab.address}/lab/tree/{self.name}?reset&token={self.lab.token}")
        # Run All before the kernel is there is lost; the idle sign comes too early.
        self.page.wait_for_function(
            f"""name => {PANEL}?.context?.path === name && {PANEL}.sessionContext.isReady
            && {PANEL}.sessionContext.session?.kernel?.connectionStatus === "connected" """,
            arg=self.name,
            timeout=120_000,
        )
        return self

    def __exit__(self, *_: object) -> None:
        kernels, token = f"{self.lab.address}/api/kernels", f"token {self.lab.token}"
        headers = {"Authorization": token}
        for kernel in self.context.request.get(kernels, headers=headers).json():
            self.context.request.delete(f"{kernels}/{kernel['id']}", headers=headers)
        self.context.close()

    def _requested(self, url: str) -> None:
        here = self.lab.address.removeprefix("http")
        if not url.startswith((f"http{here}/", f"ws{here}/", f"blob:http{here}/", "data:")):
            said = f"the page asked for {url}"
            self.trouble += [said] if said not in self.trouble else []

    def run_all(self, patience: float = 180) -> None:
        """Run All Cells from the menu, as a learner does; `patience` is in seconds for a cell."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.locator('[data-command="runmenu:run-all"]').click()
        last, since = None, time.monotonic()
        while (running := self.page.evaluate(_RUNNING)) is not None:
            if running != last:
                last, since = running, time.monotonic()
            if time.monotonic() > since + patience:
                self.trouble.append(f"after {patience:.0f} s still running: {running}")
                break
            self.page.wait_for_timeout(100)
        for source, output in self.page.evaluate(_OUTPUTS):
            if output["output_type"] == "error":
                self.trouble.append(f"{output['ename']}: {output['evalue']}\nin the cell: {source}")
            elif output.get("name") == "stderr":
                self.trouble.append(f"stderr: {output['text']}\nin the cell: {source}")
        self.page.wait_for_timeout(500)  # pictures are fetched and formulas set a little later
        self.trouble += self.page.evaluate(_BROKEN)
        self.trouble += [f"Python asked for {call}" for call in self.lab.calls_out()]

    def move_sliders(self, patience: float = 90) -> int:
        """One step by an arrow key and one back, for each slider; returns how many there are."""
        self.page.wait_for_function(WIDGETS_ARE_SHOWN, timeout=60_000)
        handles = self.page.locator(".noUi-handle").all()
        for number, handle in enumerate(handles, start=1):
            slider = f"slider {number} of {len(handles)}"
            box = handle.locator("xpath=ancestor::*[contains(@class, 'widget-vbox')][1]")
            if box.locator("img").count() == 0 or box.locator("[role=status]").count() == 0:
                self.trouble.append(f"{slider} has no picture with a sentence")
                continue
            keys = ["ArrowRight", "ArrowLeft"]
            if handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax"):
                keys.reverse()
            before = _seen(box)
            handle.focus()
            self.page.keyboard.press(keys[0])
            after = self._settled(box, before, patience)
            if after[0] == "…":
                self.trouble.append(f"{slider}: nothing drawn after {patience:.0f} s")
            elif after[0].startswith("Not drawn"):
                self.trouble.append(f"{slider}: {after[0]}")
            elif after[0] == before[0]:
                self.trouble.append(f"{slider} does not change its sentence: {after[0]}")
            elif after[1] == before[1]:
                self.trouble.append(f"{slider} does not change its picture")
            else:
                self.page.keyboard.press(keys[1])
                if self._settled(box, after, patience) != before:
                    self.trouble.append(f"{slider}: a step back is not where it was")
        return len(handles)

    def wait_until(self, condition: Callable[[], bool], patience: float = 30) -> None:
        """Until the page is as it should be; fails after `patience` seconds."""
        end = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < end, f"not so after {patience} s"
            self.page.wait_for_timeout(50)

    def _settled(self, box: Locator, before: tuple[str, str], patience: float) -> tuple[str, str]:
        """What is seen once the sentence, which comes last, is another one than before."""
        end = time.monotonic() + patience
        while time.monotonic() < end and _seen(box)[0] in (before[0], "…"):
            self.page.wait_for_timeout(50)
        return _seen(box)

    def photograph(self, folder: Path, theme: str, width: int, height: int = 2000) -> None:
        """The whole notebook as screenshots, each beginning a little above the last one's end."""
        change = "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})"
        self.page.evaluate(change, f"JupyterLab {theme.title()}")
        self.page.evaluate("jupyterapp.shell.collapseLeft()")
        # Cells out of sight are not laid out, so nobody knows how high they are.
        self.page.add_style_tag(content=".jp-Cell {content-visibility: visible !important}")
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.wait_for_timeout(1000)
        scroller = self.page.locator(
            ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer"
        )
        total = scroller.evaluate(
            """node => [...node.querySelectorAll(".jp-Cell")].at(-1).getBoundingClientRect().bottom
            - node.getBoundingClientRect().top + node.scrollTop"""
        )
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.name.removesuffix('.ipynb')}-{theme}"
        for old in folder.glob(f"{name}-*.png"):
            old.unlink()
        for number, top in enumerate(range(0, int(total), height - 150), start=1):
            scroller.evaluate("(node, top) => node.scrollTo(0, top)", top)
            self.page.wait_for_timeout(150)
            self.page.screenshot(path=folder / f"{name}-{number:02}.png")


def _seen(box: Locator) -> tuple[str, str]:
    """The sentence and the pictures' bytes; text_content, for a cell out of sight has no inner."""
    words = box.locator("[role=status]").text_content() or ""
    return words, box.locator("img").evaluate_all(_BYTES)


_BYTES = """async images => {
    const bytes = images.map(async image => (await fetch(image.src)).arrayBuffer());
    const all = new Blob(await Promise.all(bytes));
    const sum = await crypto.subtle.digest("SHA-1", await all.arrayBuffer());
    return String.fromCharCode(...new Uint8Array(sum));
}"""
# The source of the cell that runs; null when all have answered, or after one has failed.
_RUNNING = f"""() => {{
    const cells = {CODE_CELLS};
    const begun = cells[0].model.executionCount !== null;
    const running = cells.find(cell => cell.model.executionState === "running");
    return begun && !running ? null : (running ?? cells[0]).model.sharedModel.getSource();
}}"""
_OUTPUTS = f"""() => {CODE_CELLS}.flatMap(cell => cell.model.outputs.toJSON().map(
    output => [cell.model.sharedModel.getSource(), output]))"""
WIDGETS_ARE_SHOWN = f"""() => {CODE_CELLS}.every(cell =>
    cell.node.querySelector(".jupyter-widgets") || !cell.model.outputs.toJSON().some(
        output => output.data?.["application/vnd.jupyter.widget-view+json"]))"""
# Undefined macros are set in red; an image or a player that could not be read holds nothing.
_BROKEN = f"""() => {{
    const all = selector => [...{PANEL}.node.querySelectorAll(selector)];
    const prose = all(".jp-RenderedMarkdown p, .jp-RenderedMarkdown li, .jp-RenderedMarkdown td");
    const text = prose.map(node => [...node.childNodes].filter(child => child.nodeType === 3)
        .map(child => child.data).join(""));
    return [
        ...text.filter(words => words.includes("$")).map(words => `formula as text: ${{words}}`),
        ...all("mjx-merror").map(node => `formula: ${{node.dataset.mjxError}}`),
        ...all("mjx-container [style*='color: red']").map(node => "formula: unknown command"),
        ...all("img").filter(node => node.complete && !node.naturalWidth)
            .map(node => `broken picture: ${{node.src}}`),
        ...all("audio, video").filter(node => node.error || node.networkState === 3)
            .map(node => `broken player: ${{node.currentSrc.slice(0, 80)}}`),
    ];
}}"""

"""Pictures that change, with a sentence that says what they show: by sliders, or by a program."""

import html
import io
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from textwrap import wrap
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from avlib.plots.live import font, png

Picture = Figure | bytes
# Picture or pictures, sentence, and perhaps a note.
Drawn = tuple[Picture | Sequence[Picture], str] | tuple[Picture | Sequence[Picture], str, str]
KEPT = 64  # settings whose pictures are kept
SLOW = 0.3  # seconds; after a drawing that took longer "…" is shown before the next


class PictureSliders(ipywidgets.VBox):
    """Some sliders, a sentence and pictures; the arrow keys move a slider.

    Where no kernel runs (a page on the web, an unopened notebook) the pictures and the sentence of
    when the cell ran stand in for it.

    Args:
        controls: name of a slider → what it may be set to.
        draw: one value for each slider → (picture, sentence), or with a note as third, which is
            not read aloud. A picture is a figure or PNG; there may be several, one below the
            other. Called when they are first shown.
        start: where sliders start; by default at their first value.
        play: the name of a slider over a range, which gets a button to let it run and pause.

    Raises:
        ValueError: `start` names no slider, or a value that it cannot have.
    """

    def __init__(
        self,
        controls: Mapping[str, Sequence[Any]],
        draw: Callable[..., Drawn],
        start: Mapping[str, Any] | None = None,
        play: str | None = None,
    ) -> None:
        for name, value in (start or {}).items():
            if name not in controls:
                raise ValueError(
                    f"PictureSliders: start names {name!r}, the sliders are {[*controls]}; leave "
                    "it out or correct the name"
                )
            if value not in controls[name]:
                raise ValueError(
                    f"PictureSliders: {name} starts at {value!r}; choose from {controls[name]}"
                )
        self._draw = draw
        self._drawn = lru_cache(KEPT)(self._pictures)
        self._seconds = 0.0
        width = "initial" if len(controls) == 1 else "6em"
        self.sliders = [
            _slider(name, values, (start or {}).get(name, values[0]), width)
            for name, values in controls.items()
        ]
        for slider in self.sliders:
            slider.observe(self._show, names="value")
        pictures, _, _ = self._drawn(*self._values())
        self.images = [
            ipywidgets.Image(format="png", layout={"max_width": "100%"}) for _ in pictures
        ]
        self.sentence, self.note = ipywidgets.HTML(), ipywidgets.HTML()
        self._show()
        rows = [
            _with_play_button(slider) if slider.description == play else slider
            for slider in self.sliders
        ]
        super().__init__(
            [*rows, self.sentence, *self.images, self.note], layout={"align_items": "flex-start"}
        )

    def _values(self) -> tuple[Any, ...]:
        return tuple(slider.value for slider in self.sliders)

    def _pictures(self, *values: Any) -> tuple[list[bytes], str, str]:
        if self._seconds > SLOW:
            self._say("…")
        begun = time.perf_counter()
        drawn, sentence, *note = self._draw(*values)
        pictures = [drawn] if isinstance(drawn, Figure | bytes) else drawn
        encoded = [_encoded(picture) for picture in pictures]
        self._seconds = time.perf_counter() - begun
        return encoded, sentence, note[0] if note else ""

    def _show(self, _: Any = None) -> None:
        try:
            pictures, sentence, note = self._drawn(*self._values())
        except Exception as error:  # else the last picture would stand for this setting
            self._say(f"Not drawn: {error}")
            raise
        for image, picture in zip(self.images, pictures, strict=True):
            image.value = picture
        self.note.value = (
            f'<p style="line-height: 1.4">{html.escape(note, quote=False)}</p>' if note else ""
        )
        self._say(sentence)

    def _say(self, sentence: str) -> None:
        self.sentence.value = _status(sentence)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs)
        pictures, sentence, note = self._drawn(*self._values())
        settings = ", ".join(f"{slider.description} = {slider.value}" for slider in self.sliders)
        caption = f"{settings}. {sentence} {note}".rstrip()
        return {**bundle, "image/png": _stacked(pictures, caption), "text/plain": caption}


class PictureSlider(PictureSliders):
    """One slider, a picture and a sentence.

    Args:
        name: what the slider sets.
        values: what it may be set to.
        draw: value → (figure, sentence).
        value: where the slider starts; by default at the first value.
    """

    def __init__(
        self, name: str, values: Sequence[Any], draw: Callable[[Any], Drawn], value: Any = None
    ) -> None:
        super().__init__({name: values}, draw, None if value is None else {name: value})


class LivePicture(ipywidgets.VBox):
    """A picture that a running cell exchanges, and a sentence.

    Where no kernel runs, the picture and the sentence of when it was displayed stand in for it.
    """

    def __init__(self, picture: Picture, sentence: str) -> None:
        self._image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self._sentence = ipywidgets.HTML()
        self.show(picture, sentence)
        super().__init__([self._sentence, self._image], layout={"align_items": "flex-start"})

    def show(self, picture: Picture, sentence: str) -> None:
        """Exchange both."""
        self._said = sentence
        self._image.value, self._sentence.value = _encoded(picture), _status(sentence)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs)
        page = _stacked([bytes(self._image.value)], self._said)
        return {**bundle, "image/png": page, "text/plain": self._said}


def _status(sentence: str) -> str:
    """A sentence that screen readers read when it changes."""
    return (
        '<p role="status" aria-live="polite" style="line-height: 1.4; min-height: 2.8em">'
        f"{html.escape(sentence, quote=False)}</p>"
    )


def _slider(name: str, values: Sequence[Any], value: Any, width: str) -> ipywidgets.Widget:
    look = {
        "description": name,
        "value": value,
        "style": {"description_width": width},
        "layout": {"width": "30em"},
    }
    if isinstance(values, range) and values.step == 1:  # a number can be typed too
        return ipywidgets.IntSlider(min=values[0], max=values[-1], **look)
    return ipywidgets.SelectionSlider(options=list(values), **look)


def _with_play_button(slider: ipywidgets.Widget) -> ipywidgets.HBox:
    """The browser moves the slider, so that it stops at once.

    The slider does not move the button: each press of an arrow key would send two messages to the
    kernel and take half as long again. The button begins where the slider is when it is pressed.
    """
    button = ipywidgets.Play(min=slider.min, max=slider.max, value=slider.value, interval=300)
    ipywidgets.jsdlink((button, "value"), (slider, "value"))

    def begin(change: Any) -> None:
        if change.new:
            button.value = slider.value

    button.observe(begin, names="playing")
    return ipywidgets.HBox([slider, button])


def _encoded(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=90)
    plt.close(picture)
    return buffer.getvalue()


def _stacked(pictures: Sequence[bytes], caption: str) -> bytes:
    """Pictures one below the other, and in words what they show."""
    images = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    width = max(500, *(image.width for image in images))
    lines = wrap(caption, (width - 20) // 7)
    height = sum(image.height for image in images)
    page = Image.new("RGB", (width, height + 18 * len(lines) + 14), "white")
    top = 0
    for image in images:
        page.paste(image, (0, top))
        top += image.height
    ImageDraw.Draw(page).text((10, top + 4), "\n".join(lines), fill="#333333", font=font(12))
    small = page.quantize(256)  # it is stored in the notebook
    return png(small, compress_level=9)

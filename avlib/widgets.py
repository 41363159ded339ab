"""Sliders that redraw a picture and say in a sentence what it shows."""

import io
from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


class PictureSliders(ipywidgets.VBox):
    """Some sliders, a picture and a sentence; the arrow keys move a slider.

    Where no kernel runs (a page on the web, an unopened notebook) the first picture and its
    sentence stand in for it.

    Args:
        controls: name of a slider → what it may be set to.
        draw: one value for each slider → (figure, sentence). Called when they are first shown.
        start: where sliders start; by default at their first value.
    """

    def __init__(
        self,
        controls: Mapping[str, Sequence[Any]],
        draw: Callable[..., tuple[Figure, str]],
        start: Mapping[str, Any] | None = None,
    ) -> None:
        self._draw = draw
        self._drawn: dict[tuple[Any, ...], tuple[bytes, str]] = {}
        self.sliders = [
            ipywidgets.SelectionSlider(
                options=list(values),
                value=(start or {}).get(name, values[0]),
                description=name,
                style={"description_width": "initial" if len(controls) == 1 else "6em"},
                layout={"width": "30em"},
            )
            for name, values in controls.items()
        ]
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.sentence = ipywidgets.HTML()
        for slider in self.sliders:
            slider.observe(self._show, names="value")
        self._show()
        super().__init__(
            [*self.sliders, self.image, self.sentence], layout={"align_items": "flex-start"}
        )

    def _values(self) -> tuple[Any, ...]:
        return tuple(slider.value for slider in self.sliders)

    def _show(self, _: Any = None) -> None:
        values = self._values()
        if values not in self._drawn:
            self._say("…")  # drawing may take a moment
            figure, sentence = self._draw(*values)
            self._drawn[values] = _png(figure), sentence
        self.image.value, sentence = self._drawn[values]
        self.image.alt = sentence
        self._say(sentence)

    def _say(self, sentence: str) -> None:
        self.sentence.value = f'<p role="status" aria-live="polite">{sentence}</p>'

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs)
        figure, sentence = self._draw(*self._values())
        settings = ", ".join(f"{slider.description} = {slider.value}" for slider in self.sliders)
        caption = f"{settings}. {sentence}"
        figure.supxlabel(fill(caption, int(12 * figure.get_figwidth())), fontsize=10)
        return {**bundle, "image/png": _png(figure), "text/plain": caption}


class PictureSlider(PictureSliders):
    """One slider, a picture and a sentence.

    Args:
        name: what the slider sets.
        values: what it may be set to.
        draw: value → (figure, sentence).
        value: where the slider starts; by default at the first value.
    """

    def __init__(
        self,
        name: str,
        values: Sequence[Any],
        draw: Callable[[Any], tuple[Figure, str]],
        value: Any = None,
    ) -> None:
        super().__init__({name: values}, draw, None if value is None else {name: value})


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    return buffer.getvalue()

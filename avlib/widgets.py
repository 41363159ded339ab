"""A slider that redraws a picture and says in a sentence what it shows."""

import io
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


class PictureSlider(ipywidgets.VBox):
    """A slider, a picture and a sentence; the arrow keys move the slider.

    Where no kernel runs (a page on the web, an unopened notebook) the first picture and its
    sentence stand in for it.

    Args:
        name: what the slider sets.
        values: what it may be set to.
        draw: value → (figure, sentence). Called when a value is first shown.
        value: where the slider starts; by default at the first value.
    """

    def __init__(
        self,
        name: str,
        values: Sequence[Any],
        draw: Callable[[Any], tuple[Figure, str]],
        value: Any = None,
    ) -> None:
        self._draw = draw
        self._drawn: dict[Any, tuple[bytes, str]] = {}
        self.slider = ipywidgets.SelectionSlider(
            options=list(values),
            value=values[0] if value is None else value,
            description=name,
            style={"description_width": "initial"},
            layout={"width": "30em"},
        )
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.sentence = ipywidgets.HTML()
        self.slider.observe(self._show, names="value")
        self._show()
        super().__init__(
            [self.slider, self.image, self.sentence], layout={"align_items": "flex-start"}
        )

    def _show(self, _: Any = None) -> None:
        value = self.slider.value
        if value not in self._drawn:
            figure, sentence = self._draw(value)
            self._drawn[value] = _png(figure), sentence
        self.image.value, sentence = self._drawn[value]
        self.image.alt = sentence
        self.sentence.value = f'<p role="status" aria-live="polite">{sentence}</p>'

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs)
        figure, sentence = self._draw(self.slider.value)
        caption = f"{self.slider.description} = {self.slider.value}. {sentence}"
        figure.supxlabel(fill(caption, int(12 * figure.get_figwidth())), fontsize=10)
        return {**bundle, "image/png": _png(figure), "text/plain": caption}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    return buffer.getvalue()

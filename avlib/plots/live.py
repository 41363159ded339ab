"""A matplotlib figure drawn once, in which the pixels of some Axes are then exchanged.

Drawing a figure anew takes up to a tenth of a second. Here labels, bands and legends are drawn
once, and a slider's move writes some arrays into the picture and encodes it, in a few milliseconds.
"""

import io
from collections.abc import Sequence
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

DPI = 100


def pixel_figure(width: int, height: int) -> Figure:
    """An empty figure of a size in pixels."""
    figure = plt.figure(dpi=DPI, layout="none")
    figure.set_size_inches((width + 0.01) / DPI, (height + 0.01) / DPI)
    return figure


def pixel_axes(figure: Figure, left: int, top: int, width: int, height: int) -> Axes:
    """Axes at a place in a figure's pixels, from its upper left corner: data are pixels too."""
    whole_width, whole_height = (round(inches * DPI) for inches in figure.get_size_inches())
    bottom = whole_height - top - height
    ax = figure.add_axes(
        (left / whole_width, bottom / whole_height, width / whole_width, height / whole_height)
    )
    ax.set(xlim=(0, width), ylim=(height, 0))
    return ax


class Live:
    """The figure of some pixel Axes as PNG, with other arrays in them each time.

    Args:
        axes: made by `pixel_axes`, with a picture in each. Their figure is closed.
        palette: with it the arrays are numbers of its colours, (colours, 3) in [0, 255]; else they
            are RGB. A palette of few colours is ten times as fast.
        title: pixels kept free at the top for a line that changes too.
    """

    def __init__(
        self, axes: Sequence[Axes], palette: NDArray[np.uint8] | None = None, *, title: int = 0
    ) -> None:
        figure = axes[0].figure
        assert isinstance(figure, Figure)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frame = np.asarray(canvas.buffer_rgba())[..., :3]
        self._boxes = []
        for ax in axes:
            left, bottom, right, top = np.rint(ax.bbox.extents).astype(int)
            rows = slice(len(frame) - top, len(frame) - bottom)
            self._boxes.append((rows, slice(left, right)))
        plt.close(figure)
        self._palette = None
        if palette is not None:
            few = Image.fromarray(frame).quantize(256 - len(palette), dither=Image.Dither.NONE)
            own = np.asarray(few.getpalette() or [], np.uint8)[: 3 * (256 - len(palette))]
            self._palette = np.concatenate([palette.reshape(-1), own]).tobytes()
            frame = np.asarray(few) + np.uint8(len(palette))
            far = np.abs(own.reshape(-1, 3)[None].astype(int) - np.arange(256)[:, None, None])
            self._greys = far.sum(-1).argmin(1).astype(np.uint8) + np.uint8(len(palette))
        self._frame, self._title = frame, title

    def __call__(self, *arrays: NDArray[np.uint8], title: str = "") -> bytes:
        """The picture as PNG, one array for each of the Axes."""
        frame = self._frame.copy()
        if self._title:
            line = _line_of_text(title, frame.shape[1], self._title)
            frame[: self._title] = self._greys[line] if self._palette else line[..., None]
        for box, array in zip(self._boxes, arrays, strict=True):
            frame[box] = array
        if self._palette is None:
            image = Image.fromarray(frame)
        else:
            image = Image.frombytes("P", frame.shape[::-1], frame.tobytes())
            image.putpalette(self._palette)
        return png(image)


def _line_of_text(words: str, width: int, height: int) -> NDArray[np.uint8]:
    """Dark on white."""
    image = Image.new("L", (width, height), 255)
    ImageDraw.Draw(image).text((10, 4), words, fill=0x33, font=font(13))
    return np.asarray(image)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own, in pixels."""
    return ImageFont.truetype(findfont("DejaVu Sans"), size)


def png(image: Image.Image, compress_level: int = 1) -> bytes:
    """Encoded, by default quickly rather than small."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()

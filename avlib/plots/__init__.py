"""Pictures: data in, matplotlib Axes out."""

from avlib.plots.blocks import couplings
from avlib.plots.cells import Cells, cells_axes, to_look_at
from avlib.plots.clips import film_strip, picture, spectrogram, waveform
from avlib.plots.codes import codes, writing_order
from avlib.plots.learning import accuracies, curves
from avlib.plots.masks import draw
from avlib.plots.memory import CARDS, GB, budget, legend, peaks, timeline
from avlib.plots.places import Places
from avlib.plots.style import BROWN, COLOURS, FOCUS, HIDDEN, INK, OTHER, bare, canvas, colour

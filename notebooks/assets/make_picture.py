"""Draw the pictures of the README: `python notebooks/assets/make_picture.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import avlib
from avlib import plots


def main() -> None:
    """The film, the sound and the mask, in one row."""
    clip = avlib.load_clip(avlib.EXAMPLE_CLIP, size=64, fps=8, sample_rate=16_000)
    assert clip.video is not None
    assert clip.audio is not None
    sound = avlib.LogMelSpectrogram(num_mels=64)(clip.audio[None])[0]
    figure = plt.figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[2, 1])
    strip, spectrogram = left.subplots(2, 1)
    plots.film_strip(clip.video, clip.fps, frames=6, grid=16, ax=strip)
    strip.set_title("a film becomes video tokens", color=plots.COLOURS["video"], weight="bold")
    plots.spectrogram(sound, grid=16, columns_per_second=100, ax=spectrogram)
    spectrogram.set_title("its sound becomes audio tokens", color="#8F5A00", weight="bold")
    mask = right.subplots()
    plots.draw(avlib.zorro_trunk("audio", "video"), {"audio": 8, "video": 12, "fusion": 4}, ax=mask)
    target = Path(__file__).with_name("zorro.png")
    figure.savefig(target, dpi=100, facecolor="white", metadata={"Software": None})
    print(f"wrote {target.name}, {target.stat().st_size // 1000} kB")
    explorer = Path(__file__).with_name("explorer.png")
    model, _ = avlib.trained_zorro()
    sliders = avlib.explore(model, avlib.World(4, seed=5)[3], readout=True, query=3)
    explorer.write_bytes(sliders._repr_mimebundle_()["image/png"])


if __name__ == "__main__":
    main()

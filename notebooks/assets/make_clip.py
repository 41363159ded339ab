"""Draw the clip that ships with the course: things that move, and the sounds they make.

Run `python notebooks/assets/make_clip.py`; it writes `avlib/course/clip.mp4`, the same every time.
Four seconds, 64 frames of 128 × 128 at 16 per second, sound at 16 kHz. It ends as it begins.

- A ball hops along four bars. Each bar has its note, and lights up when it is struck.
- A square climbs a rail while a tone rises, and comes back while the tone falls.
- A lamp flashes with a click.
"""

import math

import torch
from torch import Tensor

from avlib.data import EXAMPLE_CLIP, Clip, save_clip

SECONDS, SIZE, FPS, SAMPLE_RATE = 4, 128, 16, 16_000

# Every time below is a whole number of frames, so sound and picture meet exactly.
HITS = {0.25: 0, 0.75: 1, 1.25: 2, 1.75: 3, 2.25: 3, 2.75: 2, 3.25: 1, 3.75: 0}  # second: bar
FLASHES = [0.5, 1.5, 2.0, 3.5]
CLIMB, RETURN = (0.75, 1.5), (2.5, 3.25)  # from second, to second

NOTES = [330.0, 440.0, 587.0, 784.0]  # Hz, one for each bar
SWEEP = (1600.0, 3600.0)  # Hz, at the foot and at the top of the rail

BACKGROUND, RAIL, UNLIT = "#243342", "#3B4D5E", "#566B7D"
BALL, SQUARE, LAMP = "#FF7F66", "#7AD6B0", "#FFE9A8"
BARS = ["#6FB7E9", "#A795E8", "#E58FBE", "#F5B971"]

HOP = 0.5  # seconds from one hit to the next
BAR_TOP, BAR_BOTTOM, RADIUS, HEIGHT = 110, 126, 12, 37  # pixels
FOOT, TOP = (58, 32), (110, 16)  # (x, y) of the rail's ends


def colour(code: str) -> Tensor:
    """`#RRGGBB` as three numbers in [0, 1]."""
    return torch.tensor([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def along_rail(time: float) -> float:
    """Where the square is, from 0 at the foot to 1 at the top."""
    up = min(max((time - CLIMB[0]) / (CLIMB[1] - CLIMB[0]), 0), 1)
    down = min(max((time - RETURN[0]) / (RETURN[1] - RETURN[0]), 0), 1)
    return up - down


def glow(time: float, start: float, fade: float) -> float:
    """1 at `start`, then fading to 0."""
    return math.exp(-(time - start) / fade) if time >= start - 1e-9 else 0.0


class Canvas:
    """A picture (3, size, size) on which shapes are painted with smooth edges."""

    def __init__(self) -> None:
        self.picture = colour(BACKGROUND)[:, None, None].expand(3, SIZE, SIZE).clone()
        self.y, self.x = torch.meshgrid(
            torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij"
        )

    def paint(self, distance: Tensor, paint: Tensor, strength: float = 1.0) -> None:
        """Cover the points whose distance to the shape, in pixels, is below 0."""
        cover = (0.5 - distance).clamp(0, 1) * strength
        self.picture = torch.lerp(self.picture, paint[:, None, None].expand(3, SIZE, SIZE), cover)

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> Tensor:
        """The distance to an ellipse (exact for a circle)."""
        return (torch.hypot((self.x - x) / rx, (self.y - y) / ry) - 1) * min(rx, ry)

    def line(self, a: tuple[float, float], b: tuple[float, float], half: float) -> Tensor:
        """The distance to a line with round ends, `half` pixels to each side."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        along = ((self.x - a[0]) * dx + (self.y - a[1]) * dy) / (dx * dx + dy * dy)
        along = along.clamp(0, 1)
        return torch.hypot(self.x - a[0] - along * dx, self.y - a[1] - along * dy) - half

    def box(self, x: float, y: float, half_x: float, half_y: float, corner: float = 3) -> Tensor:
        """The distance to a box with round corners."""
        dx, dy = (self.x - x).abs() - half_x + corner, (self.y - y).abs() - half_y + corner
        outside = torch.hypot(dx.clamp(min=0), dy.clamp(min=0))
        return outside + torch.maximum(dx, dy).clamp(max=0) - corner


def draw(time: float) -> Tensor:
    """The picture at a time: (3, size, size) in [0, 1]."""
    canvas = Canvas()
    white = torch.ones(3)

    lit = max(glow(time, flash, 0.09) for flash in FLASHES)
    lamp_x, lamp_y = 24, 24
    halo = torch.hypot(canvas.x - lamp_x, canvas.y - lamp_y)
    canvas.paint(halo - 24, colour(LAMP), 0.35 * lit)
    canvas.paint(halo - 18, colour(LAMP), 0.45 * lit)
    canvas.paint(halo - 12, torch.lerp(colour(UNLIT), colour(LAMP), lit))

    canvas.paint(canvas.line(FOOT, TOP, 2.5), colour(RAIL))
    at = along_rail(time)
    x, y = (foot + at * (top - foot) for foot, top in zip(FOOT, TOP, strict=True))
    canvas.paint(canvas.box(x, y, 11, 11), colour(SQUARE))

    for bar, code in enumerate(BARS):
        struck = max(glow(time, hit, 0.12) for hit, which in HITS.items() if which == bar)
        middle = (BAR_TOP + BAR_BOTTOM) / 2
        shape = canvas.box(16 + 32 * bar, middle, 14, (BAR_BOTTOM - BAR_TOP) / 2)
        canvas.paint(shape, torch.lerp(colour(code) * 0.75, white, 0.75 * struck))

    # The hop that is under way goes from the last hit to the next; the clip wraps around.
    hits = sorted(HITS)
    last = max((hit for hit in hits if hit <= time), default=hits[-1] - SECONDS)
    bars = HITS[last % SECONDS], HITS[(last + HOP) % SECONDS]
    phase = (time - last) / HOP
    x = 16 + 32 * (bars[0] + (bars[1] - bars[0]) * phase)
    flat = 0.15 * max(0.0, 1 - 12 * min(phase, 1 - phase))  # it squashes as it lands
    rx, ry = RADIUS * (1 + flat), RADIUS * (1 - flat)
    y = BAR_TOP - ry - HEIGHT * 4 * phase * (1 - phase)
    canvas.paint(canvas.ellipse(x, y, rx, ry), colour(BALL))
    canvas.paint(canvas.ellipse(x - 4, y - 4, 3.5, 3.5), white, 0.55)
    return canvas.picture


def sing() -> Tensor:
    """The sound of the whole clip: (samples,) in [-1, 1]."""
    time = torch.arange(SECONDS * SAMPLE_RATE, dtype=torch.float64) / SAMPLE_RATE
    sound = torch.zeros_like(time)

    # A struck bar: a note and its overtones, the higher ones dying sooner.
    for hit, bar in HITS.items():
        since = (time - hit).clamp(min=0)
        for overtone, loudness in ((1, 0.34), (2, 0.16), (3, 0.1), (4, 0.06), (6, 0.03)):
            tone = torch.sin(2 * math.pi * NOTES[bar] * overtone * since)
            sound += loudness * tone * torch.exp(-since * (5 + 3 * overtone))

    # The climbing square: its height is the pitch, and the phase is the sum of the pitch so far.
    place = torch.tensor([along_rail(t) for t in time.tolist()], dtype=torch.float64)
    pitch = SWEEP[0] * (SWEEP[1] / SWEEP[0]) ** place
    moving = torch.zeros_like(time)
    for start, end in (CLIMB, RETURN):
        moving += ((time - start) / 0.03).clamp(0, 1) * ((end - time) / 0.03).clamp(0, 1)
    sound += 0.13 * moving * torch.sin(2 * math.pi * torch.cumsum(pitch, 0) / SAMPLE_RATE)

    # The lamp's switch: noise that is over in a few thousandths of a second.
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for flash in FLASHES:
        sound += 0.25 * noise * torch.exp(-(time - flash).clamp(min=0) / 0.004) * (time >= flash)

    # No sound is cut off where the clip ends.
    return (sound * ((SECONDS - time) / 0.05).clamp(max=1)).float()


if __name__ == "__main__":
    video = torch.stack([draw(k / FPS) for k in range(SECONDS * FPS)], dim=1)
    EXAMPLE_CLIP.parent.mkdir(exist_ok=True)
    save_clip(EXAMPLE_CLIP, Clip(video, sing(), FPS, SAMPLE_RATE))
    print(
        f"{EXAMPLE_CLIP}: video {tuple(video.shape)}, {EXAMPLE_CLIP.stat().st_size / 1000:.0f} kB"
    )

"""Load damaged copies of a file, one after the other: `python clips_damage.py FILE FIRST LAST`.

It says which seed it is at, so that whoever started it can name the one that crashed or hung, and
stops with an error at a copy that gives neither a proper clip nor a clear error.
"""

import os
import random
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peak import peak_megabytes

from avlib.data import Clip, load_clip

EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)


def damaged(content: bytes, seed: int) -> bytes:
    """Flipped bits, a cut, a lost end, zeros, a repeated block or a number that is out of range."""
    pick = random.Random(seed)
    data = bytearray(content)
    at, length = pick.randrange(len(data)), pick.choice([1, 4, 16, 64, 256, len(data) // 3])
    kind = seed % 7
    if kind == 0:
        for _ in range(pick.choice([1, 4, 32])):
            data[pick.randrange(len(data))] ^= 1 << pick.randrange(8)
    elif kind == 1:
        del data[at : at + length]
    elif kind == 2:
        del data[max(1, at) :]
    elif kind == 3:
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == 4:
        data[at:at] = data[pick.randrange(len(data)) :][:length]
    else:  # most numbers are in the first and in the last two kilobytes
        for _ in range(pick.choice([1, 2])):
            at = pick.randrange(min(len(data), 2048))
            at = at if kind == 5 else len(data) - 1 - at
            width = min(pick.choice([1, 2, 4]), len(data) - at)
            value = pick.choice([*EXTREMES, pick.getrandbits(32)]) % 256**width
            data[at : at + width] = value.to_bytes(width, pick.choice(["big", "little"]))
    return bytes(data)


def check(clip: Clip) -> None:
    """What the docstring of `Clip` promises."""
    assert clip.video is not None or clip.audio is not None
    assert (clip.video is None) == (clip.fps is None)
    assert (clip.audio is None) == (clip.sample_rate is None)
    if clip.video is not None:
        assert clip.video.dtype == torch.float32
        assert clip.video.ndim == 4
        assert len(clip.video) == 3
        assert 0 not in clip.video.shape
        assert clip.video.min() >= 0  # False for NaN
        assert clip.video.max() <= 1
        assert 0 < clip.fps <= 10_000
    if clip.audio is not None:
        assert clip.audio.dtype == torch.float32
        assert clip.audio.ndim == 1
        assert len(clip.audio) > 0
        assert clip.audio.abs().max() <= 1
        assert clip.sample_rate > 0


def arguments(seed: int) -> dict[str, float]:
    """Every other copy is read whole, the others in part and changed."""
    kinds = ({}, {"start": 0.4}, {}, {"duration": 0.3, "fps": 25.0}, {}, {"sample_rate": 8000})
    return kinds[seed % 6]


def opened() -> int:
    """How many files and threads this process has, where Linux lists them."""
    lists = [Path("/proc/self/fd"), Path("/proc/self/task")]
    return sum(len(os.listdir(each)) for each in lists if each.is_dir())  # noqa: PTH208


def main(source: Path, first: int, last: int) -> None:
    """Raises AssertionError, or whatever `load_clip` should not raise."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    content = source.read_bytes()
    clips = 0
    kept: list[ValueError] = []  # a list of what went wrong must not keep decoders open
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / source.name
        check(load_clip(source))
        before = opened()
        for seed in range(first, last):
            print(seed, flush=True)
            path.write_bytes(damaged(content, seed))
            try:
                check(load_clip(path, **arguments(seed)))
                clips += 1
            except ValueError as error:
                kept.append(error)
        assert opened() <= before, "files or threads are left open"
    for error in kept:
        assert str(error).startswith("load_clip: "), error
        assert len(str(error).splitlines()) == 1, error
    print(f"{clips} clips, {len(kept)} clear errors, {peak_megabytes()} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

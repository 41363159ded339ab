"""Your own clips, and a table that says what is to be seen and heard in them."""

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from avlib.data import check_wanted, load_clip
from avlib.decode import MOST_BYTES
from avlib.examples import Example
from avlib.label_table import brief, check_table, classes_given, classes_in, numbers_of, read_table

MOST_NAMED = 10  # clips that cannot be read, in one message


class ClipFolder(Dataset[Example]):
    """Clips from files, with labels from a table.

    The table is a CSV with a header, for example:

        file,animal,place
        one.mp4,cat,indoors
        more/two.mp4,dog,

    `file` holds paths that start at the table's folder. Every other column is a label. An empty
    cell means that nobody knows. Spaces around a cell do not count.

    All clips are decoded once at the beginning. Those that cannot be read are left out, and a
    warning names them. Later a clip is decoded whenever it is asked for, so memory holds none.

    Args:
        table: path of the CSV, in UTF-8.
        duration: of each clip in seconds, from the beginning of its file. A shorter file goes on as
            in a player: the last picture stays, and there is silence.
        size: (height, width) in pixels, or one number for both. Pictures are scaled to cover them
            and their centre is kept.
        fps: frames per second.
        sample_rate: in Hz.
        classes: for a test folder, those of the training folder: `training.classes`. By default
            they are the values in the table, whether or not their clips can be read.
        progress: show a bar.

    Attributes:
        files: the clips that can be read, as the table writes them.
        broken: the clips that cannot → the reason.
        classes: label → its values, class 0 first: sorted as numbers where all are whole, otherwise
            as text.
        labels: label → how many classes it has.

    Raises:
        FileNotFoundError: there is no such table.
        TypeError: an argument is of another type.
        ValueError: an argument is out of range; the table is not as above or has a clip twice; a
            label has a single value, or one that is not in `classes`; or no clip can be read.
    """

    def __init__(
        self,
        table: str | os.PathLike[str],
        *,
        duration: float,
        size: int | tuple[int, int],
        fps: float,
        sample_rate: int,
        classes: Mapping[str, Sequence[str]] | None = None,
        progress: bool = True,
    ) -> None:
        self._frames, self._samples = _check_arguments(duration, size, fps, sample_rate)
        self._load = partial(
            load_clip, duration=duration, size=size, fps=fps, sample_rate=sample_rate
        )
        path = check_table(table)
        names, rows = read_table(path)
        self.classes = (
            classes_in(path, names, rows) if classes is None else classes_given(classes, names)
        )
        self.labels = {name: len(values) for name, values in self.classes.items()}
        labels = numbers_of(path, self.classes, rows)

        from tqdm.auto import tqdm  # not before it is needed: in a notebook it loads ipywidgets

        self.broken: dict[str, str] = {}
        self._clips: list[tuple[Path, dict[str, int]]] = []
        bar = tqdm(rows, unit="clip", disable=not progress)
        for row, numbers in zip(bar, labels, strict=True):
            file = path.parent / row.file
            try:
                self._load(file)
            except FileNotFoundError:
                self.broken[row.file] = f"no file at {brief(str(file))}"
            except ValueError as error:
                self.broken[row.file] = str(error).removeprefix("load_clip: ")
            else:
                self._clips.append((file, numbers))
        self.files = tuple(row.file for row in rows if row.file not in self.broken)
        if self.broken:
            named = islice(self.broken.items(), MOST_NAMED)
            text = ", ".join(f"{brief(file)} ({reason})" for file, reason in named)
            more = len(self.broken) - MOST_NAMED
            text += f" and {more} more" if more > 0 else ""
            if not self._clips:
                raise ValueError(
                    f"ClipFolder: none of {len(rows)} clips can be read, wanted one at least: "
                    f"{text}; paths start at the table's folder"
                )
            skipped = f"skipped {len(self.broken)} of {len(rows)} clips"
            warnings.warn(f"ClipFolder: {skipped}: {text}; see .broken", stacklevel=2)

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, clip: int) -> Example:
        """Decode a clip.

        Returns:
            `audio` of round(duration · sample_rate) samples and `video` of round(duration · fps)
            frames, at least one of each: shapes (samples,) and (3, frames, height, width). `audio`
            is None where there is no sound, `video` where there are no pictures.

        Raises:
            IndexError: there are not so many clips.
            RuntimeError: the clip could be read at the beginning and no longer can.
        """
        if not -len(self) <= clip < len(self):
            raise IndexError(f"ClipFolder: there is no clip {clip}; give one below {len(self)}")
        file, labels = self._clips[clip]
        try:
            video, audio, *_ = self._load(file)
        except (FileNotFoundError, ValueError) as error:
            raise RuntimeError(
                f"ClipFolder: {str(file)!r} could be read before and no longer can ({error}); "
                "leave the files as they are, or make the ClipFolder again"
            ) from error
        if audio is not None:
            audio = pad(audio, (0, self._samples - len(audio)))
        return Example(audio, None if video is None else _stay(video, self._frames), dict(labels))


def _stay(video: Float[Tensor, "3 t y x"], frames: int) -> Float[Tensor, "3 {frames} y x"]:
    """As many frames, the last one again where there are fewer."""
    last = video.shape[1] - 1
    return video[:, [min(frame, last) for frame in range(frames)]] if last + 1 < frames else video


def _check_arguments(duration: Any, size: Any, fps: Any, sample_rate: Any) -> tuple[int, int]:
    """Frames and samples of a clip; refuse what would make every clip look broken."""
    given = {"duration": duration, "size": size, "fps": fps, "sample_rate": sample_rate}
    for name, value in given.items():
        if value is None:
            raise TypeError(
                f"ClipFolder: {name} is None, wanted a number; a batch holds clips of one kind"
            )
    _, (height, width), _, _ = check_wanted(**given)
    frames, samples = max(1, round(duration * fps)), max(1, round(duration * sample_rate))
    # load_clip counts what a file has, but a short one is filled up here.
    if 4 * max(3 * frames * height * width, samples) > MOST_BYTES:
        raise ValueError(
            f"ClipFolder: {frames} frames of {height} × {width} pixels and {samples} samples take "
            f"more than {MOST_BYTES / 2**30:g} GiB; choose a shorter duration or less of the others"
        )
    return frames, samples

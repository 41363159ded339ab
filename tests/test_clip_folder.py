"""A user's own clips: what comes back, which clips are left out, and which tables are refused."""

import csv
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clips import scene
from clips_damage import damaged
from torch.utils.data import DataLoader

from avlib.clip_folder import ClipFolder
from avlib.data import Clip, load_clip, save_clip
from avlib.examples import UNKNOWN, Batch, collate
from avlib.world import LABELS, World, export

WORLD = World(24)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of all clips of the world."""
    return export(WORLD, tmp_path_factory.mktemp("exported"), scale=2)


@pytest.fixture
def write(exported: Path, tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Write a table into a folder with three clips, a.mp4, b.mp4 and c.mp4."""
    for name, number in zip("abc", range(3), strict=True):
        shutil.copy(exported.parent / f"{number:05}.mp4", tmp_path / f"{name}.mp4")

    def to_file(table: str | bytes) -> Path:
        path = tmp_path / "labels.csv"
        path.write_bytes(table.encode() if isinstance(table, str) else table)
        return path

    return to_file


def make(table: Path, **changes: object) -> ClipFolder:
    settings = {"duration": 1.0, "size": 16, "fps": 8.0, "sample_rate": 8000, "progress": False}
    return ClipFolder(table, **{**settings, **changes})


def label(folder: ClipFolder, name: str) -> list[int]:
    return [example.labels[name] for example in folder]


TWO = "file,kind\na.mp4,x\nb.mp4,y\n"


# What comes back


def test_labels_are_those_of_the_world(exported: Path) -> None:
    folder = make(exported)
    assert folder.labels == LABELS
    assert folder.files == tuple(f"{n:05}.mp4" for n in range(24))
    assert folder.broken == {}
    for name, values in WORLD.labels.items():
        assert label(folder, name) == values.tolist()


def test_sights_and_sounds_are_those_of_the_world(exported: Path) -> None:
    folder = make(exported)
    video = torch.stack([example.video for example in folder])
    audio = torch.stack([example.audio for example in folder])
    truth = WORLD.video(torch.arange(24))
    assert video.shape == truth.shape
    assert (video - truth).abs().mean((1, 2, 3, 4)).max() < 0.03
    # No clip looks more like another one, nor sounds so.
    distance = (video[:, None] - truth).abs().mean((2, 3, 4, 5))
    assert distance.argmin(1).tolist() == list(range(24))
    alike = torch.corrcoef(torch.cat([audio, WORLD.audio(torch.arange(24))]))[:24, 24:]
    assert alike.diag().min() > 0.99
    assert alike.argmax(1).tolist() == list(range(24))


def test_a_clip_is_what_load_clip_gives(write: Callable[..., Path]) -> None:
    how = {"duration": 0.5, "size": (10, 12), "fps": 12.5, "sample_rate": 11_025}
    path = write(TWO)
    example = make(path, **how)[1]
    clip = load_clip(path.parent / "b.mp4", **how)
    assert example.video.shape == (3, 6, 10, 12)
    assert example.audio.shape == (5512,)
    assert torch.equal(example.video, clip.video)
    assert torch.equal(example.audio, clip.audio)


@pytest.mark.parametrize(
    ("duration", "frames", "samples"), [(1.3, 13, 10_400), (3.0, 30, 24_000), (1.04, 10, 8320)]
)
def test_after_its_end_a_clip_is_still_and_silent(
    write: Callable[..., Path], duration: float, frames: int, samples: int
) -> None:
    path = write(TWO)
    example = make(path, duration=duration, fps=10.0)[0]
    clip = load_clip(path.parent / "a.mp4", size=16, fps=10.0, sample_rate=8000)
    assert clip.video.shape[1] == 10
    assert len(clip.audio) == 8000
    assert example.video.shape == (3, frames, 16, 16)
    assert example.audio.shape == (samples,)
    assert torch.equal(example.video[:, :10], clip.video)
    assert (example.video[:, 10:] == clip.video[:, -1:]).all()
    assert torch.equal(example.audio[:8000], clip.audio)
    assert (example.audio[8000:] == 0).all()


def test_sights_and_sounds_end_each_in_their_own_time(write: Callable[..., Path]) -> None:
    path = write(TWO)
    clip = scene(1.0)
    save_clip(path.parent / "a.mp4", clip._replace(video=clip.video[:, :6]))
    save_clip(path.parent / "b.mp4", clip._replace(audio=clip.audio[:6000]))
    for example, frames, samples in zip(make(path, fps=16.0), (6, 16), (8000, 3000), strict=True):
        assert example.video.shape == (3, 16, 16, 16)
        assert example.audio.shape == (8000,)
        moved = example.video.diff(dim=1).abs().amax((0, 2, 3)) > 0
        assert moved.nonzero().max() == frames - 2
        assert example.audio.nonzero().max() < samples
        assert example.audio[samples - 10 : samples].abs().max() > 0


def test_there_is_at_least_one_frame_and_one_sample(write: Callable[..., Path]) -> None:
    example = make(write(TWO), duration=1e-5)[0]
    assert example.video.shape == (3, 1, 16, 16)
    assert example.audio.shape == (1,)


def test_clips_of_one_modality_have_none_of_the_other(write: Callable[..., Path]) -> None:
    path = write(TWO)
    clip = scene(0.5)
    save_clip(path.parent / "a.mp4", Clip(None, clip.audio, None, clip.sample_rate))
    save_clip(path.parent / "b.mp4", Clip(clip.video, None, clip.fps, None))
    heard, seen = make(path)
    assert heard.video is None
    assert heard.audio.shape == (8000,)
    assert seen.audio is None
    assert seen.video.shape == (3, 8, 16, 16)
    batch = collate([heard, seen])
    assert batch.has("audio").tolist() == [True, False]
    assert batch.has("video").tolist() == [False, True]


def test_workers_give_the_same_clips(exported: Path) -> None:
    folder = make(exported)
    loader = DataLoader(folder, batch_size=5, num_workers=2, collate_fn=collate)
    batches: list[Batch] = list(loader)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 4]
    video = torch.cat([batch.inputs["video"] for batch in batches])
    assert torch.equal(video, torch.stack([example.video for example in folder]))
    for name, values in WORLD.labels.items():
        assert torch.equal(torch.cat([batch.labels[name] for batch in batches]), values)


def test_a_pickled_folder_gives_the_same_clips(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(TWO)
    monkeypatch.chdir(path.parent)
    folder = make(Path(path.name))
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(folder))
    assert again.labels == folder.labels
    assert torch.equal(again[1].video, folder[1].video)


def test_clips_are_decoded_whenever_they_are_asked_for(write: Callable[..., Path]) -> None:
    path = write(TWO)
    folder = make(path)
    before = folder[0]
    before.labels["kind"] = 7
    (path.parent / "b.mp4").replace(path.parent / "a.mp4")
    assert not torch.equal(folder[0].video, before.video)
    assert folder[0].labels == {"kind": 0}


def test_indices_count_from_either_end(write: Callable[..., Path]) -> None:
    folder = make(write(TWO))
    assert folder[-1].labels == folder[1].labels == {"kind": 1}
    assert folder[-2].labels == folder[0].labels == {"kind": 0}
    assert torch.equal(folder[-1].video, folder[1].video)
    for clip in (2, -3):
        with pytest.raises(IndexError, match=rf"there is no clip {clip}; give one below 2"):
            folder[clip]


def test_a_bar_is_shown_unless_it_is_not_wanted(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make(write(TWO))
    assert capsys.readouterr().err == ""
    make(write(TWO), progress=True)
    assert "2/2" in capsys.readouterr().err


# What cannot be read


def test_clips_that_cannot_be_read_are_named_skipped_and_counted(
    write: Callable[..., Path],
) -> None:
    files = ["cut", "a", "noise", "text", "b", "missing", "empty", "folder", "c"]
    path = write("file,n\n" + "".join(f"{name}.mp4,{n}\n" for n, name in enumerate(files)))
    folder = path.parent
    content = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) * 2 // 3])
    (folder / "noise.mp4").write_bytes(torch.randint(256, (5000,)).byte().numpy().tobytes())
    (folder / "text.mp4").write_text("I am no film.\n" * 50)
    (folder / "empty.mp4").touch()
    (folder / "folder.mp4").mkdir()
    with pytest.warns(UserWarning, match=r"^ClipFolder: skipped 6 of 9 clips: 'cut\.mp4' ") as told:
        clips = make(path)
    (text,) = [str(warning.message) for warning in told]
    assert text.endswith("'folder.mp4' ('" + str(folder / "folder.mp4") + "' is a folder, wanted a "
                         "video or sound file); see .broken")  # fmt: skip
    reasons = {
        "cut.mp4": "damaged or cut off",
        "noise.mp4": "cannot be decoded",
        "text.mp4": "cannot be decoded",
        "missing.mp4": f"no file at '{folder / 'missing.mp4'}'",
        "empty.mp4": "is empty",
        "folder.mp4": "is a folder",
    }
    assert clips.broken.keys() == reasons.keys()
    for file, reason in reasons.items():
        assert reason in clips.broken[file]
        assert f"{file!r} ({clips.broken[file]})" in text
    assert len(clips) == 3
    assert clips.files == ("a.mp4", "b.mp4", "c.mp4")
    # A label goes with its clip, and values of broken clips are classes too.
    assert label(clips, "n") == [1, 4, 8]
    assert clips.labels == {"n": 9}
    assert torch.equal(clips[1].video, make(write(TWO))[1].video)


def test_of_many_broken_clips_ten_are_named(write: Callable[..., Path]) -> None:
    lost = "".join(f"lost{n:02},x\n" for n in range(13))
    with pytest.warns(UserWarning, match=r"13 of 14 clips: .* and 3 more; see .broken") as told:
        folder = make(write(f"file,kind\n{lost}a.mp4,y\n"))
    assert "'lost09' (" in str(told[0].message)
    assert "'lost10' (" not in str(told[0].message)
    assert len(folder.broken) == 13


def test_a_folder_in_which_nothing_can_be_read_is_refused(write: Callable[..., Path]) -> None:
    none = r"^ClipFolder: none of 2 clips can be read, wanted one at least: 'd' .*; paths start at"
    with pytest.raises(ValueError, match=none):
        make(write("file,kind\nd,x\ne,y\n"))


def test_of_damaged_copies_each_is_a_clip_or_broken(write: Callable[..., Path]) -> None:
    content = (write(TWO).parent / "a.mp4").read_bytes()
    path = write("file,kind\n" + "".join(f"{n}.mp4,{n % 2}\n" for n in range(60)))
    for n in range(60):
        (path.parent / f"{n}.mp4").write_bytes(damaged(content, n))
    with pytest.warns(UserWarning, match=r"skipped \d+ of 60 clips"):
        folder = make(path)
    assert len(folder) + len(folder.broken) == 60
    assert 5 < len(folder) < 55
    for file, example in zip(folder.files, folder, strict=True):
        assert example.labels == {"kind": int(Path(file).stem) % 2}
        assert example.video is None or example.video.shape == (3, 8, 16, 16)
        assert example.audio is None or example.audio.shape == (8000,)


def test_a_clip_that_breaks_later_is_named(write: Callable[..., Path]) -> None:
    path = write(TWO)
    folder = make(path)
    (path.parent / "a.mp4").write_text("something else")
    (path.parent / "b.mp4").unlink()
    with pytest.raises(RuntimeError, match=r"a\.mp4' could be read before .*cannot be decoded"):
        folder[0]
    with pytest.raises(RuntimeError, match=r"b\.mp4' could be read before .*; leave the files"):
        folder[1]


# Tables


def test_classes_are_sorted_as_numbers_or_as_text(write: Callable[..., Path]) -> None:
    folder = make(write("file,number,text\na.mp4,10,10\nb.mp4,-2,x\nc.mp4,9,9\n"))
    assert folder.classes == {"number": ("-2", "9", "10"), "text": ("10", "9", "x")}
    assert label(folder, "number") == [2, 0, 1]
    assert label(folder, "text") == [0, 2, 1]


def test_an_empty_cell_is_unknown(write: Callable[..., Path]) -> None:
    folder = make(write("file,kind,place\na.mp4,x,\nb.mp4,y,in\nc.mp4, ,out\n"))
    assert label(folder, "kind") == [0, 1, UNKNOWN]
    assert label(folder, "place") == [UNKNOWN, 0, 1]
    assert folder.labels == {"kind": 2, "place": 2}


def test_tables_as_programs_write_them_are_read(write: Callable[..., Path]) -> None:
    path = write("")
    (path.parent / "more").mkdir()
    (path.parent / "b.mp4").rename(path.parent / "more" / "b, ü.mp4")
    table = (
        '\ufeffkind , file\r\n\r\n"x, ""y""" , a.mp4\r\n'.replace(" ,", ",")
        + f'"two\r\nlines","more/b, ü.mp4"\r\nx,{path.parent / "c.mp4"}'
    )
    folder = make(write(table))
    assert folder.files == ("a.mp4", "more/b, ü.mp4", str(path.parent / "c.mp4"))
    assert folder.classes == {"kind": ("two\r\nlines", "x", 'x, "y"')}
    assert label(folder, "kind") == [2, 0, 1]


def test_a_table_of_thousands_of_columns_is_read(write: Callable[..., Path]) -> None:
    names = [f"label {n}" for n in range(20_000)]
    path = write("")
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", *names])
        table.writerow(["a.mp4", *("x" for _ in names)])
        table.writerow(["b.mp4", *("y" for _ in names)])
    assert label(make(path), "label 19999") == [0, 1]


# For each table, what the message says in its order: where, what arrived, what was wanted, remedy.
TABLES = {
    "empty": ("", r"line 1 of '.*labels.csv' has the columns \[\], wanted one named 'file'; add"),
    "no rows": ("\nfile,kind\n", r"line 2 of .* is a header without rows, wanted one for each"),
    "no header": ("a.mp4,x\n", r"line 1 .* has the columns \['a.mp4', 'x'\], wanted .*; add a hea"),
    "semicolons": ("file;kind\na.mp4;x\n", r"columns \['file;kind'\].* put commas between columns"),
    "no labels": ("file\na.mp4\n", r"line 1 .* 'file' alone, wanted labels too; add a column for"),
    "no name": ("file,,k\na.mp4,x,y\n", r"line 1 .* has no name for column 2, wanted .*; name or"),
    "same names": ("file,k, k\na.mp4,x,y\n", r"line 1 .* has 2 columns 'k', wanted different nam"),
    "two files": ("file,k,file\na.mp4,x,y\n", r"has 2 columns 'file', wanted .*; rename or delete"),
    "too few cells": (TWO + "c.mp4\n", r"line 4 .* has 1 cells, wanted 2, for \['file', 'kind'\]"),
    "too many cells": (TWO + "\nc.mp4,x,\n", r"line 5 .* has 3 cells, wanted 2, .*; leave empty"),
    "after long cells": ('file,k\na.mp4,"x\n\ny"\n\nb.mp4\n', r"line 6 .* has 1 cells, wanted 2"),
    "with long cells": ('file,k\na.mp4,"x\n\ny",z\n', r"line 2 .* has 3 cells, wanted 2"),
    "old Mac": ("file,k\ra.mp4,x\rb.mp4\r", r"line 3 .* has 1 cells, wanted 2"),
    "no file": ("file,k\na.mp4,x\n ,y\n", r"line 3 .* names no file, wanted the path of a clip; f"),
    "twice": (TWO + "./a.mp4,y\n", r"line 4 .* has './a.mp4' again, wanted once; it is on line 2"),
    "one value": ("file,k\na.mp4,x\nb.mp4,x\n", r"column 'k' of .*csv' has the values \['x'\], wa"),
    "no values": (
        "file,k\na.mp4,\nb.mp4,\n",
        r"values \[\], wanted two or more .*; delete the col",
    ),
    "Latin-1": ("file,k\na.mp4,\xe9\n".encode("latin1"), r"line 2 .* has the byte 0xe9, wanted t"),
    "UTF-16": (TWO.encode("utf-16"), r"line 1 .* has the byte 0xff, wanted text in UTF-8; save"),
    "UTF-16 without a mark": (TWO.encode("utf-16le"), r"line 1 .* has the byte 0x00, wanted text"),
    "NUL": ("file,k\na.mp4,x\nb\0.mp4,y\n", r"line 3 .* has the byte 0x00, wanted text in UTF-8"),
    "open quote": (
        'file,k\na.mp4,"x\nb.mp4,y\n',
        r"line 2 .* cannot be read \(unexpected end of d",
    ),
    "quote within": ('file,k\na.mp4,"x"y\n', r"line 2 .* cannot be read .*, wanted cells with com"),
    "endless cell": ("file,k\na.mp4," + "x" * 200_000, r"line 2 .* \(field larger than field limi"),
    "endless columns": (",".join(["k"] * 99_999), r"has the columns \['k', .*….*, 'k'\], wanted"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_wrong_table_is_refused(write: Callable[..., Path], name: str) -> None:
    table, message = TABLES[name]
    with pytest.raises(ValueError, match=message) as raised:
        make(write(table))
    assert str(raised.value).startswith("ClipFolder: ")
    assert len(str(raised.value)) < 1000


def test_a_film_in_place_of_a_table_is_refused(exported: Path) -> None:
    with pytest.raises(ValueError, match=r"^ClipFolder: line \d+ of '.*0.mp4' has the byte 0x"):
        make(exported.parent / "00000.mp4")


def test_hostile_names_of_files_are_broken_clips(write: Callable[..., Path]) -> None:
    names = [
        "x" * 100_000,
        "../../../../../../proc/self/mem",
        "http://example.org/a.mp4",
        "a.mp4/b",
    ]
    table = "file,k\na.mp4,x\n" + "".join(f"{name},y\n" for name in names)
    with pytest.warns(UserWarning, match=r"skipped 4 of 5 clips: 'xxx.*…") as told:
        folder = make(write(table))
    assert list(folder.broken) == names
    assert len(str(told[0].message)) < 3000


# Classes of a training folder


def test_a_test_folder_has_the_classes_of_its_training_folder(write: Callable[..., Path]) -> None:
    training = make(write("file,kind,n\na.mp4,x,1\nb.mp4,y,2\nc.mp4,z,3\n"))
    test = make(write("n,file,kind\n3,a.mp4,z\n3,b.mp4,\n"), classes=training.classes)
    assert test.classes == training.classes
    assert test.labels == training.labels
    assert [list(example.labels) for example in test] == [["kind", "n"]] * 2
    assert label(test, "kind") == [2, UNKNOWN]
    assert label(test, "n") == [2, 2]


def test_a_part_of_the_world_keeps_its_numbers(exported: Path, tmp_path: Path) -> None:
    classes = {name: [str(value) for value in range(count)] for name, count in LABELS.items()}
    part = export(WORLD, tmp_path, [7, 3], scale=2)
    folder = make(part, classes=classes)
    assert folder.labels == LABELS
    assert [example.labels for example in folder] == [WORLD[7].labels, WORLD[3].labels]


def test_a_value_that_training_lacked_is_refused(write: Callable[..., Path]) -> None:
    path = write("file,kind\na.mp4,x\n\nb.mp4,w\n")
    unknown = r"^ClipFolder: line 4 of .* has 'w' for 'kind', wanted one of \('x', 'y'\); correct"
    with pytest.raises(ValueError, match=unknown):
        make(path, classes={"kind": ("x", "y")})


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"kind": "xy"}, r"classes is {'kind': 'xy'}, wanted two or more different texts for each"),
        ({"kind": ("x",)}, "classes is .*; give classes=training.classes"),
        ({"kind": ("x", "x")}, "classes is .*, wanted two or more different texts"),
        ({"kind": (0, 1)}, "classes is .*, wanted two or more different texts"),
        ({"kind": 2}, "classes is .*, wanted two or more different texts"),
        (["x", "y"], r"classes is \['x', 'y'\], wanted two or more"),
        ({}, r"the table has the labels \['kind'\], wanted those of classes, \[\]; delete a col"),
        ({"art": ("x", "y")}, r"the labels \['kind'\], wanted those of classes, \['art'\]; delete"),
        ({"kind": ("x", "y"), "n": ("1", "2")}, r"classes, \['kind', 'n'\]; .* or add one with em"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_wrong_classes_are_refused(
    write: Callable[..., Path], classes: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(write(TWO), classes=classes)


# Arguments


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"size": 0}, ValueError, "load_clip: size: got 0; give a positive whole number"),
        ({"size": 10_000}, ValueError, "load_clip: size is 10000; give at most 8192 pixels a side"),
        ({"size": "16"}, ValueError, "load_clip: size: got '16'"),
        ({"size": None}, TypeError, "ClipFolder: size is None, wanted a number; a batch holds"),
        ({"duration": 0.0}, ValueError, "load_clip: duration is 0.0, wanted seconds above 0"),
        ({"duration": float("nan")}, ValueError, "load_clip: duration is nan"),
        ({"duration": None}, TypeError, "ClipFolder: duration is None, wanted a number"),
        ({"fps": -1.0}, ValueError, "load_clip: fps is -1.0, wanted 0.001 to"),
        ({"fps": "8"}, TypeError, "load_clip: fps is '8', wanted a number of frames per second"),
        ({"fps": None}, TypeError, "ClipFolder: fps is None, wanted a number"),
        ({"sample_rate": 999}, ValueError, "load_clip: sample_rate is 999, wanted 1000 to"),
        ({"sample_rate": 8e3}, TypeError, "load_clip: sample_rate is 8000.0, wanted a whole num"),
        ({"sample_rate": None}, TypeError, "ClipFolder: sample_rate is None, wanted a number"),
        (
            {"duration": 60.0, "size": 2048},
            ValueError,
            "480 frames of 2048 × 2048 .* 8 GiB; choose",
        ),
        (
            {"duration": 3e5, "fps": 0.01},
            ValueError,
            "ClipFolder: 3000 frames of 16 × 16 pixels and 2400000000 samples take more than 8 GiB",
        ),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_a_wrong_argument_is_refused_and_no_clip_called_broken(
    write: Callable[..., Path], changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(write(TWO), **changes)


@pytest.mark.usefixtures("no_shape_checks")
def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    for table, error, message in [
        (
            tmp_path / "x.csv",
            FileNotFoundError,
            r"x.csv' is no file, wanted a CSV .*; relative pat",
        ),
        (tmp_path, FileNotFoundError, r"' is a folder, wanted a CSV such as 'clips/labels.csv'"),
        ("a\0b", FileNotFoundError, r"'a\\x00b' is no file, wanted a CSV"),
        (7, TypeError, r"ClipFolder: table is of type int, wanted a str or a Path"),
    ]:
        with pytest.raises(error, match=message):
            make(table)

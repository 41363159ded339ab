"""A table of labels: a CSV that names clips and says what is to be seen and heard in them."""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from avlib.examples import UNKNOWN

NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what a file that is no UTF-8 gives, see `read_table`


class Row(NamedTuple):
    """A clip, its line in the table as an editor counts, and what stands in its cells."""

    line: int
    file: str
    values: dict[str, str]


def brief(value: Any) -> str:
    """A value in a message; in a hostile table it may be endless."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-99:]}"


def check_table(table: Any) -> Path:
    """The table's path; refuse what is no file."""
    if not isinstance(table, str | os.PathLike):
        raise TypeError(
            f"ClipFolder: table is of type {type(table).__name__}, wanted a str or a Path"
        )
    path = Path(table).absolute()  # the working directory may change
    if not path.is_file():
        raise FileNotFoundError(
            f"ClipFolder: {str(table)!r} is {'a folder' if path.is_dir() else 'no file'}, wanted a "
            f"CSV such as 'clips/labels.csv'; relative paths start at {str(Path.cwd())!r}"
        )
    return path


def _fault(path: Path, line: int, text: str) -> ValueError:
    return ValueError(f"ClipFolder: line {line} of {str(path)!r} {text}")


def read_table(path: Path) -> tuple[list[str], list[Row]]:
    """The names of the labels, and the rows."""
    rows: list[Row] = []
    seen: dict[Path, int] = {}
    # Bytes that are not UTF-8 become surrogates, so that the line can be named.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        table = _cells(path, file)
        line, header = next(table, (1, []))
        if wrong := _wrong_header(header):
            raise _fault(path, line, wrong)
        for line, cells in table:
            wrong = None
            if len(cells) != len(header):
                wrong = (
                    f"has {len(cells)} cells, wanted {len(header)}, for {brief(header)}; leave "
                    "empty what nobody knows, put quotes around a comma"
                )
            else:
                values = dict(zip(header, cells, strict=True))
                clip = values.pop("file")
                first = seen.setdefault(Path(clip), line)
                if not clip:
                    wrong = "names no file, wanted the path of a clip; fill it in or delete the row"
                elif first != line:
                    wrong = f"has {brief(clip)} again, wanted once; it is on line {first} already"
            if wrong:
                raise _fault(path, line, wrong)
            rows.append(Row(line, clip, values))
    if not rows:
        raise _fault(path, line, "is a header without rows, wanted one for each clip; add some")
    return [name for name in header if name != "file"], rows


def _cells(path: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, and on which line they begin."""
    reader = csv.reader(_text(path, file), strict=True)
    before = 0
    try:
        for cells in reader:
            if cells:
                yield before + 1, [cell.strip() for cell in cells]
            before = reader.line_num  # a cell in quotes may have many lines
    except csv.Error as error:
        wrong = f"cannot be read ({error}), wanted cells with commas between; save the CSV again"
        raise _fault(path, before + 1, wrong) from error


def _text(path: Path, file: TextIO) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if found := NO_TEXT.search(line):  # the csv module would let it through
            byte = f"0x{ord(found[0]) & 0xFF:02x}"
            wrong = f"has the byte {byte}, wanted text in UTF-8; save the table as a CSV in UTF-8"
            raise _fault(path, number, wrong)
        yield line


def _wrong_header(header: list[str]) -> str | None:
    if "file" not in header:
        found = f"has the columns {brief(header)}, wanted one named 'file'"
        return f"{found}; add a header, put commas between columns"
    if len(header) == 1:
        return "has the column 'file' alone, wanted labels too; add a column for each label"
    if "" in header:
        number = header.index("") + 1
        return f"has no name for column {number}, wanted a label's; name or delete the column"
    ((name, times),) = Counter(header).most_common(1)
    if times > 1:
        return f"has {times} columns {brief(name)}, wanted different names; rename or delete one"
    return None


def classes_in(path: Path, names: Sequence[str], rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """The classes of each label, from the table."""
    classes = {}
    for name in names:
        values = sorted({row.values[name] for row in rows} - {""})
        if len(values) < 2:
            raise ValueError(
                f"ClipFolder: the column {brief(name)} of {str(path)!r} has the values "
                f"{brief(values)}, wanted two or more to tell apart; delete the column, or for a "
                "test folder give classes=training.classes"
            )
        with suppress(ValueError):  # not all are whole numbers
            values = sorted(values, key=int)
        classes[name] = tuple(values)
    return classes


def classes_given(classes: Any, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The classes of each label, from another folder."""
    if not isinstance(classes, Mapping) or not all(map(_different, classes.values())):
        raise ValueError(
            f"ClipFolder: classes is {brief(classes)}, wanted two or more different texts "
            "for each label; give classes=training.classes"
        )
    if set(classes) != set(names):
        raise ValueError(
            f"ClipFolder: the table has the labels {brief(names)}, wanted those of classes, "
            f"{brief(list(classes))}; delete a column, or add one with empty cells"
        )
    return {name: tuple(values) for name, values in classes.items()}


def _different(values: Any) -> bool:
    """Whether they are several texts and none of them twice."""
    texts = isinstance(values, tuple | list) and all(isinstance(text, str) for text in values)
    return texts and len(set(values)) == len(values) > 1


def numbers_of(
    path: Path, classes: Mapping[str, Sequence[str]], rows: Sequence[Row]
) -> list[dict[str, int]]:
    """The class of each label in each row."""
    numbers = {
        name: {"": UNKNOWN} | {value: number for number, value in enumerate(values)}
        for name, values in classes.items()
    }
    for row in rows:
        for name, value in row.values.items():
            if value not in numbers[name]:
                wanted = f"wanted one of {brief(classes[name])}; correct it or leave it empty"
                raise _fault(path, row.line, f"has {brief(value)} for {brief(name)}, {wanted}")
    return [{name: numbers[name][row.values[name]] for name in classes} for row in rows]

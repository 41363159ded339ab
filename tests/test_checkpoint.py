"""Files of tensors: bit for bit what was saved, whole or not at all, and safe to open."""

import json
import os
import pickle
import random
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from avlib.checkpoint import load_tensors, save_tensors

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint64),
]
FACTS = {"step": 3, "settings": {"rate": 0.1, "names": ["a", "ü"], "none": None}, "π": "“\n"}
TENSORS = {
    "weight": torch.arange(6.0).view(2, 3),
    "random.0.cpu": torch.randint(256, (40,), dtype=torch.uint8),
    "step": torch.tensor(3.0),
}


def bits(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def equal(one, other):
    """Whether all tensors are the same bit for bit."""
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype
        and one[n].shape == other[n].shape
        and torch.equal(bits(one[n]), bits(other[n]))
        for n in one
    )


def names_in(folder):
    return [file.name for file in folder.iterdir()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.safetensors"


# There and back


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3), (2, 0, 3), (1, 2, 3, 4)], ids=str)
def test_every_bit_comes_back(path, dtype, shape):
    size = torch.empty((), dtype=dtype).itemsize
    noise = torch.randint(256, (*shape, size), dtype=torch.uint8)  # NaN of every kind among it
    if dtype == torch.bool:
        noise = noise % 2
    tensor = noise.view(dtype)[..., 0]
    save_tensors(path, {"a": tensor}, {})
    tensors, facts = load_tensors(path)
    assert equal(tensors, {"a": tensor})
    assert facts == {}


def test_facts_and_names_come_back(path):
    tensors = {"": torch.ones(1), "a.b (c)": torch.zeros(2), "ü\n\"'": torch.arange(3)}
    save_tensors(str(path), tensors, FACTS)
    found, facts = load_tensors(str(path))
    assert equal(found, tensors)
    assert facts == FACTS
    save_tensors(path, {}, {"inf": float("inf")})
    assert load_tensors(path) == ({}, {"inf": float("inf")})


def test_tensors_may_lie_in_memory_as_they_like(path):
    base = torch.arange(24.0).view(2, 3, 4)
    weight = torch.nn.Parameter(torch.ones(3))
    imaginary = torch.tensor([1 + 2j, 3 - 1j]).conj().imag
    tensors = {
        "tied": base,
        "again": base,
        "part": base[1],
        "turned": base.permute(2, 0, 1),
        "every other": base[..., ::2],
        "repeated": torch.ones(1).expand(4),
        "weight": weight,
        "negative": imaginary,
    }
    assert imaginary.is_neg()
    save_tensors(path, tensors, {})
    found, _ = load_tensors(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert not found["weight"].requires_grad


def test_a_second_file_takes_the_place_of_the_first(path):
    save_tensors(path, TENSORS, FACTS)
    first, _ = load_tensors(path)
    save_tensors(path, {"a": torch.zeros(1000)}, {"step": 4})
    assert load_tensors(path)[1] == {"step": 4}
    assert equal(first, TENSORS)  # what was read before is not touched
    assert names_in(path.parent) == [path.name]


def test_the_same_content_gives_the_same_bytes(path):
    save_tensors(path, TENSORS, FACTS)
    before = path.read_bytes()
    save_tensors(path, dict(reversed(TENSORS.items())), FACTS)
    assert path.read_bytes() == before


def test_a_relative_path_begins_at_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tensors("here", TENSORS, {})
    assert equal(load_tensors("here")[0], TENSORS)


def test_facts_without_a_checksum_can_be_read(path):
    save_file(TENSORS, path, {"facts": json.dumps(FACTS)})
    tensors, facts = load_tensors(path)
    assert equal(tensors, TENSORS)
    assert facts == FACTS


# Crashes


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace", "avlib.checkpoint.save"])
def test_a_crash_leaves_the_old_file_and_nothing_else(path, monkeypatch, where, error, there):
    if there:
        save_tensors(path, TENSORS, FACTS)
    names = names_in(path.parent)

    def crash(*_, **__):
        raise error

    monkeypatch.setattr(where, crash)
    with pytest.raises(type(error)):
        save_tensors(path, {"other": torch.ones(9)}, {"step": 4})
    monkeypatch.undo()
    assert names_in(path.parent) == names
    if there:
        tensors, facts = load_tensors(path)
        assert equal(tensors, TENSORS)
        assert facts == FACTS
    save_tensors(path, {"other": torch.ones(9)}, {"step": 4})
    assert load_tensors(path)[1] == {"step": 4}


def test_the_file_is_whole_and_on_disk_before_it_gets_its_name(path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace

    def sync(number):
        events.append(("sync", os.fstat(number).st_size))
        fsync(number)

    def rename(self, target):
        events.append(("rename", self.stat().st_size))
        return replace(self, target)

    monkeypatch.setattr("os.fsync", sync)
    monkeypatch.setattr("pathlib.Path.replace", rename)
    save_tensors(path, TENSORS, FACTS)
    assert events == [("sync", path.stat().st_size), ("rename", path.stat().st_size)]


def test_what_a_killed_process_left_is_written_over(path):
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(b"half" * 10_000)
    save_tensors(path, TENSORS, FACTS)
    assert equal(load_tensors(path)[0], TENSORS)
    assert not partial.exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no/where", FileNotFoundError, "save_tensors: no folder '.*/no'; make it first"),
        (".", IsADirectoryError, "save_tensors: '.*' is a folder; name a file in it"),
    ],
)
def test_a_place_where_no_file_can_be_is_refused(tmp_path, name, error, message):
    with pytest.raises(error, match=message):
        save_tensors(tmp_path / name, TENSORS, {})
    assert not names_in(tmp_path)


def test_a_folder_that_may_not_be_written_is_refused(path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # the superuser may write anywhere
    with pytest.raises(
        PermissionError, match=r"nothing may be written in .*; choose another folder"
    ):
        save_tensors(path, TENSORS, {})


# Damaged and hostile files


REFUSED = r"load_tensors: .* is damaged, cut off or no safetensors file .*; make or fetch it again"


def refuse(path, content, message=REFUSED):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_tensors(path)


@pytest.fixture
def content(path):
    """A file as bytes."""
    save_tensors(path, TENSORS, FACTS)
    return path.read_bytes()


def test_a_file_cut_off_anywhere_is_refused(path, content):
    for length in range(len(content)):
        refuse(path, content[:length])
    refuse(path, content + b"\0")


def test_a_file_with_one_changed_byte_is_refused_or_is_the_same(path, content):
    """The same, where it pads the header."""
    same = 0
    for place in range(len(content)):
        for change in (1, 0x20, 0x80):
            changed = bytearray(content)
            changed[place] ^= change
            path.write_bytes(changed)
            with suppress(ValueError):
                tensors, facts = load_tensors(path)
                same += 1
                assert equal(tensors, TENSORS)
                assert facts == FACTS
    assert same < 8


def test_damage_that_safetensors_does_not_see_is_refused(path, content):
    changed = bytearray(content)
    changed[-1] ^= 1
    refuse(path, bytes(changed), "the checksum differs")
    names = content.replace(b'"weight"', b'"weighs"')
    assert names != content
    refuse(path, names, "the checksum differs")
    refuse(path, content.replace(b'"F32"', b'"I32"'), "the checksum differs")
    refuse(path, content.replace(b"[2,3]", b"[3,2]"), "the checksum differs")


def test_blocks_of_garbage_are_refused(path, content):
    source = random.Random(0)
    for length in (0, 1, 7, 8, 9, 100, 5000):
        refuse(path, source.randbytes(length))
        refuse(path, bytes(length))
        refuse(path, b"\xff" * length)
    for _ in range(200):
        start = source.randrange(len(content) - 16)
        noise = source.randbytes(16)
        refuse(path, content[:start] + noise + content[start + 16 :], "load_tensors: ")


class Shell:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch '{self.proof}'",)


def test_a_pickle_is_refused_and_runs_nothing(path, tmp_path):
    proof = tmp_path / "proof"
    refuse(path, pickle.dumps(Shell(proof)))
    torch.save({"weight": torch.ones(3), "x": Shell(proof)}, path)
    refuse(path, path.read_bytes())
    np.savez(path.with_suffix(".npz"), weight=np.ones(3))
    refuse(path, path.with_suffix(".npz").read_bytes())
    assert not proof.exists()


def file_of(header, body=b"", length=None):
    """The bytes of a safetensors file with any header, as bytes or as what facts are added to."""
    if isinstance(header, dict):
        header = {**facts_of("{}"), **header}
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def facts_of(text):
    return {"__metadata__": {"facts": text}}


HUGE = 2**63
HOSTILE = {
    "a header longer than memory": file_of({}, length=HUGE),
    "a header longer than any file": file_of({}, length=2**64 - 1),
    "a header longer than this file": file_of({}, length=10**8),
    "a header of nothing": file_of(b""),
    "a header of zeros": file_of(bytes(100)),
    "a list as header": file_of([]),
    "a number as header": file_of(b"1"),
    "a text that is no UTF-8": file_of(b'{"\xff":1}'),
    "half a surrogate": file_of(b'{"\\ud800":{}}'),
    "deep JSON": file_of(b'{"a":' + b"[" * 200_000),
    "deep facts": file_of(facts_of("[" * 200_000)),
    "deep facts that end": file_of(facts_of("[" * 200_000 + "]" * 200_000)),
    "facts that are no JSON": file_of(facts_of("nope")),
    "facts that stop": file_of(facts_of('{"a": 1')),
    "facts of an endless number": file_of(facts_of('{"a":' + "9" * 100_000 + "}")),
    "facts that are a number": file_of({"__metadata__": {"facts": 1}}),
    "metadata that are a list": file_of({"__metadata__": []}),
    "metadata twice": file_of(b'{"__metadata__":{"facts":"{}"},"__metadata__":{"facts":"{}"}}'),
    "another checksum": file_of(facts_of("{}\ndeadbeef")),
    "two checksums": file_of(facts_of("{}\n00000000\n00000000")),
    "no facts": file_of(json.dumps({"a": tensor()}).encode(), bytes(4)),
    "other facts": file_of({"__metadata__": {"format": "pt"}, "a": tensor()}, bytes(4)),
    "a negative size": file_of({"a": tensor(shape=(-1,))}, bytes(4)),
    "a size that overflows": file_of({"a": tensor(shape=(2**62, 4))}, bytes(4)),
    "a size that no tensor has": file_of({"a": tensor(shape=(0, HUGE), offsets=(0, 0))}),
    "a size of nulls": file_of({"a": {**tensor(), "shape": None}}, bytes(4)),
    "an unknown type": file_of({"a": tensor("F31")}, bytes(4)),
    "a type that torch has not": file_of({"a": tensor("F6_E2M3", (4,), (0, 3))}, bytes(3)),
    "half a number": file_of({"a": tensor("F64")}, bytes(4)),
    "an end before its beginning": file_of({"a": tensor(offsets=(4, 0))}, bytes(4)),
    "an end behind the file": file_of({"a": tensor(shape=(9,), offsets=(0, 36))}, bytes(4)),
    "an offset that overflows": file_of({"a": tensor(offsets=(2**64 - 4, 2**64))}, bytes(4)),
    "two tensors in one place": file_of({"a": tensor(), "b": tensor()}, bytes(4)),
    "a name twice": file_of(
        b'{"__metadata__":{"facts":"{}"},"a":%b,"a":%b}'
        % tuple(json.dumps(tensor(offsets=(i, i + 4))).encode() for i in (0, 4)),
        bytes(8),
    ),
    "a hole": file_of({"a": tensor(offsets=(4, 8))}, bytes(8)),
    "a rest": file_of({"a": tensor()}, bytes(8)),
}


def test_the_frame_of_the_hostile_files_is_sound(path):
    path.write_bytes(file_of({"a": tensor()}, struct.pack("<f", 0.5)))
    assert load_tensors(path) == ({"a": torch.tensor([0.5])}, {})


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(path, content):
    refuse(path, content)


@pytest.mark.parametrize("facts", ["[]", "1", '"text"', "null", "[" + "1," * 1000 + "1]"])
def test_facts_that_are_no_mapping_are_refused(path, facts):
    message = r"the facts in .* are .{1,60}, wanted a mapping; it is no file of save_tensors$"
    refuse(path, file_of(facts_of(facts)), message)


def test_a_checksum_of_the_content_is_accepted(path):
    text = '{"a": 1}'
    crc = zlib.crc32(b"x torch.float32 (1,)", zlib.crc32(text.encode()))
    crc = zlib.crc32(struct.pack("<f", 0.5), crc)
    header = {**facts_of(f"{text}\n{crc:08x}"), "x": tensor()}
    path.write_bytes(file_of(header, struct.pack("<f", 0.5)))
    assert load_tensors(path) == ({"x": torch.tensor([0.5])}, {"a": 1})


def test_where_there_is_no_file_it_says_so(tmp_path):
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "a" / "b", ""):
        with pytest.raises(FileNotFoundError, match=r"load_tensors: no file at .*; check the path"):
            load_tensors(path)

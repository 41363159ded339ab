"""A thousand damaged copies: each gives a clip in its promised ranges or a clear error."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from clips import flashes, scene, write_clip

pytest.importorskip("resource")  # the peak of memory is read where the system tells it
SECONDS = 100  # for what takes eight at most: one copy may be slow, none may hang


@pytest.mark.parametrize(
    ("suffix", "copies"), [("mp4", 1000), ("mkv", 250), ("webm", 250), ("gif", 250), ("wav", 250)]
)
def test_a_damaged_copy_gives_a_clip_or_a_clear_error(
    tmp_path: Path, suffix: str, copies: int
) -> None:
    codecs, rate, settings = {
        "mp4": (("libx264", "aac"), 16_000, {"g": "8"}),
        "mkv": (("mjpeg", "flac"), 16_000, {}),
        "webm": (("libvpx-vp9", "libopus"), 48_000, {"cpu-used": "8", "g": "8"}),
        "gif": (("gif", None), 16_000, {}),
        "wav": ((None, "pcm_f32le"), 8000, {}),
    }[suffix]
    path = tmp_path / f"a.{suffix}"
    clip = scene(1.0)._replace(audio=flashes(1.0, [0.3], rate=rate).audio, sample_rate=rate)
    pix_fmt = {"mkv": "yuvj420p", "gif": "rgb8"}.get(suffix, "yuv420p")
    write_clip(path, clip, codecs, pix_fmt=pix_fmt, settings=settings)
    helper = Path(__file__).with_name("clips_damage.py")
    command = [sys.executable, str(helper), str(path), "0", str(copies)]
    log = tmp_path / "log"
    with log.open("w") as output:
        try:
            code = subprocess.run(command, stdout=output, stderr=output, timeout=SECONDS).returncode
        except subprocess.TimeoutExpired:
            code = None  # it hung
    text = log.read_text()
    seed = (re.findall(r"^\d+$", text, re.MULTILINE) or ["none"])[-1]
    assert code == 0, f"{suffix}: seed {seed} ended with {code}\n{text[-2000:]}"
    found = re.search(r"(\d+) clips, (\d+) clear errors, (\d+) MB", text)
    clips, errors, peak = (int(number) for number in found.groups())
    assert clips + errors == copies
    assert min(clips, errors) > copies // 20  # the damage is neither harmless nor total
    assert peak < 1200  # torch itself takes 500; nothing that a header claims is believed

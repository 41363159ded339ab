"""The weights that ship, and the results that the notebooks draw."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from avlib import World, bounce, evaluate, trained_twin, trained_zorro
from avlib.course import results
from avlib.trained import NAMES, WEIGHTS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_weights_are_small():
    files = list(WEIGHTS.glob("*.safetensors"))
    assert sorted(file.stem for file in files) == sorted([*NAMES, "writing"])
    assert all(file.stat().st_size <= 10**6 for file in files)


@pytest.mark.parametrize("name", NAMES)
def test_each_readout_knows_what_its_streams_hold_and_nothing_else(name):
    model, objective = trained_zorro(name)
    scores = evaluate(model, World(1000, seed=11), objective)
    for readout in scores.readouts:
        for label in scores.labels:
            limit = results.best(readout, label)
            if limit < 1:
                assert abs(scores[readout, label] - limit) < 0.06, (readout, label)
            elif (name, readout) != ("modality_dropout", "global"):
                assert scores[readout, label] >= 0.97, (readout, label)


@pytest.mark.parametrize(("left_out", "heard"), [("video", True), ("audio", False)])
def test_modality_dropout_keeps_fusion_whole_without_a_modality(left_out, heard):
    known = ("pitch", "instrument", "tone", "click") if heard else ("shape", "instrument", "motion")
    world = World(1000, seed=12)
    model, objective = trained_zorro("modality_dropout")
    scores = evaluate(model, world, objective, without=left_out)
    assert all(scores["fusion", label] >= 0.97 for label in known)


def test_without_it_fusion_read_the_instrument_off_the_colour():
    model, objective = trained_zorro("labels")
    scores = evaluate(model, World(1000, seed=12), objective, without="video")
    assert scores["audio", "instrument"] >= 0.97
    assert scores["fusion", "instrument"] < 0.9


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="no weights 'zorro'; choose one of labels, modality_dro"):
        trained_zorro("zorro")


@pytest.mark.parametrize(
    ("readout", "label", "accuracy", "word"),
    [
        ("audio", "click", 0.97, "solved"),
        ("audio", "click", 0.9, "between"),
        ("audio", "click", 0.27, "chance"),  # nobody needs to hear to be right in a quarter
        ("audio", "flash", 0.52, "chance"),  # who hears the click is right in half of all clips
        ("audio", "flash", 0.6, "between"),
        ("audio", "flash", 0.99, "solved"),
    ],
)
def test_words_follow_from_what_can_be_known(readout, label, accuracy, word):
    assert results.word(accuracy, readout, label) == word


def test_the_twin_decoder_writes_about_sentences_that_it_never_met():
    model = trained_twin()
    text, video, audio = bounce.clips(bounce.HELD_OUT)
    chance = torch.Generator().manual_seed(7)
    written, heard = model.generate(text, generator=chance, progress=False)
    frames, sounds = bounce.right(text, written, heard)
    assert frames.float().mean() >= 0.9
    assert sounds[frames].float().mean() >= 0.95
    _, dubbed = model.generate(text, video=video, temperature=0, progress=False)
    assert (dubbed == audio)[audio > 0].float().mean() >= 0.95


@pytest.mark.parametrize(
    ("name", "path"), [("training", results.RESULTS), ("writing", results.WRITING)]
)
def test_the_results_are_of_the_runs_as_they_are_now(name, path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, benchmark)  # its dataclasses look there
    spec.loader.exec_module(benchmark)
    kept = importlib.import_module("runs").kept(benchmark.RUNS, path)
    found = {(run["run"], run["seed"]) for run in kept}
    assert found == {(name, seed) for name, run in benchmark.RUNS.items() for seed in run.seeds}
    # The table says what the notebooks draw.
    for text in benchmark.report(kept):
        table = text[text.index("## Targets") :]
        assert table in (BENCHMARKS / f"{name}.md").read_text(encoding="utf-8")


def test_results_are_small_and_plain():
    facts = json.loads(results.RESULTS.read_text(encoding="utf-8"))
    assert results.RESULTS.stat().st_size < 200_000
    assert facts["device"]
    assert all(
        counted >= 4000
        for run in facts["runs"]
        if run["labels"]
        for row in run["counted"]["all"]
        for counted in row
    )

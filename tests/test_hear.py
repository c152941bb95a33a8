"""`cargan hear`: what the shipped ear says of generated sounds, and what it says when something is wrong."""
import json
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch

from cargan.bundle import save_bundle
from cargan.cli import main
from cargan.core import INSTRUMENTS, CarganError
from cargan.disguise import noise_waves
from cargan.heard import FAMILIES, Memory, decide, hear_windows, in_words, note_name, vote
from cargan.hearing import AudioClassifier, AudioClassifierConfig, find_ear, load_audio_classifier, train_who
from cargan.looking import save_classifier
from cargan.methods import TrainConfig, read_config
from cargan.sound import SoundConfig, render_recording
from cargan.training import train
from conftest import ROOT
from methods import tiny, toy_bundle

KEYS = ["input", "label", "probability", "heard", "note", "loudness", "sure", "loudness_is", "windows"]
WINDOW_KEYS = ["start", "label", "probability", "heard", "note", "loudness", "sure"]


@pytest.fixture(scope="module")
def ear(): return load_audio_classifier(find_ear("shipped"))


@pytest.fixture(scope="module")
def recordings():
    "One recording of each instrument, of a performer and a seed that no data set of the tests uses."
    return {name: render_recording(name, 4, 987_654, SoundConfig(windows=6, rest=0.)) for name in INSTRUMENTS}


def hear(tmp_path, *words):
    assert main(["hear", "--out", str(tmp_path/"heard.json"), *map(str, words)]) == 0
    return json.loads((tmp_path/"heard.json").read_text())


def test_contract(tmp_path, recordings, capsys):
    "One line a file, in order; a list with the promised names, for the file and for each window."
    files = []
    for name in ("flute", "double_bass"):
        files.append(tmp_path/f"{name}.wav"); sf.write(files[-1], recordings[name][0], 44100)
    files.append(tmp_path/"silence.wav"); sf.write(files[-1], np.zeros(44100), 44100)
    heard = hear(tmp_path, *files)
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split(": ")[0] for line in lines[:3]] == [str(f) for f in files]
    for entry, file in zip(heard, files):
        assert list(entry) == KEYS and entry["input"] == str(file) and "relative" in entry["loudness_is"]
        assert all(list(w) == WINDOW_KEYS for w in entry["windows"])
    assert [w["start"] for w in heard[0]["windows"]] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert (heard[2]["label"], heard[2]["heard"], heard[2]["note"], heard[2]["loudness"]) == (None, False, None, None)
    assert "no instrument" in lines[2]


def test_it_hears_what_was_played(ear, recordings):
    "The embedded data set's kind of recordings: instrument, note and loudness, window by window."
    named, family, notes, pairs = [], [], [], []
    kind = {name: f for f, names in FAMILIES.items() for name in names}
    for name, (wave, causes) in recordings.items():
        found = hear_windows(ear, wave.reshape(-1, 22050))
        for said, cause in zip(found.windows, causes):
            named.append(said.label == name); family.append(said.heard and kind[said.label] == kind[name])
            notes.append(said.note == note_name(round(cause.pitch)))
        loud = np.array([(said.loudness, cause.loudness) for said, cause in zip(found.windows, causes) if said.heard])
        pairs.append(loud - loud.mean(0))  # heard loudness is relative to the recording's own
    assert np.mean(named) > 0.8 and np.mean(family) > 0.9 and np.mean(notes) > 0.93
    assert np.corrcoef(np.concatenate(pairs).T)[0, 1] > 0.8


@pytest.mark.parametrize("kind", ["silence", "white", "pink", "brown", "rumble", "hum", "clicks", "band"])
def test_noise_is_no_instrument(ear, kind):
    alarms = [hear_windows(ear, w[None]).whole.heard for w in noise_waves(20, (kind,), seed=77)]
    assert np.mean(alarms) <= 0.05


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng, a program that speaks: apt-get install espeak-ng")
def test_speech_is_no_instrument(ear, tmp_path):
    "Recordings of somebody who talks; at most one of twenty may be taken for music."
    alarms = []
    for i, (language, text) in enumerate(dict(de="Heute ist ein schöner Tag im Garten.", it="Domani andremo al mare con gli amici.",
                                              pt="Um pequeno jabuti xereta viu dez cegonhas.", nl="Het regent vandaag de hele dag.").items()):
        for voice in ("m2", "f2", "f4", "m5", "klatt"):
            subprocess.run(["espeak-ng", "-v", f"{language}+{voice}", "-p", str(20 + 15 * i), "-w", str(tmp_path/"a.wav"), text], check=True)
            alarms.append(hear(tmp_path, tmp_path/"a.wav")[0]["heard"])
    assert np.mean(alarms) <= 0.05


@pytest.mark.parametrize("gain", [0.03, 3.])
def test_the_microphones_distance_does_not_matter(ear, recordings, gain):
    near = hear_windows(ear, recordings["cello"][0].reshape(-1, 22050))
    far = hear_windows(ear, gain * recordings["cello"][0].reshape(-1, 22050))
    assert [w.label for w in near.windows] == [w.label for w in far.windows] and [w.note for w in near.windows] == [w.note for w in far.windows]
    np.testing.assert_allclose([w.loudness for w in far.windows], [w.loudness for w in near.windows], atol=0.03)


def test_silence_has_no_voice(ear, recordings):
    "Padded with silence in front and behind, a recording is heard as before."
    wave = recordings["trumpet"][0].reshape(-1, 22050)
    padded = np.concatenate([np.zeros((9, 22050), np.float32), wave, np.zeros((9, 22050), np.float32)])
    before, after = (hear_windows(ear, w).whole for w in (wave, padded))
    assert (before.label, before.note, before.heard) == (after.label, after.note, after.heard)


def test_a_guess_is_called_a_guess():
    p = torch.zeros(14); p[3], p[1] = 0.5, 0.45; p[13] = 0.05
    assert decide(p, None, None, 0.5).sure and not decide(p, None, None, 0.6).sure
    assert in_words(decide(p, None, None, 0.6)).startswith("perhaps double bass (0.53, not sure)")


def test_strong_windows_outvote_weak_ones():
    levels = torch.tensor([[1.] * 9, [0.] * 9, [0.] * 9])  # one loud window, two that are 34 dB softer
    votes = torch.full((3, 14), 0.01); votes[0, 5] = votes[1, 7] = votes[2, 7] = 0.87
    p, _ = vote(Memory(votes, None, None, levels))
    assert int(p.argmax()) == 5


def test_other_ears(tmp_path, recordings, capsys):
    "A file, a run's folder, and an ear that knows no notes."
    sf.write(tmp_path/"a.wav", recordings["oboe"][0], 44100)
    (tmp_path/"run").mkdir()
    save_classifier(tmp_path/"run"/"audio_classifier.safetensors", AudioClassifier(AudioClassifierConfig(heads=("instrument",), width=8)).eval())
    for ear in (tmp_path/"run", tmp_path/"run"/"audio_classifier.safetensors"):
        entry = hear(tmp_path, "--ear", ear, tmp_path/"a.wav")[0]
        assert entry["note"] is None and entry["loudness"] is None and "probability" in entry


@pytest.mark.parametrize("words, says", [
    (["missing.wav"], "does not exist"),
    (["good.wav", "--ear", "nowhere"], "nowhere"),
    (["good.wav", "--ear", "good.wav"], "good.wav"),
    (["text.wav"], "as sound"),
    (["good.wav", "text.wav", "--out", "heard.json"], "as sound"),
    (["good.wav", "--hop", "0"], "hop=0"),
    (["good.wav", "--out", "."], "is a folder"),
    ([], ""),
])
def test_clear_failure(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    sf.write("good.wav", np.zeros(44100), 44100); (tmp_path/"text.wav").write_text("no sound")
    try: code = main(["hear", *words])
    except SystemExit as e: code = e.code
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err and says in err
    assert not (tmp_path/"heard.json").exists()


# ---------------------------------------------------------------- the ear of a run
def pairs_and_config(tmp_path, **changes):
    save_bundle(toy_bundle(bands=True), tmp_path/"pairs.npz")
    return tiny("mean", tmp_path, data=tmp_path/"pairs.npz", out=tmp_path/"run", **changes)


def test_a_run_takes_the_ear_it_is_told(tmp_path):
    "The shipped one by default, a file, or one that learns from the run's data alone; the configuration says which."
    shipped = find_ear("shipped").read_bytes()
    other = tmp_path/"other.safetensors"
    save_classifier(other, AudioClassifier(AudioClassifierConfig(width=8)).eval())
    for ear, same in (("shipped", shipped), (str(other), other.read_bytes()), ("own", None)):
        (tmp_path/ear.replace("/", "_")).mkdir()
        run = train(pairs_and_config(tmp_path/ear.replace("/", "_"), ear=ear))
        written = (run/"audio_classifier.safetensors").read_bytes()
        assert read_config(run/"config.json").ear == ear
        assert written == same if same else written not in (shipped, other.read_bytes())
    assert TrainConfig().ear == "shipped"


def test_an_ear_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(CarganError, match="no_ear"): train(pairs_and_config(tmp_path, ear=str(tmp_path/"no_ear.safetensors")))
    assert not (tmp_path/"run").exists()


def test_a_run_from_before_there_was_a_shipped_ear_has_its_own():
    assert read_config(ROOT/"tests"/"old_run"/"run"/"config.json").ear == "own"
    old = load_audio_classifier(ROOT/"tests"/"old_run"/"run"/"audio_classifier.safetensors")
    assert old.cfg.heads == ("instrument",)


def test_who_plays_is_learnt_where_the_data_say_so(tmp_path, ear):
    "Two players of one instrument, whose sounds differ in everything: told apart; and only among those who play it."
    rng = np.random.default_rng(0)
    player = np.tile([0, 1], 40)
    lms = np.where(player[:, None, None] == 1, np.linspace(20, -60, 128)[:, None], np.linspace(-60, 20, 128)[:, None]) + rng.normal(0, 3, (80, 128, 44))
    data = SimpleNamespace(lms_db=lms.astype(np.float32), label=np.repeat([3, 7], 40), performer=player.astype(str), recording=player)
    who, report = train_who(ear, data, np.arange(0, 80, 4).repeat(2) + np.tile([0, 1], 20), np.arange(2, 80, 4))
    assert report["people"] == 4 and report["accuracy"] > 0.9 and report["chance"] == 0.5
    p = who(ear.features(torch.tensor(data.lms_db[:4])), torch.tensor([3, 3, 7, 7])).softmax(1)
    np.testing.assert_allclose(p[:2, :2].sum(1), 1, atol=1e-5); np.testing.assert_allclose(p[2:, 2:].sum(1), 1, atol=1e-5)


def mains(rng, harmonics: int, seconds: float = 2.):
    "Hum of the mains as an electrician would write it down: harmonics of 50 or 60 Hz, and not a trace of noise."
    t, hz = np.arange(round(44100 * seconds)) / 44100, rng.choice([50, 60, 100])
    x = sum(rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * (hz * k * t + rng.random())) for k in range(1, harmonics + 1))
    return (0.1 * x / abs(x).max()).astype(np.float32)


@pytest.mark.parametrize("harmonics", [5, 12, 30])
def test_hum_without_noise_is_no_instrument(ear, harmonics):
    rng = np.random.default_rng(harmonics)
    alarms = [hear_windows(ear, mains(rng, harmonics).reshape(-1, 22050)).whole.heard for _ in range(20)]
    assert np.mean(alarms) <= 0.05


def test_a_random_walk_is_no_instrument(ear):
    rng = np.random.default_rng(3)
    walks = [np.cumsum(rng.standard_normal(44100)) for _ in range(20)]
    assert np.mean([hear_windows(ear, (0.1 * x / abs(x).max()).astype(np.float32).reshape(-1, 22050)).whole.heard for x in walks]) <= 0.05

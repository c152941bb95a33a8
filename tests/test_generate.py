"Pictures in streams: any number at once, any length, any names."
import json, subprocess, sys
from dataclasses import asdict

import av
import numpy as np
import pytest
import soundfile as sf
import torch
from PIL import Image
from torch import nn

from cargan.core import CarganError, seed_everything
from cargan.generate import Film, GenerateConfig, Gif, Picture, SoundToImage, distinct_stems, draw, film_frame, generate_files, summarize
from cargan.heard import Heard, hear_file
from cargan.hearing import find_ear, load_audio_classifier
from cargan.sound import SoundConfig, render_recording
from conftest import ROOT
from methods import METHODS, tiny, toy_bundle


class Ear(nn.Module):
    "Hears an instrument where there is any sound."
    def __init__(self):
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(4.))
    def forward(self, lms_db):
        label = torch.where(lms_db.amax((1, 2)) < -50, 13, lms_db.mean(-1).argmax(-1) % 13)
        return dict(instrument=self.sure * nn.functional.one_hot(label, 14))

class Painter(nn.Module):
    "Paints the sound."
    size, lms, label, stages = 32, "db", "none", ("fine",)
    def draw(self, mel, label): return dict(fine=mel.expand(-1, 3, -1, -1))

EYE = SoundToImage(Painter(), Ear())

def tones(seconds, rate=44100):
    t = np.arange(round(seconds * rate)) / rate
    return (0.2 * np.sin(2 * np.pi * 220 * 2 ** (t.astype(int) % 12 / 12) * t) * (t.astype(int) % 5 > 0)).astype(np.float32)

def job(tmp_path, *sounds, **options): return GenerateConfig(sounds, run=tmp_path, out=tmp_path/"out", **options)


# ---------------------------------------------------------------- how many at once
@pytest.mark.parametrize("name", METHODS)
def test_a_picture_does_not_depend_on_how_many_are_drawn_at_once(name, tmp_path, monkeypatch):
    from cargan.bundle import save_bundle
    monkeypatch.syspath_prepend(str(ROOT/"bench"))
    from common import random_players
    save_bundle(toy_bundle(), tmp_path/"pairs.npz")
    seed_everything(0)
    model = random_players(tiny(name, tmp_path)).model.eval()
    for p in model.parameters():
        if p.ndim > 1: nn.init.kaiming_normal_(p)  # loud enough to be seen
    lms, label = torch.tensor(np.random.default_rng(1).normal(-40, 15, (64, 128, 44)), dtype=torch.float32), torch.arange(64) % 13
    lms[3] = -100
    together = draw(model, lms, label)
    for stage, many in together.items():
        assert many.std() > 1
        for n in (1, 7, 32):
            few = np.concatenate([draw(model, lms[i:i + n], label[i:i + n])[stage] for i in range(0, 64, n)])
            assert abs(few.astype(int) - many).max() <= 1, n

def test_of_equally_near_sounds_the_first_is_found_however_many_are_asked_for():
    from cargan.controls import NearestPair, RetrievalConfig
    seed_everything(0)
    sounds = torch.randn(13, 256).mul(0.5).repeat(2, 1)
    model = NearestPair(RetrievalConfig(size=32, among="all"), sounds, torch.zeros(26, 3, 2, 2, dtype=torch.uint8), torch.zeros(26, dtype=torch.int64))
    mel = torch.randn(64, 1, 32, 32)
    found = model.search(mel)
    assert found.max() < 13
    assert torch.equal(torch.cat([model.search(x[None]) for x in mel]), found)


# ---------------------------------------------------------------- streams
@pytest.mark.parametrize("fps", [0.7, 2, 10, 24])
def test_pieces_and_whole_give_the_same_pictures(fps):
    wave = tones(3.3)
    pieces = np.array_split(wave, 41)
    at_once, streamed = EYE(wave, fps=fps), list(EYE.stream(pieces, EYE.hear(pieces, fps), fps=fps))
    np.testing.assert_allclose([p.start for p in streamed], [i / fps for i in range(len(streamed))], atol=1e-6)
    assert len(at_once) == len(streamed) and all(np.array_equal(a.fine, b.fine) for a, b in zip(at_once, streamed))
    assert abs(len(streamed) - (3.3 - 0.5) * fps) < 2

def test_nothing_is_kept_of_pictures_that_went_by():
    "Pictures come while the sound is still being read."
    read = []
    def blocks():
        for k in range(100): read.append(k); yield tones(1)
    found = EYE.hear(blocks(), 10)
    assert len(read) == 100
    read.clear()
    pictures = EYE.stream(blocks(), found, fps=10)
    next(pictures)
    assert len(read) < 10

def test_the_file_has_the_surest_picture_of_its_instrument():
    "Heard before played on, surest first; of cards the first; with a label asked for, the picture of that."
    rng = np.random.default_rng(0)
    def picture(i, label, heard): return Picture(dict(fine=np.full((2, 2, 3), i)), label, float(rng.random()), heard, i / 2)
    pictures = [picture(i, rng.choice(["oboe", "tuba", None]), True) for i in range(60)]
    for label in ("oboe", "tuba"):
        best = summarize(iter(pictures), Heard(label, 0.5, True, None, None, True))
        assert best.probability == max(p.probability for p in pictures if p.label == label)
    first = next(p for p in pictures if p.label is None)
    assert summarize(iter(pictures), Heard(None, 0.9, False, None, None, True)) is first
    asked = [picture(i, "tuba", i % 3 > 0) for i in range(30)]  # drawn through the silences, too
    assert summarize(iter(asked), Heard("tuba", 0.1, True, None, None, False)).heard

def test_what_was_heard_is_in_the_json_and_on_the_frame(tmp_path):
    "The ear that comes with the package: note, loudness, doubt."
    see = SoundToImage(Painter(), load_audio_classifier(find_ear("shipped")))
    wave, _ = render_recording("trumpet", 3, 55_555, SoundConfig(windows=4, rest=0.))
    sf.write(tmp_path/"a.wav", wave, 44100)
    entry, = generate_files(see, job(tmp_path, tmp_path/"a.wav"))
    found = hear_file(see.ear, tmp_path/"a.wav")
    assert {k: entry[k] for k in ("label", "probability", "heard", "note", "loudness", "sure")} == asdict(found.whole)
    assert [w["note"] for w in entry["windows"]] == [h.note for h in found.windows]
    sure, unsure = (film_frame(Picture(dict(fine=np.zeros((32, 32, 3), np.uint8)), "oboe", 0.4, True, 0., "A4", 0.5, s)) for s in (True, False))
    assert not np.array_equal(sure, unsure)

def test_film_frames_and_json_are_in_step(tmp_path):
    sf.write(tmp_path/"a.flac", tones(6), 44100)
    entry, = generate_files(EYE, job(tmp_path, tmp_path/"a.flac", fps=10, video=True, gif=True, frames=True))
    n = len(entry["windows"])
    assert n == 56 and json.loads((tmp_path/"out"/"generate.json").read_text()) == [entry]
    assert sorted(p.name for p in (tmp_path/"out"/"a_frames").iterdir()) == [f"{100 * i:07d}ms.png" for i in range(n)]
    assert set(entry["files"]) == {p.relative_to(tmp_path/"out").as_posix() for p in (tmp_path/"out").rglob("*.*") if p.name != "generate.json"}
    with av.open(str(tmp_path/"out"/"a.mp4")) as film: times = [f.time for f in film.decode(video=0)]
    np.testing.assert_allclose(times, [w["start"] for w in entry["windows"]], atol=0.002)
    with av.open(str(tmp_path/"out"/"a.mp4")) as film: sound = np.concatenate([f.to_ndarray()[0] for f in film.decode(audio=0)])
    assert abs(len(sound) - 6 * 44100) < 2048 and np.corrcoef(sound[44100:5 * 44100], tones(6)[44100:5 * 44100])[0, 1] > 0.9
    with Image.open(tmp_path/"out"/"a.gif") as gif: assert gif.n_frames == n and gif.info["duration"] == 100

def test_a_gif_of_equal_pictures(tmp_path):
    "Twenty minutes of the same card: more hundredths of a second than 16 bits hold."
    card = np.full((32, 32, 3), 128, np.uint8)
    with Gif(tmp_path/"a.gif", size=(32, 32)) as gif:
        for _ in range(2400): gif.show(card)
    with Image.open(tmp_path/"a.gif") as gif:
        assert gif.n_frames == 2400 and gif.info["loop"] == 0
        total = 0
        for k in range(2400): gif.seek(k); total += gif.info["duration"]
        assert total == 1_200_000

def test_a_film_that_breaks_off_raises_what_broke_it(tmp_path):
    with pytest.raises(CarganError, match="broken"):
        with Film(tmp_path/"a.mp4", 2, 44100) as film:
            film.play(tones(1))
            raise CarganError("broken")

MEMORY = """
import sys; sys.path.insert(0, "tests")
import resource, numpy as np, soundfile as sf, torch
from pathlib import Path
from test_generate import EYE, job, tones
from cargan.generate import generate_files
torch.set_num_threads(1)
folder, minutes = Path(sys.argv[1]), int(sys.argv[2])
minute = np.stack([tones(60, 16000)] * 2, 1)
with sf.SoundFile(folder/"a.wav", "w", 16000, 2) as f:
    for _ in range(minutes): f.write(minute)
generate_files(EYE, job(folder, folder/"a.wav", video=True, gif=True))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""

def test_four_minutes_need_hardly_more_memory_than_one(tmp_path):
    "The three minutes more are 30 MB of sound, 30 MB of windows and 80 MB of frames; bench/hour.py measures an hour."
    def peak(minutes):  # MB
        folder = tmp_path/str(minutes); folder.mkdir()
        done = subprocess.run([sys.executable, "-c", MEMORY, folder, str(minutes)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return int(done.stdout)
    assert peak(4) - peak(1) < 40


# ---------------------------------------------------------------- names and options
@pytest.mark.parametrize("names", [["a.wav", "A.wav"], ["für.wav", "fu\u0308r.wav"], ["STRASSE.wav", "straße.wav"], ["a.wav", "a.flac", "A_2.wav"]])
def test_no_two_files_have_the_same_name_anywhere(names):
    import unicodedata
    stems = distinct_stems(names)
    assert len({unicodedata.normalize("NFD", unicodedata.normalize("NFD", s).casefold()) for s in stems}) == len(names)
    assert stems[0] == names[0].rsplit(".")[0]

@pytest.mark.parametrize("fps", [0, -1, 51, float("nan")])
def test_impossible_fps(tmp_path, fps):
    from cargan.generate import generate
    sf.write(tmp_path/"a.wav", tones(1), 44100)
    with pytest.raises(CarganError, match="fps"): generate(job(tmp_path, tmp_path/"a.wav", fps=fps))

def test_any_sound_file_gives_pictures(tmp_path):
    from test_audio import encode
    x = tones(3)
    inputs = [encode(tmp_path/"memo.m4a", "aac", 44100, x), encode(tmp_path/"call.opus", "libopus", 48000, x), encode(tmp_path/"film.mov", "aac", 44100, x, picture=True)]
    entries = generate_files(EYE, job(tmp_path, *inputs))
    assert [len(e["windows"]) for e in entries] == [6, 6, 6] and all(e["heard"] for e in entries)

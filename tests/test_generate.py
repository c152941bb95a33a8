"Pictures in streams: any number at once, any length, any names."
import json, os, shutil, subprocess, sys
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
import torch
from PIL import Image
from torch import nn

from cargan.core import INSTRUMENTS, CarganError, MissingExtra, seed_everything
from cargan.eye import Eye, EyeConfig
from cargan.drawing import Picture, SoundToImage, draw, the_box, the_example
from cargan.generate import Film, GenerateConfig, Gif, distinct_stems, film_frame, flicker, frames_late, generate, generate_files, summarize
from cargan.heard import Heard, hear_file, note_key
from cargan.hearing import Who, WhoConfig, find_ear, load_audio_classifier
from cargan.listener import Listener, ListenerConfig
from cargan.scene import RANGES, make_performer
from cargan.sound import Event, SoundConfig, play_events, render_recording
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
def test_a_picture_does_not_depend_on_how_many_are_drawn_at_once(name, tmp_path):
    from cargan.bundle import save_bundle
    from cargan.cost import random_players
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
    assert frames_late(10) == 2
    np.testing.assert_allclose(times, [0, 0.1, *(w["start"] + 0.2 for w in entry["windows"])], atol=0.002)  # the first picture stays two frames longer
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


# ---------------------------------------------------------------- a model that is told what was heard
PEOPLE = tuple((k, f"{k}-{i}") for k in range(13) for i in range(2))

def toy_listener(size=32, people=PEOPLE) -> SoundToImage:
    "A listener with the shipped ear and random networks: what it draws is nothing, how it comes to draw it is real."
    seed_everything(0)
    who = Who(WhoConfig(people=people)).eval() if people else None
    ear = load_audio_classifier(find_ear("shipped"))
    model = Listener(ListenerConfig(size=size, base=8), Eye(EyeConfig(size=size, people=len(people), width=4)), ear, who).eval()
    return SoundToImage(model, model.ear)

class Lamp(nn.Module):
    "Draws what it is told as a colour: red is the note, green the loudness, blue the player; and remembers it."
    size, lms, label, stages, people = 32, "raw", "none", ("fine",), PEOPLE
    who = None
    def __init__(self):
        super().__init__()
        self.here, self.told = nn.Parameter(torch.zeros(1)), []
    def imagine(self, told, lms_db=None):
        self.told += zip(*(x.tolist() for x in told))
        colour = torch.stack([(told.note + 1) / 55 - 1, told.loudness * 2 - 1, told.who / 13 - 1], 1)
        return dict(fine=colour[:, :, None, None].expand(-1, -1, self.size, self.size))

EAR = load_audio_classifier(find_ear("shipped"))

def lamp(): return SoundToImage(Lamp(), EAR)

def play(name, notes, slot=0.5, loudness=0.8):
    "Notes of one instrument, one after the other, without a room: MIDI keys, `slot` seconds each."
    events = [Event(k * slot, (k + 1) * slot, key, k * slot, (k + 1) * slot - 0.02, loudness) for k, key in enumerate(notes)]
    x = play_events(name, events, make_performer(name, 0), np.random.default_rng(0), SoundConfig(zone=0, presets=0., colour=0.))
    return (0.5 * x / abs(x).max()).astype(np.float32)[:round(len(notes) * slot * 44100)]

def silence(seconds): return np.zeros(round(44100 * seconds), np.float32)

def test_it_is_told_what_was_heard():
    "Instrument, note, loudness relative to the recording: also where the recording is soft."
    wave = np.concatenate([play("trumpet", [62, 66, 69]), silence(1), play("cello", [45, 50])])
    told = {}
    for level in (1., 0.05):
        see = lamp()
        pictures = see(level * wave)
        told[level] = see.model.told
        assert [p.rests for p in pictures] == [False] * 3 + [True] * 2 + [False] * 2
        assert [INSTRUMENTS[row[0]] for row in see.model.told] == ["trumpet"] * 5 + ["cello"] * 2  # in the rest, who played last
        assert [row[1] for row in see.model.told] == [62, 66, 69, -1, -1, 45, 50]
        assert [p.note and note_key(p.note) for p in pictures] == [62, 66, 69, None, None, 45, 50]
    np.testing.assert_allclose([row[2] for row in told[1.]], [row[2] for row in told[0.05]], atol=0.05)
    assert told[1.][3][2] == 0 and max(row[2] for row in told[1.]) > 0.6

def test_one_player_throughout():
    "For each instrument the same person in all windows: who is heard, who is asked for, or the first."
    wave, see = np.concatenate([play("trumpet", [62, 66, 69] * 3), play("cello", [45, 50] * 3)]), toy_listener()
    for fps in (2, 10):
        for performer in (None, 0, 1):
            pictures = see(wave, fps=fps, performer=performer)
            seen = {(p.label, p.performer) for p in pictures if p.heard and p.label in ("trumpet", "cello")}
            assert len(seen) == 2 and (performer is None or {who for _, who in seen} == {performer})
    found = see.hear([wave])
    assert found.players[9] in (18, 19) and found.players[1] in (2, 3)  # trumpet and cello
    nobody = toy_listener(people=())
    assert {p.performer for p in nobody(wave)} == {None}
    with pytest.raises(CarganError, match="nobody in particular"): nobody(wave, performer=0)

@pytest.mark.parametrize("performer", [-1, 2, 99])
def test_a_player_that_there_is_not(performer, tmp_path):
    sf.write(tmp_path/"a.wav", tones(1), 44100)
    with pytest.raises(CarganError, match="give a number from 0 to 1"): generate_files(lamp(), job(tmp_path, tmp_path/"a.wav", performer=performer))
    with pytest.raises(CarganError, match="nobody in particular"): generate_files(EYE, job(tmp_path, tmp_path/"a.wav", performer=0))
    assert not (tmp_path/"out").exists()

def test_a_listener_can_be_asked_for_an_instrument():
    "It plays the note that is heard, in an octave that it has."
    see = lamp()
    pictures = see(np.concatenate([play("flute", [84, 86]), silence(0.5)]), label="tuba")
    assert [p.label for p in pictures] == ["tuba"] * 3 and [p.rests for p in pictures] == [False, False, True]
    low, high = RANGES["tuba"]
    notes = [row[1] for row in see.model.told]
    assert notes[2] == -1 and all(low <= n <= high for n in notes[:2]) and [n % 12 for n in notes[:2]] == [0, 2]

def test_where_nothing_is_heard_is_the_card(tmp_path):
    "In the picture, in the film, in the JSON; and no alternatives."
    sf.write(tmp_path/"a.wav", np.random.default_rng(0).normal(0, 0.1, 88200), 44100)
    entry, = generate_files(lamp(), job(tmp_path, tmp_path/"a.wav", alternatives=2))
    assert (entry["label"], entry["heard"], entry["performer"], entry["alternatives"]) == (None, False, None, [])
    with Image.open(tmp_path/"out"/"a_fine.png") as img: assert np.asarray(img).std() > 5  # grey, with words
    assert {w["rests"] for w in entry["windows"]} == {False}

def test_alternatives(tmp_path):
    "The next likeliest instruments: their own file, player and probability; the same half second."
    sf.write(tmp_path/"a.wav", play("viola", [60, 62, 64]), 44100)
    see = lamp()
    entry, = generate_files(see, job(tmp_path, tmp_path/"a.wav", alternatives=3, performer=1))
    others = entry["alternatives"]
    assert len(others) == 3 and entry["label"] not in {o["label"] for o in others}
    assert [o["probability"] for o in others] == sorted((o["probability"] for o in others), reverse=True)
    assert entry["probability"] + sum(o["probability"] for o in others) <= 1 + 1e-3
    assert {o["performer"] for o in others} == {1} and all((tmp_path/"out"/o["file"]).is_file() and o["file"] in entry["files"] for o in others)
    assert [o["file"] for o in others] == [f"a_alternative{n}_{o['label']}.png" for n, o in enumerate(others, 1)]
    asked, at = see.model.told[-3:], round(entry["start"] / 0.5)
    assert [INSTRUMENTS[row[0]] for row in asked] == [o["label"] for o in others] and {row[2] for row in asked} == {see.model.told[at][2]}
    with pytest.raises(CarganError, match="takes no label"): generate_files(EYE, job(tmp_path, tmp_path/"a.wav", alternatives=1))
    with pytest.raises(CarganError, match="from 0 to 12"): generate_files(lamp(), job(tmp_path, tmp_path/"a.wav", alternatives=13))

def test_pieces_and_whole_give_the_same_pictures_of_a_listener():
    see, wave = toy_listener(), np.concatenate([play("horn", [53, 58, 62]), silence(0.6), play("horn", [58])])
    pieces = np.array_split(wave, 31)
    at_once, streamed = see(wave, fps=10), list(see.stream(pieces, see.hear(pieces, 10), fps=10))
    assert len(at_once) == len(streamed) and all(np.array_equal(a.fine, b.fine) for a, b in zip(at_once, streamed))


# ---------------------------------------------------------------- films
def changes(values, times, by):  # -> seconds
    "When a row of numbers changes by more than `by`."
    return [t for a, b, t in zip(values, values[1:], times[1:]) if abs(float(b) - float(a)) > by]

@pytest.mark.parametrize("fps", [10, 12.5, 25])
def test_picture_and_sound_are_in_step(fps, tmp_path):
    "A note begins after silence, another follows, it ends: sound and picture of the film change at the same time, within a frame (the end: two)."
    wave = np.concatenate([silence(1.43), play("trumpet", [58], 1.1), play("trumpet", [77], 1.1), silence(1.3)])
    sf.write(tmp_path/"a.wav", wave, 44100)
    generate_files(lamp(), job(tmp_path, tmp_path/"a.wav", fps=fps, video=True))
    with av.open(str(tmp_path/"out"/"a.mp4")) as film: frames = [(f.time, f.to_ndarray(format="rgb24")[20:200, 20:200, 0].mean()) for f in film.decode(video=0)]
    with av.open(str(tmp_path/"out"/"a.mp4")) as film: sound = np.concatenate([f.to_ndarray()[0] for f in film.decode(audio=0)])
    loud = np.abs(sound[:len(sound) // 441 * 441]).reshape(-1, 441).max(1) > 0.02
    onset = np.flatnonzero(loud)[0] / 100
    assert abs(onset - 1.43) < 0.05
    times, red = zip(*frames)
    changed = changes(red, times, 20)
    # first the card (grey), or a player who waits, then two notes, then a rest
    near = lambda t: min(abs(c - t) for c in changed)
    assert near(onset) <= 1 / fps + 0.01 and near(1.43 + 1.1) <= 1 / fps + 0.05, changed
    assert near(1.43 + 2.2) <= 2 / fps + 0.15, changed

def test_a_held_note_does_not_flicker():
    "Three seconds of one note, drawn by the listener in the box, against the variety of the example."
    see = SoundToImage.from_pretrained()
    climb, held = (np.stack([p.fine for p in see(sound, fps=10)]) for sound in (the_example(), play("trumpet", [70], 3.)))
    assert flicker(held, climb) < 0.5 and flicker(climb) < 0.6

def test_what_only_one_window_hears_is_not_drawn():
    "Between two instruments and between two notes; but windows side by side are believed."
    from cargan.heard import hear_windows
    see = lamp()
    see(the_example(), fps=10)
    names = [INSTRUMENTS[row[0]] for row in see.model.told]
    runs = [k for k in range(1, len(names)) if names[k] != names[k - 1]]
    assert min(np.diff([0, *runs, len(names)])) >= 2 and set(names) == {"trombone", "cello", "trumpet", "clarinet"}


# ---------------------------------------------------------------- where a listener comes from
def test_saved_and_loaded(tmp_path):
    see, wave = toy_listener(), play("oboe", [70, 72])
    see.save_pretrained(tmp_path/"mine")
    assert sorted(p.name for p in (tmp_path/"mine").iterdir()) == ["config.json", "model.safetensors"]
    again = SoundToImage.from_pretrained(tmp_path/"mine")
    drawn, drawn_again = ([p.fine.astype(int) for p in s(wave)] for s in (see, again))
    assert max(abs(a - b).max() for a, b in zip(drawn, drawn_again)) <= 2  # half precision
    with pytest.raises(CarganError, match="only a listener"): EYE.save_pretrained(tmp_path/"other")
    with pytest.raises(CarganError, match="does not exist"): SoundToImage.from_pretrained(tmp_path/"no")
    with pytest.raises(CarganError, match="neither a folder nor a name"): SoundToImage.from_pretrained("no such listener")

@pytest.mark.parametrize("spoil, says", [
    (lambda box: shutil.rmtree(box), "install cargan again"),
    (lambda box: (box/"model.safetensors").unlink(), "lacks model.safetensors; install cargan again"),
    (lambda box: (box/"model.safetensors").write_bytes((box/"model.safetensors").read_bytes()[:999]), "damaged"),
    (lambda box: (box/"config.json").write_text("{"), "not readable as JSON"),
    (lambda box: (box/"config.json").write_text("[]"), "holds a list"),
])
def test_a_damaged_box(spoil, says, tmp_path, monkeypatch):
    import cargan.drawing
    box = tmp_path/"cargan"/"weights"/"listener"
    shutil.copytree(the_box(), box)
    monkeypatch.setattr(cargan.drawing, "files", lambda package: tmp_path/package)
    assert the_box() == box
    spoil(box)
    with pytest.raises(CarganError, match=says): SoundToImage.from_pretrained()

HUB = """
import sys, warnings
from cargan.cli import main
sys.exit(main(["generate", "--hub", "someone/cargan-listener", "--out", sys.argv[1], sys.argv[2]]))
"""

def test_the_hub_offline(tmp_path):
    "Unknown: one line. In the cache of the hub's own client: drawn."
    sf.write(tmp_path/"a.wav", play("oboe", [70]), 44100)
    env = {**os.environ, "HF_HOME": str(tmp_path/"hub"), "HF_HUB_OFFLINE": "1"}
    def run(): return subprocess.run([sys.executable, "-c", HUB, tmp_path/"out", tmp_path/"a.wav"], cwd=ROOT, env=env, capture_output=True, text=True)
    done = run()
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "cannot be had from the hub" in done.stderr, done.stderr
    assert not (tmp_path/"out").exists()
    cache = tmp_path/"hub"/"hub"/"models--someone--cargan-listener"
    (cache/"refs").mkdir(parents=True)
    (cache/"refs"/"main").write_text("0" * 40)
    toy_listener().save_pretrained(cache/"snapshots"/("0" * 40))
    done = run()
    assert done.returncode == 0 and (tmp_path/"out"/"a_fine.png").is_file(), done.stderr

def test_the_hub_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"pip install 'cargan\[hub\]'"): SoundToImage.from_pretrained("someone/cargan-listener")

def test_the_example_needs_no_sound(tmp_path, monkeypatch, capsys):
    "No run, no sound, no folder: pictures in `pictures`, twice."
    monkeypatch.chdir(tmp_path)
    for _ in range(2): entry, = generate(GenerateConfig(example=True))
    assert entry["heard"] and {w["label"] for w in entry["windows"]} == {"trombone", "cello", "trumpet", "clarinet"}
    assert {"generate.json", "example_fine.png"} <= {p.name for p in Path("pictures").iterdir()}
    said = capsys.readouterr().out
    assert "pictures/example_fine.png" in said and "window by window: trombone, cello, trumpet, clarinet" in said
    assert the_example().stat().st_size < 200_000


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
    sf.write(tmp_path/"stereo.mp3", np.stack([0.8 * x, -0.2 * x], 1), 44100, format="MP3")
    inputs = [tmp_path/"stereo.mp3", encode(tmp_path/"memo.m4a", "aac", 44100, x), encode(tmp_path/"call.opus", "libopus", 48000, x), encode(tmp_path/"film.mov", "aac", 44100, x, picture=True)]
    entries = generate_files(EYE, job(tmp_path, *inputs))
    assert [len(e["windows"]) for e in entries] == [6, 6, 6, 6] and all(e["heard"] for e in entries)

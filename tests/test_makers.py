"Other makers' instruments: SoundFonts as people have them, folders of recorded notes, and phrases that no data set holds."
import io, struct
from dataclasses import fields

import numpy as np
import pytest
import soundfile as sf

import cargan.makers, cargan.scene, cargan.sound
from cargan.core import CarganError, INSTRUMENTS
from cargan.makers import (Lessons, PhraseConfig, cents_off, find_maker, instruments_of, other_recording, other_sounds,
                           phrase_rng, render_phrase)
from cargan.scene import RANGES, stable_rng
from cargan.sound import PRESETS, SAMPLE_RATE, TABLES, chunk, render_notes, soundfont_bytes

RECORDED = np.sin(2 * np.pi * 441 * np.arange(22050) / SAMPLE_RATE) * 12000  # a "note" of half a second: 100 samples a period


def soundfont(programs=range(128), compressed=False, key=69, settings=(), common=()):
    "A SoundFont whose programs all play one looped sine, recorded at `key`: written by hand, nothing of the package's own cutting."
    note = np.r_[RECORDED, np.zeros(46)].astype("<i2").tobytes()
    start, end, loop, kind = 0, len(RECORDED), (2000, 20000), 1
    if compressed:
        file = io.BytesIO(); sf.write(file, (RECORDED / 32768).astype(np.float32), SAMPLE_RATE, format="OGG", subtype="VORBIS")
        note, kind = file.getvalue(), 1 | 16
        end = len(note)
    ends = [len(common)] * bool(common) + [len(common) + len(settings) + 2]  # of a zone that speaks for all, and of the note's own
    rows = dict(
        phdr=[(b"p%d" % p, p, 0, i, b"") for i, p in enumerate(programs)] + [(b"EOP", 0, 0, len(programs), b"")],
        pbag=[(i, 0) for i in range(len(programs) + 1)], pmod=[b""], pgen=[(41, 0)] * len(programs) + [(0, 0)],
        inst=[(b"sine", 0), (b"EOI", len(ends))], ibag=[(0, 0), *((end, 0) for end in ends)], imod=[b""],
        igen=[*common, *settings, (54, 1), (53, 0), (0, 0)],  # play the loop; sample 0
        shdr=[(b"sine", start, end, loop, SAMPLE_RATE, bytes([key, 0, 0, 0]), kind), (b"EOS", 0, 0, (0, 0), 0, b"", 0)])
    pdta = b"".join(chunk(name, np.array(rows[name], dtype=TABLES[name]).tobytes()) for name in TABLES)
    lists = (b"INFO" + chunk("ifil", struct.pack("<HH", 2, 4)), b"sdta" + chunk("smpl", note), b"pdta" + pdta)
    return chunk("RIFF", b"sfbk" + b"".join(chunk("LIST", x) for x in lists))


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def note(path, key, seconds=1.):
    "A recorded note: a tone with one overtone."
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    hz = 440 * 2 ** ((key - 69) / 12)
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, 0.3 * np.sin(2 * np.pi * hz * t) + 0.1 * np.sin(4 * np.pi * hz * t), SAMPLE_RATE)


def pitch(x, key): return cents_off(x[4000:], key)


@pytest.mark.parametrize("compressed", (False, True))
def test_a_file(tmp_path, compressed):
    path = put(tmp_path/"font.sf3", soundfont(compressed=compressed))
    for key in (60, 69, 76): assert abs(pitch(render_notes("oboe", [(key, 0, 1)], 1., soundfont=path), key) - 4) < 4  # 441 Hz: 4 cents high
    assert instruments_of(path) == INSTRUMENTS


def test_what_is_cut_out_is_what_was_there(tmp_path):
    "The bytes that the renderer makes of one program are those that it makes of the whole file."
    from cargan.sound import midi_renderer, soundfont_programs, write_score
    whole, play = soundfont_programs()[40].read_bytes(), midi_renderer()
    for name in ("violin", "sax", "tuba", "double_bass"):
        for preset in range(len(PRESETS[name])):
            program, part = soundfont_bytes(name, preset)
            notes = [(key, 0.2 * i, 0.2 * i + 0.3, 60 + 10 * i) for i, key in enumerate(range(*RANGES[name], 7))]
            midi = write_score(program, notes, 2., [(0, 30)])
            assert len(part) < 0.2 * len(whole) and play(part, midi) == play(whole, midi)


def test_a_folder_of_programs(tmp_path):
    folder = str(tmp_path/"font")
    for name, data in {"040.sf2": soundfont([40]), "068.sf3": soundfont([68], True), "readme.txt": b"x"}.items():
        put(tmp_path/"font"/name, data)
    assert instruments_of(folder) == ("oboe", "violin")
    violin, fiddle = (render_notes("violin", [(70, 0, 1)], 1., preset, soundfont=folder) for preset in (0, 1))
    assert (violin == fiddle).all()  # there is no fiddle: the violin plays
    with pytest.raises(CarganError, match="has no tuba"): render_notes("tuba", [(40, 0, 1)], 1., soundfont=folder)
    with pytest.raises(CarganError, match="has no tuba"): other_recording("tuba", 0, folder)


def test_nobody_plays_for_another(tmp_path):
    "A file that lacks a program doesn't play another one in its place."
    path = put(tmp_path/"one.sf2", soundfont([40]))
    assert instruments_of(path) == ("violin",)
    with pytest.raises(CarganError, match="has no oboe"): render_notes("oboe", [(70, 0, 1)], 1., soundfont=path)


def test_out_of_tune_and_silent(tmp_path):
    "A font that plays a third too high, and one that is silent, are not used."
    assert instruments_of(put(tmp_path/"high.sf2", soundfont(key=65))) == ()
    silent = bytearray(soundfont())
    at = silent.index(b"smpl") + 8
    silent[at:at + 2 * len(RECORDED)] = bytes(2 * len(RECORDED))
    assert instruments_of(put(tmp_path/"silent.sf2", bytes(silent))) == ()
    with pytest.raises(CarganError, match="play no instrument in tune"): other_sounds(5, makers=(str(tmp_path/"high.sf2"),))


@pytest.mark.parametrize("key, wrong", ((57, "an octave too high"), (81, "an octave too low")))
def test_an_octave_off(tmp_path, key, wrong):
    assert instruments_of(put(tmp_path/"octave.sf2", soundfont(key=key))) == (), wrong


@pytest.mark.parametrize("cents, used", ((-40, True), (35, True), (60, False), (90, False), (-65, False)))
def test_nearly_a_semitone_off(tmp_path, cents, used):
    "The sine itself is 4 cents high; setting 52 tunes it."
    path = put(tmp_path/"tuned.sf2", soundfont([73], settings=[(52, cents % 65536)]))
    assert instruments_of(path) == (("flute",) if used else ())


def test_octaves_of_real_instruments():
    "An octave up, an octave down and the right one are told apart, on low and on high notes, with weak and strong first harmonics."
    from cargan.makers import second_soundfont
    wrong = []
    for font in (None, str(second_soundfont())):
        for name, (lo, hi) in RANGES.items():
            keys = range(lo + 12, hi - 11, 5)
            x = render_notes(name, [(k, 0.8 * i, 0.8 * i + 0.7) for i, k in enumerate(keys)], 0.8 * len(keys), soundfont=font)
            for i, k in enumerate(keys):
                note = x[round((0.8 * i + 0.1) * SAMPLE_RATE):round((0.8 * i + 0.7) * SAMPLE_RATE)]
                wrong += [(name, k, octave) for octave in (-1, 0, 1) if not abs(cents_off(note, k - 12 * octave) - 1200 * octave) < 50]
    assert not wrong


@pytest.mark.parametrize("low, high", ((28, 58), (33, 62), (28, 50)))
def test_keys_without_a_recorded_note(tmp_path, low, high):
    "Many a SoundFont ends before our written range does: the nearest recorded note lends itself, if it is near."
    path = put(tmp_path/"short.sf2", soundfont([43], settings=[(43, low + 256 * high)]))
    assert instruments_of(path) == (("double_bass",) if high > 53 else ())
    keys = (low - 5, low - 1, low, high, high + 1, high + 7)
    x = render_notes("double_bass", [(k, i, i + 0.9) for i, k in enumerate(keys)], 6., bend=[(0, 30)], soundfont=path)
    for i, k in enumerate(keys): assert abs(cents_off(x[44100 * i + 4000:44100 * i + 36000], k) - 34) < 5
    assert abs(render_notes("double_bass", [(high + 9, 0, 1)], 1., soundfont=path)).max() < 1e-3  # too far from any


@pytest.mark.parametrize("zone", ("settings", "common"))
def test_velocities_without_a_recorded_note(tmp_path, zone):
    "A note that is recorded for soft keys alone lends itself to soft keys alone, whichever zone says so."
    path = put(tmp_path/"soft.sf2", soundfont([71], **{zone: [(43, 56 + 256 * 70), (44, 0 + 256 * 60)]}))
    soft, hard = (render_notes("clarinet", [(74, 0, 1, velocity)], 1., soundfont=path) for velocity in (50, 100))
    assert abs(pitch(soft, 74) - 4) < 5 and abs(hard).max() < 1e-3


def test_every_note_has_its_player():
    "Borrowed from as far as can be, on both sides, each note keeps its own bend."
    from cargan.sound import BORROW, borrowed
    sounding = np.zeros((128, 128), bool); sounding[60] = True
    notes = [(key, 0, 1) for key in range(128)]
    assert sorted(set(borrowed(sounding, notes))) == list(range(-BORROW, BORROW + 1)) and 2 * BORROW + 1 <= 15  # the channels of MIDI
    assert borrowed(np.zeros((128, 128), bool), notes) == [0] * 128


@pytest.mark.parametrize("compressed", (False, True))
@pytest.mark.parametrize("at", (0.3, 0.6, 0.9, 0.999))
def test_a_file_that_broke_off(tmp_path, compressed, at):
    data = soundfont(compressed=compressed)
    path = put(tmp_path/"cut.sf3", data[:int(at * len(data))])
    with pytest.raises(CarganError, match="cut.sf3 cannot be played, because it is damaged"):
        render_notes("oboe", [(70, 0, 1)], 1., soundfont=path)


def test_damaged_tables(tmp_path):
    "Whatever stands in a SoundFont's tables, its program is cut out whole or refused in one sentence."
    data, rng, refused = soundfont([40, 68]), np.random.default_rng(0), 0
    for i in range(60):
        bad = bytearray(data)
        for at in rng.integers(data.index(b"pdta"), len(bad), 4): bad[at] = rng.integers(256)
        path = put(tmp_path/f"{i}.sf3", bytes(bad))
        try: assert soundfont_bytes("oboe", path=path)[1][:4] == b"RIFF"
        except CarganError as e: refused += 1; assert path in str(e)
    assert 5 < refused < 60


@pytest.mark.parametrize("loop", ((20000, 2000), (0, 0), (500, 4_000_000_000)))
def test_a_loop_that_cannot_be(tmp_path, loop):
    "The whole note is played again and again instead; the renderer would panic."
    data = soundfont([68]).replace(struct.pack("<II", 2000, 20000), struct.pack("<II", *loop))
    assert abs(pitch(render_notes("oboe", [(69, 0, 1)], 1., soundfont=put(tmp_path/"loop.sf2", data)), 69)) < 9


def test_a_renderer_that_panics(tmp_path, monkeypatch):
    "A panic of the library is no `Exception`, and still one sentence."
    class PanicException(BaseException): pass
    def panic(font, midi): raise PanicException("index out of bounds")
    monkeypatch.setattr(cargan.sound, "midi_renderer", lambda: panic)
    with pytest.raises(CarganError, match="cannot be played"): render_notes("oboe", [(70, 0, 1)], 1.)


def test_a_new_file_is_read_anew(tmp_path):
    path = put(tmp_path/"font.sf2", soundfont([40]))
    assert instruments_of(path) == ("violin",)
    put(tmp_path/"font.sf2", soundfont([68]))
    assert instruments_of(path) == ("oboe",)


@pytest.mark.parametrize("index", (False, True))
def test_recorded_notes(tmp_path, index):
    keys = dict(A4=69, Cs4=61, Bb5=82, E3=52)
    folder = tmp_path/"my notes"
    for name, key in keys.items(): note(folder/("oboe" if not index else "x")/f"{name}.wav", key)
    (folder/"piano").mkdir(); (folder/"piano"/"A4.wav").write_bytes(b"")  # nobody asks for it
    if index: (folder/"index.csv").write_text("file,instrument,midi_key\n" + "".join(f"x/{n}.wav,oboe,{k}\n" for n, k in keys.items()))
    assert instruments_of(str(folder)) == ("oboe",)
    play = find_maker(str(folder)).player(None, 100)
    for key in range(56, 89, 4): assert abs(pitch(play("oboe", [(key, 0, 2)], 2.), key)) < 8  # longer than the recordings
    bent = play("oboe", [(70, 0, 2)], 2., bend=[(0, 0), (1, 0), (1.001, 90), (2, 90)])
    assert abs(pitch(bent[:40000], 70)) < 8 and abs(pitch(bent[48000:], 71) + 10) < 8
    assert other_recording("oboe", 0, str(folder)).label.tolist().count(INSTRUMENTS.index("oboe")) >= 1


def test_recorded_notes_too_far_apart(tmp_path):
    note(tmp_path/"notes"/"flute"/"C4.wav", 60)  # the range of a flute ends 33 semitones higher
    assert instruments_of(str(tmp_path/"notes")) == ()


@pytest.mark.parametrize("what", ("nothing", "empty folder", "text", "index"))
def test_what_is_no_maker(tmp_path, what):
    path = tmp_path/"x"
    if what == "empty folder": path.mkdir()
    if what == "text": path.write_text("violin")
    if what == "index": put(path/"index.csv", b"file,who\na.wav,violin\n")
    said = "needs the columns" if what == "index" else "there is no maker .*give one of TimGM6mb, Merlin, formants"
    with pytest.raises(CarganError, match=said): other_sounds(5, makers=(str(path),))


def test_no_phrase_of_a_data_set(monkeypatch):
    "No generator that a recording of `cargan synth` starts from is used, whatever its seed."
    seeded = []
    def spy(*names): seeded.append(names); return stable_rng(*names)
    monkeypatch.setattr(cargan.sound, "stable_rng", spy)
    for maker in cargan.makers.MAKERS: other_recording("oboe", 1, maker, cfg=PhraseConfig(windows=1))
    assert not [names for names in seeded if names[0] == "recording"]
    state = lambda rng: str(rng.bit_generator.state["state"])
    synth = {state(stable_rng("recording", i, p, 10_000 * seed + song)) for i in INSTRUMENTS[::4] for p in range(5)
             for seed in (*range(4), 100, 300) for song in range(1, 21)}
    ear = {state(phrase_rng(i, take, m, seed)) for i in INSTRUMENTS for take in range(20) for m in cargan.makers.MAKERS
           for seed in range(4)}
    assert len(ear) == 13 * 20 * 3 * 4 and not synth & ear


def test_same_seed_same_windows():
    cfg = PhraseConfig(windows=2)
    one, two = other_sounds(30, 5, cfg=cfg, workers=1), other_sounds(40, 5, cfg=cfg, workers=3)
    for f in fields(Lessons): assert (getattr(one, f.name) == getattr(two[:30], f.name)).all()
    assert len(one) == 30 and not (one.lms_db[:4] == other_sounds(4, 6, cfg=cfg).lms_db).all()
    assert one.recording.tolist() == [j // 2 for j in range(30)]


def test_makers_take_turns(tmp_path):
    "Each instrument goes round the makers that have it, and those that nobody has are left out."
    path = put(tmp_path/"one.sf2", soundfont([40, 68]))
    h = other_sounds(12, makers=(path,), cfg=PhraseConfig(windows=3, rest=0., alone=0.))
    assert set(h.label.tolist()) <= {INSTRUMENTS.index("oboe"), INSTRUMENTS.index("violin"), 13} and len(h) == 12


def test_score_and_sound_agree():
    "Where a window counts and has a note, that note is what is heard; where nobody plays, it is quiet."
    off, cfg = [], PhraseConfig(church=0., reach=0, noise=(-90., -80.))
    for name in ("violin", "clarinet", "tuba"):
        for take in range(3):
            wave, _, noise, first = render_phrase(name, take, "TimGM6mb", cfg=cfg)
            h = other_recording(name, take, cfg=cfg)
            assert abs(wave).max() <= 0.98
            for i in np.flatnonzero((h.counts & (h.note >= 0)).numpy()):
                a = round((first + 0.5 * i) * SAMPLE_RATE)
                off.append(cents_off(wave[a:a + 22050] / wave[a:a + 22050].std(), int(h.note[i])))
    assert len(off) > 20 and np.mean(np.abs(np.nan_to_num(off, nan=99)) < 50) > 0.9

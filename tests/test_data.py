"Readers, bundles, preparation, splits, order: properties that hold for any input, and every class of bad input."
import os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cargan.audio import load_audio
from cargan.bundle import Bundle, PrepareConfig, open_bundle, prepare, save_bundle
from cargan.core import INSTRUMENTS, CarganError, from_uint8
from cargan.data import EpochSampler, PairDataset, announce_rows, make_loader, open_data, split_recordings
from cargan.lms import log_mel
from cargan.sources import VideoConfig, cut_videos, load_picture, read_suburmp

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def toy_bundle(n=26, size=16, seed=0, **changes) -> Bundle:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 13
    ids = np.array([f"{INSTRUMENTS[l]}{i // 13 % 4:02d}_{500 + 100 * (i // 52)}" for i, l in enumerate(label)])
    return Bundle(**dict(image=rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), lms_db=rng.normal(-40, 15, (n, 128, 44)).astype(np.float16),
                         label=label.astype(np.int64), pair_id=ids) | changes)


def write_pair(root: Path, instrument: str, stem: str, split="train", seed=0, image_size=(65, 54)):
    "One pair in the released layout: a frame that is not square, a stereo sound."
    rng = np.random.default_rng(seed)
    for kind in ("img", "chunk"): (root/kind/split/instrument).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*image_size[::-1], 3), dtype=np.uint8)).save(root/"img"/split/instrument/f"{stem}.jpg")
    sf.write(root/"chunk"/split/instrument/f"{stem}.wav", np.repeat(rng.normal(0, .1, (22050, 1)), 2, 1), 44100, subtype="PCM_16")


@pytest.fixture
def layout(tmp_path):
    "Two recordings of two instruments; `test` for `validation`, as some copies say."
    root = tmp_path/"Sub-URMP"
    for seed, (instrument, song, split) in enumerate([("tuba", 0, "train"), ("cello", 0, "train"), ("tuba", 1, "test"), ("cello", 1, "test")]):
        for ms in (500, 600, 700): write_pair(root, instrument, f"{instrument}{song:02d}_{ms}", split, seed)
    return root


def one(root: Path, kind: str) -> Path: return sorted((root/kind).rglob("tuba00_600.*"))[0]


# ---- the bundle

@few
@given(n=st.integers(1, 30), size=st.sampled_from([8, 16]), folder=st.booleans(), split=st.booleans(), seed=st.integers(0, 99))
def test_bundle_survives_the_disk(n, size, folder, split, seed, tmp_path_factory):
    b = toy_bundle(n, size, seed, factors=dict(pitch=np.linspace(40, 70, n), articulation=np.array(["vibrato"] * n)),
                   split=np.array(["train", "validation"])[np.arange(n) % 2] if split else None)
    path = tmp_path_factory.mktemp("b")/("pairs" if folder else "pairs.npz")
    save_bundle(b, path)
    c = open_bundle(path)
    assert isinstance(c.image, np.memmap) == folder and len(c) == n
    for name in ("image", "lms_db", "label", "pair_id", "instruments", "recording", "split"): np.testing.assert_array_equal(getattr(b, name), getattr(c, name))
    assert c.factors.keys() == b.factors.keys() and all((c.factors[k] == v).all() for k, v in b.factors.items())
    some = np.random.default_rng(seed).permutation(n)[:max(1, n // 2)]
    np.testing.assert_array_equal(c.select(some).image, b.image[some])


def arrays_of(b: Bundle) -> dict: return {k: getattr(b, k) for k in ("image", "lms_db", "label", "pair_id", "instruments")}


SPOILED = {
    "image missing": dict(image=None), "lms_db missing": dict(lms_db=None), "label missing": dict(label=None), "pair_id missing": dict(pair_id=None), "instruments missing": dict(instruments=None),
    "image float": lambda b: dict(image=b.image.astype(float)), "image grey": lambda b: dict(image=b.image[..., :1]), "image not square": lambda b: dict(image=b.image[:, :-1]),
    "image flat": lambda b: dict(image=b.image.reshape(len(b), -1)), "image shorter": lambda b: dict(image=b.image[:-1]), "image without pixels": lambda b: dict(image=b.image[:, :0, :0]),
    "lms int": lambda b: dict(lms_db=b.lms_db.astype(int)), "lms flat": lambda b: dict(lms_db=b.lms_db[:, 0]), "lms shorter": lambda b: dict(lms_db=b.lms_db[1:]), "lms without frames": lambda b: dict(lms_db=b.lms_db[:, :, :0]),
    "lms NaN": lambda b: dict(lms_db=np.where(np.arange(44) == 3, np.float16(np.nan), b.lms_db)), "lms infinite": lambda b: dict(lms_db=b.lms_db * np.float16(np.inf)),
    "label float": lambda b: dict(label=b.label / 2), "label one-hot": lambda b: dict(label=np.eye(13, dtype=int)[b.label]), "label 13": lambda b: dict(label=b.label + 1), "label -1": lambda b: dict(label=b.label - 1),
    "label a number": dict(label=np.array(3)), "label text": lambda b: dict(label=b.label.astype(str)), "no pairs": lambda b: {k: v[:0] for k, v in arrays_of(b).items() if k != "instruments"},
    "instruments shuffled": lambda b: dict(instruments=b.instruments[::-1]), "instruments 12": lambda b: dict(instruments=b.instruments[:12]), "instruments a word": dict(instruments=np.array("tuba")),
    "pair_id a word": dict(pair_id=np.array("tuba00_500")), "pair_id shorter": lambda b: dict(pair_id=b.pair_id[:-1]), "pair_id pickled": lambda b: dict(pair_id=b.pair_id.astype(object)),
    "split of other words": lambda b: dict(split=np.array(["left", "right"])[b.label % 2]), "split shorter": lambda b: dict(split=np.array(["train"])),
    "recording table": lambda b: dict(recording=np.full((len(b), 2), "a")),
}


@pytest.mark.parametrize("folder", [False, True], ids=["npz", "folder"])
@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_bundle_is_refused(how, folder, tmp_path):
    b = toy_bundle()
    change = SPOILED[how]
    arrays = {k: v for k, v in (arrays_of(b) | (change(b) if callable(change) else change)).items() if v is not None}
    path = tmp_path/("b" if folder else "b.npz")
    if folder:
        path.mkdir()
        for k, v in arrays.items(): np.save(path/f"{k}.npy", v)
    else: np.savez(path, **arrays)
    with pytest.raises(CarganError, match=str(path)): open_bundle(path)


@few
@given(data=st.data())
def test_bundle_cut_anywhere_or_of_other_bytes(data, tmp_path_factory):
    "A bundle that was cut short, or has some bytes changed, is refused or still a valid bundle: never another kind of error."
    path = tmp_path_factory.mktemp("b")/"b.npz"
    save_bundle(toy_bundle(13, 8), path)
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()): raw = raw[:data.draw(st.integers(0, len(raw) - 1))]
    else:
        for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=20)): raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try: b = open_bundle(path)
    except CarganError as e: assert "\n" not in str(e)
    else: assert len(b) == 13


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.write_bytes(b""), lambda p: p.write_text("text" * 99), lambda p: p.mkdir()], ids=["missing", "empty", "text", "empty folder"])
def test_not_a_bundle(make, tmp_path):
    path = tmp_path/"b.npz"
    make(path)
    with pytest.raises(CarganError): open_bundle(path)


def test_names_of_the_split_are_normalised(tmp_path):
    b = toy_bundle()
    np.savez(tmp_path/"b.npz", **arrays_of(b), split=np.array(["train", "test"])[b.label % 2])
    b = open_bundle(tmp_path/"b.npz")
    assert set(b.split) == {"train", "validation"} and len(b.subset("validation")) == (b.label % 2).sum() == len(split_recordings(b)[1])


# ---- reading the released layout

def test_reads_the_released_layout(layout, tmp_path):
    for root in (layout, layout.parent):  # the folder itself, or the one it was unpacked into
        pairs, problems = read_suburmp(root)
        assert problems == {} and len(pairs) == 12
        assert {p.split for p in pairs} == {"train", "validation"} and {p.instrument for p in pairs} == {"tuba", "cello"}
    b = open_bundle(prepare(PrepareConfig(layout, tmp_path/"b.npz", size=32)))
    assert (b.image.shape, b.image.dtype, b.lms_db.shape, b.lms_db.dtype, b.label.dtype) == ((12, 32, 32, 3), np.uint8, (12, 128, 44), np.float16, np.int64)
    for i, name in enumerate(b.pair_id):
        assert INSTRUMENTS[b.label[i]] == str(name)[:-6] and b.recording[i] == str(name)[:-4]
        sound = next(layout.glob(f"chunk/*/*/{name}.wav"))
        np.testing.assert_allclose(b.lms_db[i], log_mel(load_audio(sound)).numpy(), atol=.04)  # float16 at -100
    train, held = split_recordings(b)
    assert set(b.recording[train]) == {"tuba00", "cello00"} and set(b.recording[held]) == {"tuba01", "cello01"}


@pytest.mark.parametrize("part", [256, 5], ids=["one part", "three parts"])
def test_any_number_of_processes_gives_the_same_bytes(part, layout, tmp_path, monkeypatch):
    import cargan.bundle as d
    monkeypatch.setattr(d, "PART", part)
    a, b, folder = (prepare(PrepareConfig(layout, tmp_path/name, size=16, workers=w)) for name, w in (("a.npz", 1), ("b.npz", 2), ("c", 2)))
    assert a.read_bytes() == b.read_bytes()
    a, c = open_bundle(a), open_bundle(folder)
    for name in ("image", "lms_db", "label", "pair_id", "recording", "split"): np.testing.assert_array_equal(getattr(a, name), getattr(c, name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Sub-URMP", "a.npz", "b.npz", "c"]  # nothing is left lying about


def test_a_process_that_dies_is_one_sentence_and_can_be_made_good(layout, tmp_path, monkeypatch):
    import cargan.bundle as d
    load, cfg, here = d.load_picture, PrepareConfig(layout, tmp_path/"b.npz", size=16, workers=2), os.getpid()
    def deadly(path, *a):
        if path.stem == "tuba01_700" and os.getpid() != here: os.kill(os.getpid(), signal.SIGKILL)
        return load(path, *a)
    monkeypatch.setattr(d, "PART", 2); monkeypatch.setattr(d, "load_picture", deadly)
    with pytest.raises(CarganError, match="reading processes died.*--workers 1") as e: prepare(cfg)
    assert "\n" not in str(e.value) and not cfg.out.exists()
    again = prepare(replace(cfg, workers=1))
    monkeypatch.undo()
    assert again.read_bytes() == prepare(replace(cfg, out=tmp_path/"whole.npz")).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Sub-URMP", "b.npz", "whole.npz"]


def test_what_fails_in_a_process_is_said_as_it_would_be_here(layout, tmp_path, monkeypatch):
    import cargan.bundle as d
    def full(path, obj): raise CarganError(f"cannot write {path} (No space left on device); check the disk and the permissions")
    monkeypatch.setattr(d, "PART", 2); monkeypatch.setattr(d, "write_json", full)
    for workers in (1, 2):
        with pytest.raises(CarganError, match="^cannot write .*part_00000.json .No space left") as e: prepare(PrepareConfig(layout, tmp_path/"b.npz", size=16, workers=workers))
        assert "\n" not in str(e.value) and not (tmp_path/"b.npz").exists()


def wav(path: Path, x, rate=44100, **kw): sf.write(path, x, rate, **kw)


DAMAGE = {  # what happened -> (how, words of the message)
    "picture missing": (lambda i, s: i.unlink(), "no picture"), "sound missing": (lambda i, s: s.unlink(), "no sound"),
    "picture empty": (lambda i, s: i.write_bytes(b""), "empty"), "sound empty": (lambda i, s: s.write_bytes(b""), "empty"),
    "picture truncated": (lambda i, s: i.write_bytes(i.read_bytes()[:700]), "decoded"), "sound truncated": (lambda i, s: s.write_bytes(s.read_bytes()[:20000]), "sound"),
    "picture is text": (lambda i, s: i.write_text("text" * 99), "decoded"), "sound is text": (lambda i, s: s.write_text("text" * 99), "sound"),
    "picture is a GIF": (lambda i, s: Image.new("RGB", (9, 9)).save(i, format="GIF"), "decoded"), "sound is a picture": (lambda i, s: s.write_bytes(i.read_bytes()), "sound"),
    "picture is a folder": (lambda i, s: (i.unlink(), i.mkdir()), "folder"), "sound is a folder": (lambda i, s: (s.unlink(), s.mkdir()), "folder"),
    "picture too large": (lambda i, s: Image.new("1", (9000, 9000)).save(i, format="PNG"), "pixels"),
    "sound NaN": (lambda i, s: wav(s, np.full(22050, np.nan), subtype="FLOAT"), "finite"), "sound too long": (lambda i, s: wav(s, np.zeros(44100)), "lasts 1.000 s"),
    "sound too short": (lambda i, s: wav(s, np.zeros(9000)), "lasts"), "sound without samples": (lambda i, s: wav(s, np.zeros(0)), "sound"),
    "a link to nowhere": (lambda i, s: (i.unlink(), i.symlink_to("nowhere")), "exist"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_files_are_named_or_skipped(what, layout, tmp_path):
    how, words = DAMAGE[what]
    how(one(layout, "img"), one(layout, "chunk"))
    cfg = PrepareConfig(layout, tmp_path/"b.npz", size=16)
    with pytest.raises(CarganError, match="tuba00_600") as e: prepare(cfg)
    assert words in str(e.value) and "1 files" in str(e.value).replace("1 file ", "1 files ") and not cfg.out.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["Sub-URMP"]  # no trace of the attempt
    b = open_bundle(prepare(replace(cfg, skip_bad=True)))
    assert len(b) == 11 and "tuba00_600" not in b.pair_id


def test_all_damaged_files_are_counted(layout, tmp_path):
    for p in sorted(layout.rglob("tuba*.jpg")): p.write_text("text")
    with pytest.raises(CarganError, match="6 ") as e: prepare(PrepareConfig(layout, tmp_path/"b.npz", size=16))
    assert "tuba01_500" in str(e.value) and len(str(e.value)) < 2000
    listing = (tmp_path/"b.npz.problems.txt").read_text()
    assert len(listing.splitlines()) == 6 and all(p.stem in listing for p in layout.rglob("tuba*.jpg"))


def test_nothing_usable_is_an_error_even_when_skipping(layout, tmp_path):
    for p in layout.rglob("*.jpg"): p.write_text("text")
    with pytest.raises(CarganError): prepare(PrepareConfig(layout, tmp_path/"b.npz", size=16, skip_bad=True))
    assert not (tmp_path/"b.npz").exists()


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: (p/"img"/"train"/"tuba").mkdir(parents=True), lambda p: [(p/k/"train"/"tuba").mkdir(parents=True) for k in ("img", "chunk")]],
                         ids=["missing", "empty", "no chunk", "no files"])
def test_not_a_data_set(make, tmp_path):
    make(tmp_path/"data")
    with pytest.raises(CarganError): prepare(PrepareConfig(tmp_path/"data", tmp_path/"b.npz"))
    assert not (tmp_path/"b.npz").exists()


def test_unwritable_folder(layout, tmp_path):
    (tmp_path/"file").write_text("in the way")
    with pytest.raises(CarganError, match="file"): prepare(PrepareConfig(layout, tmp_path/"file"/"b.npz"))
    with pytest.raises(CarganError): save_bundle(toy_bundle(), tmp_path/"file"/"b.npz")


@pytest.mark.parametrize("split", [["tuba00_500"], []])
def test_factors_must_know_every_pair(split, layout, tmp_path):
    (layout/"factors.csv").write_text("\n".join(["pair_id,pitch", *(f"{s},40" for s in split)]) + "\n")
    with pytest.raises(CarganError, match="factors.csv"): prepare(PrepareConfig(layout, tmp_path/"b.npz", size=16))


@pytest.mark.parametrize("text", ["", "pair_id,pitch\n" + "tuba00_500,1\n" * 2, "a,b\n1,2\n", "pair_id,pitch\ntuba00_500,1,2,3\n", "\x00\xff"], ids=["empty", "twice", "other columns", "ragged", "binary"])
def test_broken_factors(text, layout, tmp_path):
    (layout/"factors.csv").write_text(text, encoding="latin1")
    with pytest.raises(CarganError, match="factors.csv"): prepare(PrepareConfig(layout, tmp_path/"b.npz", size=16))


def test_factors_come_along(layout, tmp_path):
    names = sorted(p.stem for p in layout.rglob("*.jpg"))
    (layout/"factors.csv").write_text("pair_id,recording,performer,pitch,articulation\n" + "".join(f"{n},r{i // 3},7,{i if i else ''},vibrato\n" for i, n in enumerate(names)))
    b = open_bundle(prepare(PrepareConfig(layout, tmp_path/"b.npz", size=16)))
    order = np.argsort(b.pair_id)
    assert list(b.recording[order]) == [f"r{i // 3}" for i in range(12)] and set(map(str, b.performer)) == {"7"}
    np.testing.assert_array_equal(b.factors["pitch"][order], [np.nan, *range(1, 12)])


KILLED = """
import sys, time
import cargan.bundle as d
slow = d.load_picture
def load(*a): time.sleep(.2); return slow(*a)
d.load_picture, d.PART = load, 2
from pathlib import Path
d.prepare(d.PrepareConfig(Path(sys.argv[1]), Path(sys.argv[2]), size=16, workers=1))
"""


def test_killed_in_the_middle_and_taken_up_again(layout, tmp_path, monkeypatch):
    "SIGKILL after the first parts: no bundle; the second run reads only what is missing, and ends with the same bytes."
    import cargan.bundle as d
    whole, out = prepare(PrepareConfig(layout, tmp_path/"whole.npz", size=16)), tmp_path/"out.npz"
    process = subprocess.Popen([sys.executable, "-c", KILLED, layout, out], stderr=subprocess.DEVNULL)
    parts = lambda: list(tmp_path.glob(".out.npz*/part_*.json"))
    while len(parts()) < 2 and process.poll() is None: time.sleep(.01)
    process.send_signal(signal.SIGKILL); process.wait()
    done, read, load = len(parts()), [], d.load_picture
    assert 2 <= done < 6 and not out.exists()
    monkeypatch.setattr(d, "PART", 2)
    monkeypatch.setattr(d, "load_picture", lambda *a: read.append(a[0]) or load(*a))
    prepare(PrepareConfig(layout, out, size=16, workers=1))
    assert len(read) == 12 - 2 * done
    assert out.read_bytes() == whole.read_bytes() and not list(tmp_path.glob(".*"))


def test_a_finished_bundle_is_not_made_again_nor_overwritten(layout, tmp_path, capsys):
    cfg = PrepareConfig(layout, tmp_path/"b.npz", size=16)
    before = prepare(cfg).stat()
    assert prepare(cfg).stat().st_mtime_ns == before.st_mtime_ns and "up to date" in capsys.readouterr().out
    with pytest.raises(CarganError, match="exists"): prepare(replace(cfg, size=32))
    write_pair(layout, "tuba", "tuba00_900")
    with pytest.raises(CarganError, match="exists"): prepare(cfg)


@few
@given(w=st.integers(1, 90), h=st.integers(1, 90), size=st.integers(1, 70), fit=st.sampled_from(["squeeze", "crop"]), mode=st.sampled_from(["RGB", "L", "RGBA", "P", "CMYK", "1", "I;16"]),
       kind=st.sampled_from(["JPEG", "PNG"]))
def test_any_picture_becomes_a_square(w, h, size, fit, mode, kind, tmp_path_factory):
    if kind == "JPEG" and mode in ("RGBA", "P", "I;16") or kind == "PNG" and mode == "CMYK": return
    path = tmp_path_factory.mktemp("p")/f"a.{kind.lower()}"
    Image.new(mode, (w, h)).save(path, format=kind)
    img = load_picture(path, size, fit)
    assert (img.shape, img.dtype) == ((size, size, 3), np.uint8)


# ---- the authors' list

def write_list(path: Path, rows) -> Path:
    hot = lambda i: ", ".join("1" if j == i else "0" for j in range(13))
    path.write_text("".join(f"{lms}||{hot(INSTRUMENTS.index(name))}||{image}\n" for lms, name, image in rows))
    return path


@pytest.fixture
def author_list(tmp_path):
    import matplotlib.pyplot as plt
    rows = []
    for i, name in enumerate(("tuba", "cello", "oboe")):
        x = np.linspace(0, 1, 256)[None, :] * np.linspace(.5, 1, 256)[:, None]
        Image.fromarray(plt.get_cmap("jet")(x, bytes=True)[..., :3]).save(tmp_path/f"lms{i}.png")
        Image.fromarray(np.full((256, 256, 3), 80 * i, np.uint8)).save(tmp_path/f"{name}00_{500 * i + 500}.jpg")
        rows.append((f"lms{i}.png", name, f"{name}00_{500 * i + 500}.jpg"))
    return write_list(tmp_path/"pairs.txt", rows)


def test_reads_the_authors_list(author_list, tmp_path):
    b = open_bundle(prepare(PrepareConfig(author_list, tmp_path/"b.npz", size=16)))
    assert [INSTRUMENTS[l] for l in b.label] == ["tuba", "cello", "oboe"] and list(b.recording) == ["tuba00", "cello00", "oboe00"]
    assert abs(b.image[2].astype(int) - 160).max() <= 2 and np.isfinite(b.lms_db.astype(float)).all()
    lms = b.lms_db[0].astype(float)
    assert lms[-10:].mean() > lms[:10].mean() + 50  # frequency goes to the right in their pictures, upwards in ours


BAD_LINES = {"two cells": "a.png||b.jpg", "twelve numbers": "lms0.png||" + ", ".join("0" * 11 + "1") + "||tuba00_500.jpg", "no hot": "lms0.png||" + ", ".join("0" * 13) + "||tuba00_500.jpg",
             "two hot": "lms0.png||" + ", ".join("11" + "0" * 11) + "||tuba00_500.jpg", "words": "lms0.png||tuba||tuba00_500.jpg", "missing picture": "lms0.png||" + ", ".join("1" + "0" * 12) + "||none.jpg",
             "missing lms": "none.png||" + ", ".join("1" + "0" * 12) + "||tuba00_500.jpg", "lms is text": "pairs.txt||" + ", ".join("1" + "0" * 12) + "||tuba00_500.jpg"}


@pytest.mark.parametrize("how", BAD_LINES)
def test_bad_lines_are_named_or_skipped(how, author_list, tmp_path):
    author_list.write_text(author_list.read_text() + BAD_LINES[how] + "\n")
    cfg = PrepareConfig(author_list, tmp_path/"b.npz", size=16)
    with pytest.raises(CarganError): prepare(cfg)
    assert len(open_bundle(prepare(replace(cfg, skip_bad=True)))) == 3


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01" * 50, b"hello\n", b"\n\n"], ids=["empty", "binary", "prose", "blank"])
def test_not_a_list(content, tmp_path):
    (tmp_path/"pairs.txt").write_bytes(content)
    with pytest.raises(CarganError): prepare(PrepareConfig(tmp_path/"pairs.txt", tmp_path/"b.npz"))


def spoil_png(p: Path):
    raw = bytearray(p.read_bytes()); raw[40:60] = bytes(20); p.write_bytes(raw)


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(p.read_bytes()[:200]), lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"text" * 99), spoil_png,
                                   lambda p: Image.new("1", (20000, 20000)).save(p), lambda p: (p.unlink(), p.mkdir())], ids=["truncated", "empty", "text", "chunk damaged", "bomb", "folder"])
def test_spoiled_spectrogram_picture(spoil, author_list, tmp_path):
    spoil(tmp_path/"lms0.png")
    cfg = PrepareConfig(author_list, tmp_path/"b.npz", size=16)
    with pytest.raises(CarganError, match="lms0.png"): prepare(cfg)
    assert len(open_bundle(prepare(replace(cfg, skip_bad=True)))) == 2


# ---- which pairs are held out, and in which order they are seen

@few
@given(n=st.integers(1, 120), fraction=st.floats(0, .9), seed=st.integers(0, 999))
def test_recordings_are_never_shared(n, fraction, seed):
    b = toy_bundle(n, 8)
    train, held = split_recordings(b, fraction, seed)
    assert sorted([*train, *held]) == list(range(n))
    assert not set(b.recording[train]) & set(b.recording[held])
    assert set(b.label[held]) <= set(b.label[train])  # nobody is asked about an instrument that was never seen
    again = split_recordings(b, fraction, seed)
    np.testing.assert_array_equal(train, again[0])


@few
@given(n=st.integers(1, 200), batch=st.integers(1, 16), world=st.integers(1, 4), start=st.integers(0, 8), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_order_is_a_function_of_seed_and_epoch(n, batch, world, start, seed, epoch):
    make = lambda rank=0, start=0, world=world, batch=batch: list(EpochSampler(n, batch, seed, epoch, start, rank, world))
    shares = [make(r) for r in range(world)]
    together = [[i for share in step for i in share] for step in zip(*shares)]
    assert together == make(world=1, batch=batch * world)  # the processes together see what one would
    assert make(start=start) == shares[0][start:] and len(EpochSampler(n, batch, seed, epoch, start, 0, world)) == len(shares[0][start:])
    flat = [i for step in together for i in step]
    assert len(set(flat)) == len(flat) == n // (batch * world) * batch * world and set(flat) <= set(range(n))


def test_epochs_differ_and_the_global_random_state_is_not_touched():
    assert list(EpochSampler(64, 8, 0, 0)) != list(EpochSampler(64, 8, 0, 1)) != list(EpochSampler(64, 8, 1, 1))
    torch.manual_seed(3); np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for batch in make_loader(PairDataset(toy_bundle(), 16), EpochSampler(26, 4)): pass
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("lms, channels", [("db", 1), ("jet", 3)])
@pytest.mark.parametrize("folder", [False, True], ids=["npz", "folder"])
def test_batches(lms, channels, folder, tmp_path):
    path = tmp_path/("b" if folder else "b.npz")
    save_bundle(toy_bundle(), path)
    b = open_bundle(path)
    batch = PairDataset(b, 16, lms=lms).__getitems__([5, 3, 5])
    assert batch["mel"].shape == (3, channels, 16, 16) and batch["image"].shape == (3, 3, 16, 16) and batch["label"].tolist() == [5, 3, 5]
    assert all(batch[k].dtype == torch.float32 and -1 <= batch[k].min() <= batch[k].max() <= 1 for k in ("mel", "image"))
    assert torch.equal(batch["image"], from_uint8(np.asarray(b.image[[5, 3, 5]])))
    assert PairDataset(b, 8, lms=lms)[3]["image"].shape == (3, 8, 8)


def test_rows_are_announced_of_memory_maps_alone_and_never_in_the_way(tmp_path):
    save_bundle(toy_bundle(), tmp_path/"b")
    b = open_bundle(tmp_path/"b")
    for rows in (b.image, toy_bundle().image): announce_rows(rows, np.array([0, 25, -1]))
    (tmp_path/"b").rename(tmp_path/"moved")
    assert torch.equal(PairDataset(b, 16).__getitems__([-1, 3])["image"], from_uint8(toy_bundle().image[[-1, 3]]))


def test_worker_processes_change_nothing(tmp_path):
    save_bundle(toy_bundle(), tmp_path/"b")
    dataset = PairDataset(open_bundle(tmp_path/"b"), 16)
    here, there = ([b for b in make_loader(dataset, EpochSampler(26, 6), workers=w)] for w in (0, 2))
    assert len(here) == len(there) == 4 and all(torch.equal(a[k], b[k]) for a, b in zip(here, there) for k in a)


def test_data_folder_on_the_fly(layout):
    b = open_data(layout, 16)
    assert b.image.shape == (12, 16, 16, 3)


# ---- films

def write_film(path: Path, seconds=2.2, fps=25, rate=44100, delay=0., sound=True, picture=True):
    "Frames whose brightness is their time, under a tone that switches on in the second second."
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as film:
        v = film.add_stream("mpeg4", rate=fps) if picture else None
        a = film.add_stream("aac", rate=rate, layout="mono") if sound else None
        if v: v.width, v.height, v.pix_fmt = 64, 48, "yuv420p"
        for k in range(round(seconds * fps) if v else 0):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * k, np.uint8), format="rgb24")
            frame.pts = k + round(delay * fps)
            film.mux(v.encode(frame))
        if v: film.mux(v.encode())
        t = np.arange(round(seconds * rate)) / rate
        x = (.5 * np.sin(2 * np.pi * 440 * t) * (t >= 1)).astype(np.float32)
        for at in range(0, len(x) if a else 0, 1024):
            frame = av.AudioFrame.from_ndarray(x[None, at:at + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, at + round(delay * rate)
            film.mux(a.encode(frame))
        if a: film.mux(a.encode())


@pytest.mark.parametrize("name, rate, delay", [("a.mp4", 44100, 0), ("a.mkv", 48000, 0), ("b.mkv", 22050, 0), ("a.mov", 48000, 0), ("a.ts", 48000, 3.)])
def test_films_become_pairs(name, rate, delay, tmp_path):
    write_film(tmp_path/"films"/"tuba"/name, rate=rate, delay=delay)
    out = cut_videos(VideoConfig(tmp_path/"films", tmp_path/"out", hop_ms=500))
    pairs, problems = read_suburmp(out)
    assert [p.pair_id for p in sorted(pairs, key=lambda p: int(p.pair_id.split("_")[1]))] == ["tuba00_500", "tuba00_1000", "tuba00_1500", "tuba00_2000"] and not problems
    for p in pairs:
        begin = int(p.pair_id.split("_")[1]) / 1000 - .5
        assert sf.info(p.sound).frames == 22050 and sf.info(p.sound).channels == 2
        assert abs(np.asarray(Image.open(p.image)).mean() - 4 * begin * 25) < 9, p.pair_id  # the first frame of its half second
        loud = np.abs(sf.read(p.sound)[0]).mean()
        assert (loud > .2) if begin >= 1 else (loud < .05), (p.pair_id, loud)
    assert len(open_data(out, 16)) == 4


BAD_FILMS = {"text": lambda p: p.write_text("text" * 99), "empty": lambda p: p.write_bytes(b""), "no sound": lambda p: write_film(p, sound=False), "no picture": lambda p: write_film(p, picture=False),
             "truncated": lambda p: (write_film(p), p.write_bytes(p.read_bytes()[:3000])), "shorter than a window": lambda p: write_film(p, seconds=.3)}


@pytest.mark.parametrize("how", BAD_FILMS)
def test_bad_films_are_named(how, tmp_path):
    path = tmp_path/"films"/"tuba"/"a.mp4"
    path.parent.mkdir(parents=True)
    BAD_FILMS[how](path)
    with pytest.raises(CarganError, match="a.mp4"): cut_videos(VideoConfig(tmp_path/"films", tmp_path/"out"))
    assert not (tmp_path/"out").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["films"]


# ---- the real data, where they are at hand

def test_real_bundle(real_data):
    path = real_data/"suburmp_real"/"pairs.npz"
    b = open_bundle(path)
    assert len(b) == 591 and b.image.shape[1:] == (128, 128, 3) and b.lms_db.shape[1:] == (128, 44) and set(b.label) == set(range(13))
    train, held = split_recordings(b)
    assert len(train) + len(held) == 591 and 60 < len(held) < 180 and set(b.label[held]) == set(range(13))
    batch = PairDataset(b, 64).__getitems__(held[:32])
    assert batch["mel"].shape == (32, 1, 64, 64) and batch["mel"].std() > .1


def test_real_authors_sample(real_data, tmp_path):
    "The 26 pairs the authors ship, through a list file as their code reads it."
    sample = real_data/"car_gan_sample"
    images = sorted(sample.glob("img_256/train/*/*.jpg"))
    rows = [(sample/"spectram"/"train"/p.parent.name/f"{p.stem}.png", p.parent.name, p) for p in images]
    b = open_bundle(prepare(PrepareConfig(write_list(tmp_path/"pairs.txt", rows), tmp_path/"b.npz", size=64)))
    assert len(b) == 26 and b.image.shape == (26, 64, 64, 3) and (np.bincount(b.label) == 2).all()
    assert len(set(b.recording)) == 13
    lms = b.lms_db.astype(float)
    assert (lms.max((1, 2)) - lms.min((1, 2)) > 100).all()  # each clip fills the scale
    low, high = lms[:, :64].mean((1, 2)), lms[:, 64:].mean((1, 2))
    assert (low > high).mean() > .9  # music has its energy in the low bands


def test_real_jet_pictures_invert(real_data):
    "Colours inverted to numbers and painted again give nearly the same picture."
    from cargan.lms import jet_colours, jet_to_values
    for path in sorted(real_data.glob("car_gan_sample/spectram/train/*/*.png"))[:6]:
        rgb = np.asarray(Image.open(path).convert("RGB"))
        again = jet_colours().numpy()[np.round(jet_to_values(rgb) * 255).astype(int)]
        assert abs(again.astype(int) - rgb).mean() < 6


def test_real_chunks_in_the_released_layout(real_data, tmp_path):
    "Original chunks have no frames beside them here: both are reported, by name."
    with pytest.raises(CarganError): prepare(PrepareConfig(real_data/"suburmp_chunks", tmp_path/"b.npz"))

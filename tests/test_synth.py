"The embedded data set: the same bytes from any number of processes, whole or absent, splits that don't leak."
import csv, hashlib, os, signal, subprocess, sys, time

import numpy as np
import pytest
import soundfile as sf
from PIL import Image

from cargan.core import CarganError, INSTRUMENTS
from cargan.synth import Factors, RANGES, SynthConfig, draw_scene, plan_recordings, render_dataset, visible_cues

SMALL = dict(recordings=(1, 1), windows=2, size=32)


def digest(root):
    "One number for all names and bytes below `root`."
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return hashlib.sha1(b"".join(str(p.relative_to(root)).encode() + p.read_bytes() for p in files)).hexdigest()


def test_workers_do_not_matter(tmp_path):
    one, two = (render_dataset(SynthConfig(str(tmp_path/f"w{n}"), workers=n, **SMALL)) for n in (1, 2))
    assert digest(one) == digest(two)


def test_layout(tmp_path):
    root = render_dataset(SynthConfig(str(tmp_path/"d"), workers=1, **SMALL))
    table = list(csv.DictReader(open(root/"factors.csv")))
    assert len(table) == 13 * 2 * 2
    assert len(list(root.rglob("*.jpg"))) == len(table) == len(list((root/"chunk").rglob("*.wav")))
    for row in table:
        place = f"{row['split']}/{row['instrument']}/{row['pair_id']}"
        x, rate = sf.read(root/"chunk"/f"{place}.wav")
        assert rate == 44100 and x.shape == (22050, 2) and (x[:, 0] == x[:, 1]).all() and abs(x).max() > 0
        assert Image.open(root/"img"/f"{place}.jpg").size == (32, 32)
        lo, hi = RANGES[row["instrument"]]
        assert row["rest"] == "1" or lo <= float(row["pitch"]) <= hi


def test_killed_leaves_nothing_that_looks_finished(tmp_path):
    code = f"from cargan.synth import *\nrender_dataset(SynthConfig({str(tmp_path/'d')!r}, workers=1))"
    process = subprocess.Popen([sys.executable, "-c", code])
    while not list(tmp_path.rglob("*.jpg")) and process.poll() is None: time.sleep(0.1)
    process.send_signal(signal.SIGKILL); process.wait()
    assert not (tmp_path/"d").exists()
    assert render_dataset(SynthConfig(str(tmp_path/"d"), workers=1, **SMALL)).is_dir()


def test_something_else_in_the_way(tmp_path):
    (tmp_path/"d").mkdir(); (tmp_path/"d"/"thesis.txt").write_text("my only copy")
    with pytest.raises(CarganError, match="choose another"): render_dataset(SynthConfig(str(tmp_path/"d"), workers=1, **SMALL))
    assert os.listdir(tmp_path/"d") == ["thesis.txt"]


@pytest.mark.parametrize("split", ("recording", "performer"))
@pytest.mark.parametrize("imbalance", (False, True))
@pytest.mark.parametrize("recordings", ((15, 5), (15, 20), (1, 1), (7, 3)))
def test_splits(split, imbalance, recordings):
    cfg = SynthConfig("", split=split, imbalance=imbalance, recordings=recordings)
    jobs = plan_recordings(cfg)
    assert len({(j.instrument, j.song) for j in jobs}) == len(jobs)  # every recording is another phrase, on one side only
    assert {(j.instrument, j.split) for j in jobs} == {(k, s) for k in INSTRUMENTS for s in ("train", "validation")}
    people = [{(j.instrument, j.performer) for j in jobs if j.split == s} for s in ("train", "validation")]
    if split == "performer": assert not people[0] & people[1]
    if imbalance: assert abs(len(jobs) / (13 * sum(recordings)) - 1) < 0.5
    if recordings == (15, 20) and not imbalance: assert sum(j.split == "validation" for j in jobs) * cfg.windows >= 2048


@pytest.mark.parametrize("name", INSTRUMENTS)
@pytest.mark.parametrize("size", (16, 64, 101, 256))
def test_scene(name, size):
    f = Factors(name, 7, sum(RANGES[name]) / 2, 0.4)
    img = draw_scene(f, size)
    assert img.shape == (size, size, 3) and img.dtype == np.uint8 and (img == draw_scene(f, size)).all()
    assert all(0 <= v <= 1 for v in visible_cues(f).values())

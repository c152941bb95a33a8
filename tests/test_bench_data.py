"The benchmarks of sound and data: they run, what they write has every row, and impossible input is one sentence."
import json, subprocess, sys

import numpy as np
import pytest
import tyro

from conftest import ROOT

sys.path.insert(0, str(ROOT/"bench"))
import data as bench_data
import sound as bench_sound
from cargan.bundle import open_bundle
from cargan.core import CarganError


def test_sound(tmp_path, capsys):
    bench_sound.main(bench_sound.Sound(chunks=3, repeats=2, out=tmp_path/"sound.json"))
    rows = json.loads((tmp_path/"sound.json").read_text())
    assert [r["what"] for r in rows] == ["log_mel", *bench_sound.GOALS] and all(r["seconds"] > 0 and r["largest_gap_db"] < .05 for r in rows)
    assert "log-mels agree to" in capsys.readouterr().out


def test_data(tmp_path, tiny_data, capsys):
    (tmp_path/"results.json").write_text(json.dumps([dict(size=256, batch=2, what="ours", variant="sagan", images_per_s=.2, step_gflops=600.)]))
    bench_data.main(bench_data.Data(sizes=(256,), workers=(0, 1), batch=4, seconds=.05, loader_gb=.06, gb=.1, source=tiny_data/"data", results=tmp_path/"results.json",
                                    folder=tmp_path, out=tmp_path/"data.json"))
    rows = json.loads((tmp_path/"data.json").read_text())
    kinds = [r["what"] for r in rows]
    assert kinds.count("loader") == 4 and kinds.count("gpu") == 1 and kinds.count("growth") >= 4 and all(r["same_bytes"] for r in rows if r["what"] == "prepare")
    gpu = rows[kinds.index("gpu")]
    assert gpu["takes_per_s"] == pytest.approx(989e3 * .4 / 300) and gpu["workers_needed"] >= 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.json", "results.json"]  # the bundles are gone
    assert "pictures/s (assumed, not measured)" in capsys.readouterr().out


def test_a_bundle_of_the_benchmark_is_a_bundle(tmp_path):
    with bench_data.random_bundle(bench_data.Data(folder=tmp_path), 64, .02) as folder:
        b = open_bundle(folder)
        assert isinstance(b.image, np.memmap) and len(b) == 768 and len(np.unique(b.pair_id)) == 768
        bench_data.forget(folder); bench_data.remember(folder)
        assert (bench_data.opened(folder, True).image[5] == b.image[5]).all()


@pytest.mark.parametrize("bench, words", [(bench_sound, "--chunks 0"), (bench_sound, "--repeats -1"), (bench_data, "--batch 0"), (bench_data, "--gb -1"), (bench_data, "--workers -1"), (bench_data, "--sizes 0"),
                                          (bench_data, "--folder /dev/null/in"), (bench_data, "--gpu-share 0"), (bench_data, "--gb 1e9"), (bench_data, "--source nowhere")])
def test_impossible_input(bench, words):
    config = bench.Sound if bench is bench_sound else bench.Data
    with pytest.raises(CarganError): bench.main(tyro.cli(config, args=words.split()))


def test_an_error_is_one_line():
    done = subprocess.run([sys.executable, ROOT/"bench"/"sound.py", "--chunks", "0"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("sound: ") and done.stderr.count("\n") == 1

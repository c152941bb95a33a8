"The grid of runs: what it asks for, what it leaves, how it goes on, and whether the committed results are its own."
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image

from cargan import reproduce as house
from cargan.bundle import open_bundle, save_bundle
from cargan.cli import main
from cargan.controls import look_up
from cargan.core import CarganError, read_json
from cargan.methods import METHODS
from cargan.reproduce import COLUMNS, FIRST, GRID, LIMIT, ReproduceConfig, result_file, save_small, tasks_of
from conftest import ROOT

ASKED = ("data method model seed label n_test accuracy_true accuracy_predicted accuracy_none shuffled_follows_label shuffled_follows_audio follows_sound "
         "note_r2 loudness_r2 two_alternatives l1_coarse l1_fine ssim fd kid inception_score extractor seconds").split()
QUICK = ["--max-steps", "2", "--listen", "13", "--seeds", "0", "--device", "cpu"]
ROWS = ["cargan-E", "mean-plain"]


def command(folder, data, *more): return ["reproduce", "--data", str(data), "--out", str(folder/"results"), "--work", str(folder/"work"), *QUICK, *more]


@pytest.fixture(scope="module")
def done(once, tiny_data):
    "Two rows of the grid, each trained for two steps at most."
    def make(folder): assert main(command(folder, tiny_data/"data.npz", "--only", *ROWS)) == 0
    return once("reproduced", make)


def test_every_method_has_a_row():
    assert {r.method for r in GRID} == set(METHODS)
    three = {r.name for r in GRID if r.seeds == (0, 1, 2)}
    assert three >= {f"cargan-{m}" for m in ("A", "B", "C", "D", "E", "label-only", "no-label", "predicted-label", "label-dropout")}
    assert three >= {"s2ic-plain", "cmcgan-plain", "listener-plain"}
    names = [t.name for t in tasks_of()]
    assert len(set(names)) == len(names)


def test_a_line_holds_what_the_report_says(done):
    table = pd.read_csv(done/"results"/"data.csv")
    assert set(ASKED) <= set(table.columns) and list(table.method + "-" + table.model) == ROWS
    for _, line in table.iterrows():
        metrics = read_json(done/"work"/"data"/f"{line.method}-{line.model}-seed0-steps-2"/"metrics.json")
        for column, places in COLUMNS.items():
            value = look_up(metrics, places)
            if isinstance(value, (int, float)): assert line[column] == pytest.approx(value, rel=1e-4), column
            elif value is None: assert pd.isna(line[column]), column
            else: assert line[column] == value, column
        crossed = metrics["listening"]["shuffled audio"]
        known = dict(fd=metrics["fd"], fd_true=metrics["fd_true_label"], l1_fine=metrics["l1_fine"], l1_fine_true=metrics["l1_fine_true_label"],
                     note_r2=metrics["note_r2"], loudness_r2=metrics["loudness_r2"], n_test=metrics["n"], seconds_evaluation=metrics["seconds"],
                     shuffled_follows_label=crossed["follows_label"], shuffled_follows_audio=crossed["follows_audio"],
                     accuracy_none=metrics["listening"]["no label"]["follows_audio"], accuracy_true=metrics["accuracy_true_label"])
        for column, value in known.items(): assert line[column] == pytest.approx(value, rel=1e-4), column  # without the table of places
    E = table.iloc[0]
    missing = [c for c in table.columns if pd.isna(E[c])]
    assert missing == [], "CAR-GAN has every number"
    assert E.extractor == "EfficientNet-Lite0" and E.n_test > 30


def test_what_is_done_is_skipped(done, tiny_data, tmp_path, capsys):
    before = {p: p.stat().st_mtime_ns for p in (done/"results"/"runs").rglob("*.json")}
    assert main(command(done, tiny_data/"data.npz", "--only", *ROWS)) == 0
    assert {p: p.stat().st_mtime_ns for p in (done/"results"/"runs").rglob("*.json")} == before and len(before) == 2
    assert "1 of" not in capsys.readouterr().out


def test_cut_off_it_goes_on(done, tiny_data, monkeypatch):
    "Killed between the training and the result: the training is not done again, the result is the same."
    cfg = ReproduceConfig(done/"results", done/"work", tiny_data/"data.npz", max_steps=2, listen=13)
    file = result_file(cfg, next(t for t in tasks_of() if t.name == "mean-plain-seed0"))
    before = file.read_text()
    file.unlink()
    monkeypatch.setattr("cargan.training.fit", lambda *args: pytest.fail("it trains again"))
    assert main(command(done, tiny_data/"data.npz", "--only", "mean-plain")) == 0
    keep = lambda text: {k: v for k, v in json.loads(text)["line"].items() if not k.startswith("seconds")}
    assert keep(file.read_text()) == keep(before)


def test_results_of_other_settings_are_not_mixed(done, tiny_data, capsys):
    assert main([*command(done, tiny_data/"data.npz", "--only", "cargan-E"), "--max-steps", "3"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "was made with other settings (max_steps was 2, now 3)" in err


def test_old_results_are_left_out_and_named(done, tiny_data, capsys):
    "Of an older version, with another step size, say: not in the table, not in the .csv."
    file = done/"results"/"runs"/"data"/"cargan-E-seed0.json"
    before = file.read_text()
    result = json.loads(before)
    result["settings"]["lr"] = 0.5
    try:
        file.write_text(json.dumps(result))
        assert main(command(done, tiny_data/"data.npz", "--only", "mean-plain")) == 0
        assert main(command(done, tiny_data/"data.npz", "--only", "models", "--tables")) == 0
        assert "left out: result" in capsys.readouterr().out
    finally: file.write_text(before)


def test_other_data_under_the_same_name_are_refused(done, tiny_data, tmp_path, capsys):
    b = open_bundle(tiny_data/"data.npz")
    save_bundle(replace(b, lms_db=np.asarray(b.lms_db) + np.float16(1)), tmp_path/"data.npz")
    assert main(command(done, tmp_path/"data.npz", "--only", "mean-plain")) == 2
    assert "reproduce.known_as was" in capsys.readouterr().err
    assert main([*command(done, tiny_data/"data.npz"), "--name", "synthurmp"]) == 2
    assert "is the name of the embedded data" in capsys.readouterr().err


def test_a_run_that_fails_does_not_stop_the_others(tiny_data, tmp_path, monkeypatch, capsys):
    made = []
    def run_task(cfg, task, data):
        if task.row.model == "A": raise CarganError("loss G is not finite at step 1; lower the learning rate")
        made.append(task.name)
    monkeypatch.setattr(house, "run_task", run_task)
    assert main(command(tmp_path, tiny_data/"data.npz", "--only", "models")) == 2
    assert made == [f"cargan-{m}-seed0" for m in "EBCD"]
    assert "1 of 5 runs failed; the others are done. The first: cargan-A-seed0: loss G is not finite" in capsys.readouterr().err


def test_each_takes_what_no_other_has_taken(done, tiny_data, tmp_path, capsys):
    lock = FileLock(tmp_path/"work"/"locks"/"data-mean-plain-seed0.lock")
    (tmp_path/"work"/"locks").mkdir(parents=True)
    with lock: assert main(command(tmp_path, tiny_data/"data.npz", "--only", "mean-plain")) == 0
    assert "is being made by another process" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*seed0.json"))


def test_tables_of_what_is_finished(done, tiny_data, capsys):
    assert main(command(done, tiny_data/"data.npz", "--tables", "--only", "models")) == 0
    out = capsys.readouterr().out
    assert "cargan-E" in out and "(1)" in out and "cargan-A: 1 of 1 seeds not run" in out


def test_a_dry_run_trains_nothing(tmp_path, capsys):
    assert main(["reproduce", "--out", str(tmp_path/"r"), "--work", str(tmp_path/"w"), "--only", "cargan-D", "mean", "--dry-run"]) == 0
    plan = pd.read_csv(tmp_path/"r"/"plan_lab.csv", index_col="row")
    assert plan.seconds["cargan-D"] > 0 and plan.memory_gb["cargan-D"] > 0.01 and plan.pflop["mean-plain"] == 0
    assert not (tmp_path/"w").exists()
    assert main(["reproduce", "--out", str(tmp_path/"r"), "--tables", "--only", "cargan-D"]) == 0
    assert "cargan-D: 3 of 3 seeds not run; about" in capsys.readouterr().out


def test_embedded_data_are_rendered_once_and_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(house, "RECORDINGS", (2, 1))
    words = ["reproduce", "--out", str(tmp_path/"results"), "--work", str(tmp_path/"work"), *QUICK]
    assert main([*words, "--only", "mean-plain"]) == 0
    made = (tmp_path/"work"/"synthurmp.npz").stat().st_mtime_ns
    assert house.find_data(ReproduceConfig(tmp_path/"results", tmp_path/"work")).stat().st_mtime_ns == made
    sizes = {p.name: Image.open(p).size for p in (tmp_path/"results"/"pictures").glob("*.png")}
    assert sizes == {"mean-plain-seed0.png": (832, 64), "mean-plain-seed0-quiet.png": (832, 64), "real.png": (832, 128), "real-quiet.png": (832, 128)}
    line = pd.read_csv(tmp_path/"results"/"synthurmp.csv").iloc[0]
    assert line.data == "synthurmp" and line.n_test > 90


def test_pictures_are_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (128, 832, 3), np.uint8)
    save_small(tmp_path/"noise.png", noise)
    assert (tmp_path/"noise.png").stat().st_size <= LIMIT
    flat = np.full((64, 64, 3), 7, np.uint8)
    save_small(tmp_path/"flat.png", flat)
    assert (np.asarray(Image.open(tmp_path/"flat.png").convert("RGB")) == flat).all()


COMMITTED = sorted((ROOT/"results"/"runs").glob("*/*.json"))


def test_committed_tables_are_those_of_the_committed_results():
    assert COMMITTED
    for folder in sorted({p.parent for p in COMMITTED}):
        table = pd.read_csv(ROOT/"results"/f"{folder.name}.csv")
        lines = {t.name: read_json(f) for t in tasks_of() if (f := folder/f"{t.name}.json").exists()}
        assert len(lines) == len(list(folder.glob("*.json"))) == len(table)
        for (_, row), (name, result) in zip(table.iterrows(), lines.items()):
            assert f"{row.method}-{row.model}-seed{row.seed}" == name
            for k in (*FIRST, *COLUMNS):
                v = result["line"][k]
                if v is None: assert pd.isna(row[k]), (name, k)
                elif isinstance(v, str): assert row[k] == v
                else: assert row[k] == pytest.approx(v, rel=1e-4, abs=1e-9), (name, k)


def test_committed_results_are_of_todays_settings():
    "A preset that changed makes its old numbers wrong: run `cargan reproduce` again for them."
    cfg = ReproduceConfig(ROOT/"results")
    rows = [t for t in tasks_of() if (ROOT/"results"/"runs"/"synthurmp"/f"{t.name}.json").exists()]
    for task in rows: assert house.read_result(cfg, task) is not None
    synth = pd.read_csv(ROOT/"results"/"synthurmp.csv")
    assert (synth.n_test >= 2048).all() and synth.n_test.nunique() == 1
    assert all(p.stat().st_size <= LIMIT for p in (ROOT/"results"/"pictures").glob("*.png"))
    drawn = {p.stem for p in (ROOT/"results"/"pictures").glob("*-seed*.png")}
    assert drawn == {t.name for t in rows} | {f"{t.name}-quiet" for t in rows if t.seed == 0}


def test_the_notebook_shows_the_committed_numbers():
    "Tables and plan as they are committed stand in the outputs of the notebook: run tools/notebooks.py nbs/47_results.ipynb."
    from cargan.results import read_lines
    from cargan.reproduce import spread
    shown = (ROOT/"nbs"/"47_results.ipynb").read_text()
    found = spread(read_lines(ROOT/"results"), ("fd_true", "l1_fine_true", "accuracy_true"))
    for name in found.index[found.index.isin([f"cargan-{m}" for m in "ABCDE"])]:
        for cell in found.loc[name]: assert cell in shown, (name, cell)

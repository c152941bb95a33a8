"What several tests share: the repository, the real data beside it (if it is there), and one tiny trained run."
import os, shutil
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent/"shared"/"data"  # real frames and recordings, which cannot be part of the project

for name in ("RANK", "WORLD_SIZE", "IN_TEST", "IN_NOTEBOOK"): os.environ.pop(name, None)


@pytest.fixture(scope="session")
def root(): return ROOT


@pytest.fixture(scope="session")
def real_data():
    "The folder with the real pairs and recordings; the test is skipped without it."
    if not SHARED.is_dir(): pytest.skip("the real Sub-URMP pairs and recordings are not part of the project, and not beside it")
    return SHARED


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
    "`once(name, make)`: a folder made by the first of several test processes that asks for it, and shared by all."
    base = tmp_path_factory.getbasetemp()
    if worker_id != "master": base = base.parent
    def get(name, make):
        with FileLock(base/f"{name}.lock"):
            if not (base/name/"done").exists():
                shutil.rmtree(base/name, ignore_errors=True)
                (base/name).mkdir()
                make(base/name)
                (base/name/"done").touch()
        return base/name
    return get


@pytest.fixture(scope="session")
def tiny_data(once):
    "A folder with `data/` (released layout, two recordings an instrument), `data.npz` and `melody.wav`, made by the commands themselves."
    from cargan.cli import main
    def make(folder):
        assert main(["synth", "--out", f"{folder}/data", "--recordings", "2", "1", "--windows", "3", "--workers", "1"]) == 0
        assert main(["prepare", "--source", f"{folder}/data", "--out", f"{folder}/data.npz"]) == 0
        shutil.copy(folder/"data"/"melody.wav", folder)
    return once("tiny_data", make)


TINY = ["--size", "32", "--base", "4", "--d-base", "4", "--batch-size", "8", "--classifier.epochs", "1", "--audio.epochs", "1", "--audio.other-windows", "0", "--device", "cpu"]  # options of `cargan train`


@pytest.fixture(scope="session")
def tiny_run(once, tiny_data):
    "A run that was trained for four steps: it draws nothing, but everything about it is real."
    from cargan.cli import main
    def make(folder): assert main(["train", "--data", f"{tiny_data}/data.npz", "--out", f"{folder}/run", *TINY, "--max-steps", "4"]) == 0
    return once("tiny_run", make)/"run"


ANY = ["--size", "32", "--batch-size", "8", "--audio.epochs", "1", "--audio.other-windows", "0", "--device", "cpu", "--max-steps", "2"]  # options that every method has


@pytest.fixture(scope="session")
def method_run(once, tiny_data):
    "`method_run(name)`: a run of that method, trained for two steps."
    from cargan.cli import main
    def get(name):
        def make(folder): assert main(["train", "--method", name, "--data", f"{tiny_data}/data.npz", "--out", f"{folder}/run", *ANY]) == 0
        return once(f"run_of_{name}", make)/"run"
    return get


@pytest.fixture
def toy(monkeypatch):
    "The name of a method that is no part of the project, for as long as a test lasts."
    from cargan.methods import METHODS
    monkeypatch.setitem(METHODS, "toy", "toy_method:METHOD")
    return "toy"

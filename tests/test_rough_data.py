"Data as people have them: hidden files of the system, a bundle that is written anew under an open run, black pictures, silence, one instrument."
import json, math, subprocess, sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
from PIL import Image

from cargan.bundle import PrepareConfig, open_bundle, prepare, save_bundle
from cargan.cli import main
from cargan.core import CarganError, load_weights
from cargan.data import PairDataset
from cargan.evaluation import EvaluateConfig, evaluate
from cargan.listening import ProbeConfig
from cargan.looking import ClassifierConfig
from cargan.methods import METHODS, find_method
from cargan.sources import find_layout, read_suburmp
from cargan.training import checkpoint_folders, train
from conftest import ROOT
from methods import TRAINED, tiny, toy_bundle

LEFT_BY_SYSTEMS = (".DS_Store", "._{stem}{suffix}", "Thumbs.db", "desktop.ini", ".hidden{suffix}", "@eaDir/{stem}{suffix}", "__MACOSX/._{stem}{suffix}")


def data_set(root, stems=("tuba00_500", "tuba00_1000", "violin00_500")):
    "A data set in the released layout, of grey pictures and noise."
    rng = np.random.default_rng(0)
    for stem in stems:
        name = stem.split("0")[0]
        for kind in ("img", "chunk"): (root/kind/"train"/name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (128, 128, 128)).save(root/"img"/"train"/name/f"{stem}.jpg")
        sf.write(root/"chunk"/"train"/name/f"{stem}.wav", 0.1 * rng.standard_normal(22050), 44100)
    return root


def litter(root):
    "Beside each file, and in each folder, what systems leave there."
    for f in [p for p in root.rglob("*") if p.is_file()]:
        for form in LEFT_BY_SYSTEMS:
            left = f.parent/form.format(stem=f.stem, suffix=f.suffix)
            left.parent.mkdir(exist_ok=True)
            left.write_bytes(b"\x00\x05\x16\x07 none of ours")
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]: (folder/".DS_Store").write_bytes(b"none of ours")


def test_what_systems_leave_behind_is_no_data(tmp_path):
    clean, littered = data_set(tmp_path/"clean"), data_set(tmp_path/"littered")
    litter(littered)
    (littered/".Trash"/"img").mkdir(parents=True); (littered/".Trash"/"chunk").mkdir()
    pairs, problems = read_suburmp(littered)
    assert problems == {} and [p.pair_id for p in pairs] == [p.pair_id for p in read_suburmp(clean)[0]]
    bundles = [open_bundle(prepare(PrepareConfig(root, tmp_path/f"{root.name}.npz", size=32, workers=1))) for root in (clean, littered)]
    assert len(bundles[0]) == 3 and (bundles[0].lms_db == bundles[1].lms_db).all()


def test_a_hidden_folder_is_not_the_data(tmp_path):
    "A trash that holds an older copy comes first in the order of names."
    data_set(tmp_path/".Trash-1000", ("oboe00_500",)), data_set(tmp_path/"mine")
    assert find_layout(tmp_path) == tmp_path/"mine"


def test_the_description_counts_only_data(tmp_path, capsys):
    clean, littered = data_set(tmp_path/"clean"), data_set(tmp_path/"littered")
    litter(littered)
    def said(root):
        assert main(["info", str(root)]) == 0
        return capsys.readouterr().out.splitlines()[1:]
    assert said(littered) == said(clean)


def test_a_bundle_on_a_mac_disk_opens(tmp_path):
    save_bundle(toy_bundle(), tmp_path/"pairs")
    litter(tmp_path/"pairs")
    assert len(open_bundle(tmp_path/"pairs")) == 78


def test_a_run_may_begin_in_a_folder_that_somebody_looked_at(tmp_path):
    save_bundle(toy_bundle(), tmp_path/"pairs.npz")
    (tmp_path/"run").mkdir(); (tmp_path/"run"/".DS_Store").write_bytes(b"none of ours")
    assert checkpoint_folders(train(tiny("mean", tmp_path)))


@pytest.mark.parametrize("form", ["pairs", "pairs.npz"])
def test_a_bundle_may_be_replaced_while_it_is_open(form, tmp_path):
    "Whoever has it open goes on reading the old one; whoever opens it later reads the new one."
    old = toy_bundle()
    save_bundle(old, tmp_path/form)
    seen = PairDataset(open_bundle(tmp_path/form), 32)
    save_bundle(replace(old, image=255 - old.image).select(np.arange(40)), tmp_path/form)
    batch = seen.__getitems__([0, 77])
    assert np.array_equal(np.asarray(seen.bundle.image[[0, 77]]), old.image[[0, 77]]) and batch["image"].isfinite().all()
    assert len(open_bundle(tmp_path/form)) == 40
    assert sorted(p.name for p in tmp_path.iterdir()) == [form]


OVERWRITE = """
import sys
import numpy as np
from cargan.bundle import open_bundle
from cargan.core import CarganError, load_weights
from cargan.data import PairDataset
folder = sys.argv[1]
bundle = open_bundle(folder)
data = PairDataset(bundle, 32)
data.__getitems__([0, 3])
rows = np.array(bundle.{key})[:{rows}]
np.save(folder + "/{key}.npy", 255 - rows if rows.dtype == np.uint8 else rows - 1)  # into the same file, as cp does
try: data.__getitems__([0, len(bundle) - 1])
except CarganError as e: print("said:", e)
else: print("read on")
"""


@pytest.mark.parametrize("key", ["image", "lms_db"])
@pytest.mark.parametrize("rows", [78, 40])
def test_a_bundle_that_is_written_into_is_noticed(key, rows, tmp_path):
    "Same length: no mixed data. Shorter: the system would kill a process that reads beyond the end of a mapped file."
    save_bundle(toy_bundle(), tmp_path/"pairs")
    done = subprocess.run([sys.executable, "-c", OVERWRITE.format(key=key, rows=rows), str(tmp_path/"pairs")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert f"said: {tmp_path}/pairs/{key}.npy was written anew" in done.stdout and len(done.stdout.splitlines()) == 1


def test_a_bundle_that_is_replaced_while_it_is_being_opened_is_refused(tmp_path, monkeypatch):
    "No arrays of two bundles together."
    import cargan.bundle as b
    save_bundle(toy_bundle(), tmp_path/"pairs")
    load, seen = np.load, []
    def slowly(path, *args, **kwargs):
        if len(seen) == 2: save_bundle(replace(toy_bundle(), label=toy_bundle().label[::-1].copy()), tmp_path/"pairs")
        seen.append(path)
        return load(path, *args, **kwargs)
    monkeypatch.setattr(b.np, "load", slowly)
    with pytest.raises(CarganError, match="was written anew"): open_bundle(tmp_path/"pairs")


def weights(run): return (checkpoint_folders(run)[-1]/"weights.safetensors").read_bytes()


@pytest.mark.parametrize("name", [n for n in TRAINED if n != "listener"])  # when its eye begins depends on the total, as step sizes do that fall
def test_more_epochs_end_with_the_weights_of_a_straight_run(name, tmp_path):
    save_bundle(toy_bundle(), tmp_path/"pairs.npz")
    cfg = tiny(name, tmp_path, parts=tmp_path/"parts", ema=0.9, max_steps=None, batch_size=16, decay="none")
    straight = train(replace(cfg, out=tmp_path/"straight", epochs=4))
    train(replace(cfg, out=tmp_path/"raised", epochs=2))
    raised = train(replace(cfg, out=tmp_path/"raised", epochs=4))
    assert checkpoint_folders(raised)[-1].name == checkpoint_folders(straight)[-1].name
    assert weights(raised) == weights(straight)


@pytest.mark.parametrize("name, option", [("cargan", "classifier.epochs"), ("s2ic", "encoder.epochs"), ("cmcgan", "audio.epochs")])
def test_epochs_that_shape_a_schedule_are_not_raised(name, option, tmp_path, capsys):
    "The parts learn by a one-cycle schedule, which depends on the total; the loop around the methods has no schedule."
    save_bundle(toy_bundle(), tmp_path/"pairs.npz")
    words = ["train", "--method", name, "--data", f"{tmp_path}/pairs.npz", "--out", f"{tmp_path}/run", "--size", "32", "--base", "4", "--d-base", "4",
             "--audio.epochs", "1", "--audio.other-windows", "0", "--batch-size", "8", "--device", "cpu", "--max-steps", "1"]
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, f"--{option}", "9"]) == 2
    said = capsys.readouterr().err.strip()
    assert f"{option} was" in said and len(said.splitlines()) == 1


def test_a_finished_run_says_what_to_raise(tmp_path, capsys):
    save_bundle(toy_bundle(), tmp_path/"pairs.npz")
    cfg = tiny("cmcgan", tmp_path, max_steps=1)
    train(cfg), train(cfg)
    assert "is finished: 1 steps; raise --max-steps" in capsys.readouterr().out
    cfg = replace(cfg, max_steps=None, epochs=1)
    train(cfg), capsys.readouterr(), train(cfg)
    assert "steps; raise --epochs" in capsys.readouterr().out


def not_finite(v, where="") -> list:
    "Where nested values hold a number that is not finite."
    if isinstance(v, dict): return [bad for k, x in v.items() for bad in not_finite(x, f"{where}/{k}")]
    if isinstance(v, (list, tuple)): return [bad for k, x in enumerate(v) for bad in not_finite(x, f"{where}/{k}")]
    return [where] if isinstance(v, float) and not math.isfinite(v) else []


def dark(b): return replace(b, image=np.zeros_like(b.image), lms_db=np.full_like(b.lms_db, -100))


ROUGH = {"black and silent": lambda: dark(toy_bundle()), "one instrument": lambda: toy_bundle(instruments=1)}
NEEDS_TWO = {name for name in METHODS if find_method(name).wrong_pairs(find_method(name).presets["lab"])}  # wrong pairs are of another instrument


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", ROUGH)
def test_rough_data_give_finite_numbers(case, name, tmp_path_factory, tmp_path):
    "Trained and evaluated, or refused in one sentence before anything is written."
    save_bundle(ROUGH[case](), tmp_path/"pairs.npz")
    parts = tmp_path_factory.getbasetemp()/f"parts of {case}"
    cfg = tiny(name, tmp_path, parts=parts, max_steps=2)
    if case == "one instrument" and name in NEEDS_TWO:
        with pytest.raises(CarganError, match="all training pairs are of one instrument"): train(cfg)
        assert not cfg.out.exists()
        return
    judge = ClassifierConfig(arch="compact", seed=1000, epochs=1)
    evaluate(EvaluateConfig(train(cfg), cfg.data, pictures=5, listen=5, parts=parts, evaluator=judge, judge_steps=1, probe=ProbeConfig(epochs=1)))
    assert not_finite(json.loads((cfg.out/"metrics.json").read_text())) == []
    assert "nan" not in (cfg.out/"report.html").read_text().split("<body")[-1].replace("data:image/png;base64", "").lower().split()


@pytest.mark.parametrize("name", METHODS)
def test_one_pair_at_a_time(name, tmp_path_factory, tmp_path):
    "Batch norm over a single pair: every loss stays finite (a run stops at the first one that isn't), and so do the weights."
    save_bundle(toy_bundle(), tmp_path/"pairs.npz")
    run = train(tiny(name, tmp_path, parts=tmp_path_factory.getbasetemp()/"parts of one", max_steps=3, batch_size=1))
    assert all(v.isfinite().all() for v in load_weights(checkpoint_folders(run)[-1]/"weights.safetensors")[0].values())

"What must be true of every method: it learns, every weight gets a gradient, it is scored and drawn by the same commands, and bad input is one line."
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cargan.bundle import save_bundle
from cargan.cli import main
from cargan.core import CarganError, read_json
from cargan.data import EpochPairs, PairDataset, mismatch, split_recordings
from cargan.evaluation import EvaluateConfig, evaluate
from cargan.listener import as_told
from cargan.listening import ProbeConfig
from cargan.looking import ClassifierConfig
from cargan.methods import METHODS, Pairs, find_method
from cargan.training import load_run, make_accelerator, make_parts, make_players, open_pairs, train
from methods import CONTROLS, TRAINED, shrunk, tiny, toy_bundle

VARIANTS = [(name, variant) for name in METHODS for variant in find_method(name).variants]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    "A folder with toy pairs, and parts that the runs below share."
    folder = tmp_path_factory.mktemp("methods")
    save_bundle(toy_bundle(), folder/"pairs.npz")
    return folder


def players(name, folder, **changes):
    "The players of a tiny run, with its parts; and the pairs."
    cfg = tiny(name, folder, out=folder/f"parts_{name}", parts=folder/"parts", **changes)
    method, pairs = find_method(name), open_pairs(cfg, "cpu")
    make_parts(cfg, method, pairs)
    return make_players(cfg, lambda: method.make_model(cfg, cfg.out), make_accelerator(cfg)), pairs


def batch_of(p, pairs, rows):
    method = find_method(p.cfg.method)
    data, extras = PairDataset(pairs.bundle, p.cfg.model.size, lms=p.model.lms), method.extras(p.cfg, pairs, p.cfg.out)
    wrong = mismatch(pairs.bundle.label, pairs.train_idx) if method.wrong_pairs(p.cfg) else None
    return EpochPairs(data, wrong, method.noise(p.cfg), extras).__getitems__(rows)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_every_parameter(name, work):
    p, pairs = players(name, work)
    for net in p.networks.values():
        for key, q in net.named_parameters():
            if key.endswith("gamma"): q.data.fill_(0.5)  # from 0 on, attention gets its gradient only after γ has moved
    seen = {}
    def note(side, nets):
        hook = lambda opt, *_: seen.update({f"{n}.{k}": q.grad for n in nets for k, q in p.networks[n].named_parameters()})
        p.optimisers[side].optimizer.register_step_pre_hook(hook)
    note("G", list(p.model.networks)); note("D", list(p.rivals))
    before = {k: q.detach().clone() for k, q in p.model.named_parameters() if not q.requires_grad}
    find_method(name).step(p, batch_of(p, pairs, pairs.train_idx[:8]))
    assert seen and [k for k, g in seen.items() if g is None or not g.any()] == []
    assert all(torch.equal(before[k], q) for k, q in p.model.named_parameters() if k in before), "a frozen network has moved"


OVERFIT = {name: dict(base=8, d_base=8) for name in ("s2ic", "cmcgan")}  # with no loss on the first picture they need wider networks
OVERFIT["listener"] = dict(base=32)  # its widest grid has so many channels, not its first one


@pytest.mark.parametrize("name", TRAINED)
def test_overfits_a_batch(name, tmp_path):
    "Four pairs, again and again: the pictures come near to the truth, each to its own."
    save_bundle(toy_bundle(bands=True), tmp_path/"pairs.npz")
    model = replace(tiny(name, tmp_path).model, **OVERFIT.get(name, {}))
    p, pairs = players(name, tmp_path, part_epochs=40, model=model, lr=2e-3, lr_d=2e-3)
    colours = torch.tensor([[1., -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])
    batch = batch_of(p, pairs, pairs.train_idx[:4])
    batch["image"] = colours[:, :, None, None].expand(-1, -1, 32, 32).clone()
    if "wrong_image" in batch: batch |= {f"wrong_{k}": batch[k].roll(1, 0) for k in ("image", "mel", "label")}
    for _ in range(400 if name in OVERFIT else 250):
        if "noise" in batch: batch["noise"] = torch.randn_like(batch["noise"])
        find_method(name).step(p, batch)
    p.model.train()  # batch norm with the statistics of this batch, as it was trained
    with torch.no_grad():  # what is drawn is what was told; what an ear makes of a toy's noises is not the question
        drawn = p.model.imagine(as_told(batch["told"])) if hasattr(p.model, "imagine") else p.model.draw(batch["mel"], batch["label"])
    fine = drawn["fine"]
    far = (fine[:, None] - batch["image"][None]).abs().mean((2, 3, 4))
    assert far.argmin(1).tolist() == [0, 1, 2, 3], far
    assert far.diagonal().mean() < 0.4, far


@pytest.mark.parametrize("name, variant", VARIANTS)
def test_every_variant_and_control_trains_and_draws(name, variant, work):
    "As a configuration: two steps, then a picture."
    method = find_method(name)
    cfg = method.variants[variant](tiny(name, work, max_steps=2))
    run = train(replace(cfg, out=work/f"{name}-{variant}", parts=work/"parts"))
    model, loaded = load_run(run)
    assert loaded.model == cfg.model
    mel = torch.zeros(2, 3 if model.lms == "jet" else 1, 32, 32)
    drawn = model.draw(mel, torch.tensor([0, 1]))
    assert tuple(drawn) == tuple(model.stages)
    assert all(img.shape == (2, 3, 32, 32) and img.isfinite().all() for img in drawn.values())


def quick(run, data, parts):
    return EvaluateConfig(run, data, pictures=13, listen=13, parts=parts, evaluator=ClassifierConfig(arch="compact", seed=1000, epochs=1), judge_steps=1,
                          probe=ProbeConfig(epochs=1))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_scored_by_the_same_command(name, tiny_data, work):
    cfg = replace(tiny(name, work, max_steps=2), data=tiny_data/"data.npz", out=work/f"scored_{name}", parts=work/"parts")
    model, _ = load_run(run := train(cfg))
    metrics = evaluate(quick(run, cfg.data, work/"parts"))
    assert metrics["method"] == name and metrics["label"] == model.label
    assert ("l1_coarse" in metrics) == ("coarse" in model.stages)
    assert {"l1_fine", "accuracy_true_label", "accuracy_predicted_label", "listening", "probes", "distances", "n"} <= metrics.keys()
    if model.label != "wants" and not hasattr(model, "imagine"):  # a listener's "true" pictures are told the true factors
        assert metrics["accuracy_true_label"] == metrics["accuracy_predicted_label"] and metrics["l1_fine"] == metrics["l1_fine_predicted_label"]
        assert "takes no notice" in (run/"report.html").read_text() or "has no label" in (run/"report.html").read_text()
    assert ("cost" in metrics) == (name in TRAINED)
    assert ("sound_from_pictures" in metrics) == hasattr(model, "sound")


def test_parts_are_made_once(work, tiny_data):
    "Two runs with a shared folder: the second trains no part again; two evaluations train the judges once."
    cfg = replace(tiny("cargan", work, max_steps=1), data=tiny_data/"data.npz", parts=work/"shared")
    first = train(replace(cfg, out=work/"one"))
    def times_of(): return {f: f.stat().st_mtime_ns for f in (work/"shared").glob("[!.]*")}  # not of the locks
    times = times_of()
    assert {f.name.split("-")[0] for f in times} == {"classifier", "audio_classifier", "who"}
    second = train(replace(cfg, out=work/"two", seed=1))
    assert times_of() == times
    for name in ("classifier", "audio_classifier", "who"): assert (first/f"{name}.safetensors").read_bytes() == (second/f"{name}.safetensors").read_bytes()
    evaluate(quick(first, cfg.data, work/"shared"))
    times = times_of()
    evaluate(quick(second, cfg.data, work/"shared"))
    assert times_of() == times
    assert not (first/"parts").exists()


def test_a_run_can_be_moved_away_from_its_parts(work, tmp_path):
    cfg = tiny("cargan", work, max_steps=1, out=tmp_path/"run", parts=tmp_path/"parts")
    run = train(cfg).rename(tmp_path/"moved")
    for f in (tmp_path/"parts").iterdir(): f.unlink()
    assert load_run(run)[0].draw(torch.zeros(1, 1, 32, 32), torch.tensor([0]))["fine"].isfinite().all()


def wants_wrong_pairs(name): return find_method(name).wrong_pairs(find_method(name).presets["lab"])


@pytest.mark.parametrize("name", [name for name in METHODS if wants_wrong_pairs(name)])
def test_one_instrument_has_no_wrong_pairs(name, tmp_path, capsys):
    save_bundle(toy_bundle(instruments=1), tmp_path/"pairs.npz")
    assert main(["train", "--method", name, "--data", f"{tmp_path}/pairs.npz", "--out", f"{tmp_path}/run", "--preset", "lab", "--batch-size", "4"]) == 2
    said = capsys.readouterr().err.strip()
    assert "of one instrument" in said and len(said.splitlines()) == 1
    assert not (tmp_path/"run").exists()


@pytest.mark.parametrize("name", [name for name in METHODS if not wants_wrong_pairs(name)])
def test_the_others_train_on_one_instrument(name, tmp_path):
    save_bundle(toy_bundle(instruments=1), tmp_path/"pairs.npz")
    assert load_run(train(tiny(name, tmp_path, max_steps=1)))[0].size == 32


BAD = {
    "unknown method": (["--method", "pix2pix"], "pix2pix"),
    "unknown variant": (["--method", "s2ic", "--variant", "A"], "A"),
    "another method's option": (["--method", "s2ic", "--g2-input", "residue"], "g2-input"),
    "impossible size": (["--method", "cmcgan", "--size", "50"], "power of two"),
    "impossible step": (["--method", "s2ic", "--lr-d", "-1"], "lr_d=-1.0 is not possible"),
    "deaf and colourful": (["--variant", "label-only", "--lms", "jet"], "works with model.lms='db' only"),
    "too few pairs": (["--method", "cmcgan", "--batch-size", "4000"], "fewer than one batch"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_one_line(case, work, capsys):
    words, said = BAD[case]
    out = work/f"bad {case}"
    assert main(["train", "--data", f"{work}/pairs.npz", "--out", str(out), *words]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err and len(err.splitlines()) == 1, err
    assert not out.exists()


def test_a_run_of_an_unknown_method(work, tmp_path, capsys):
    run = train(tiny("mean", work, out=tmp_path/"run", parts=work/"parts"))
    values = json.loads((run/"config.json").read_text())
    (run/"config.json").write_text(json.dumps(values | dict(method="pix2pix")))
    assert main(["info", str(run)]) == 2
    assert "method 'pix2pix' is unknown; choose one of cargan" in capsys.readouterr().err
    (run/"config.json").write_text(json.dumps(values | dict(method="s2ic")))
    assert main(["evaluate", "--run", str(run), "--data", f"{work}/pairs.npz"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_learn_nothing_and_are_finished_at_once(name, work, capsys):
    cfg = tiny(name, work, out=work/f"control_{name}", parts=work/"parts")
    run = train(cfg)
    assert [f.name for f in (run/"checkpoints").iterdir()] == ["step_00000000"]
    train(cfg)
    assert "is finished: 0 steps" in capsys.readouterr().out


def test_labels_are_heard_out_of_fold(monkeypatch):
    "`predicted-label`: no ear names a recording that it has learned from; each training pair is named once, and no held-out pair."
    from cargan import cascade
    bundle = toy_bundle(bands=True)
    train_idx, valid_idx = split_recordings(bundle)
    named = []
    def listen(cfg, bundle, known, strange, **kwargs):
        assert not set(bundle.recording[known]) & set(bundle.recording[strange])
        assert set(known) | set(strange) == set(train_idx)
        named.extend(strange)
        return object(), {}
    monkeypatch.setattr(cascade, "train_audio_classifier", listen)
    monkeypatch.setattr(cascade, "predict_label", lambda ear, lms_db: (torch.full((len(lms_db),), 12), None))
    heard = cascade.hear_out_of_fold(None, Pairs(bundle, train_idx, valid_idx))
    assert sorted(named) == sorted(train_idx)
    assert (heard[train_idx] == 12).all() and (heard[valid_idx] == bundle.label[valid_idx]).all()

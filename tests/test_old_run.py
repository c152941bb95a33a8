"""Runs that were written before there were several methods still load, draw and go on.

`old_run/` was written by version 0.1.0, the last one that knew CAR-GAN alone: 26 pairs at 32 px, two training steps. Beside the run lie the pictures
that the old code drew of the first three pairs, and the weights that it had after two more steps."""
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cargan.core import load_weights
from cargan.data import PairDataset, open_data
from cargan.evaluation import EvaluateConfig, evaluate
from cargan.listening import ProbeConfig
from cargan.looking import ClassifierConfig
from cargan.methods import read_config
from cargan.training import checkpoint_folders, load_run, train
from conftest import ROOT

OLD = ROOT/"tests"/"old_run"


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(OLD/"run", tmp_path/"run"))


def test_it_loads_and_draws_what_it_drew(run):
    model, cfg = load_run(run)
    assert (cfg.method, model.label, model.stages, model.size) == ("cargan", "wants", ("coarse", "fine"), 32)
    batch = PairDataset(open_data(OLD/"pairs.npz"), 32).__getitems__([0, 1, 2])
    with torch.no_grad(): drawn = model.draw(batch["mel"], batch["label"])
    old = np.load(OLD/"pictures.npz")
    for stage in ("coarse", "fine"):
        assert drawn[stage].std() > 1e-4
        np.testing.assert_allclose(drawn[stage].numpy(), old[stage], atol=1e-5)


def test_it_goes_on_as_it_would_have(run):
    "Two more steps: the weights are those of the old code, up to rounding."
    cfg = load_run(run)[1]
    train(replace(cfg, data=OLD/"pairs.npz", out=run, max_steps=4))
    folder = checkpoint_folders(run)[-1]
    assert folder.name == "step_00000004"
    (new, _), (old, _), (before, _) = (load_weights(f) for f in (folder/"weights.safetensors", OLD/"after_two_more_steps.safetensors", OLD/"run/checkpoints/step_00000002/weights.safetensors"))
    assert new.keys() == old.keys()
    away = max((new[k].float() - old[k].float()).abs().max().item() for k in old)
    moved = max((before[k].float() - old[k].float()).abs().max().item() for k in old if k.startswith("G1"))
    assert away < 1e-4 < moved


def test_it_is_scored(run):
    quick = dict(pictures=13, listen=13, evaluator=ClassifierConfig(arch="compact", seed=1000, epochs=1), judge_steps=1, probe=ProbeConfig(epochs=1))
    metrics = evaluate(EvaluateConfig(run, OLD/"pairs.npz", **quick))
    assert metrics["method"] == "cargan" and metrics["label"] == "wants" and metrics["steps"] == 2
    assert {"l1_coarse", "l1_fine", "accuracy_true_label", "accuracy_predicted_label", "listening", "stages"} <= metrics.keys()


def test_a_run_begins_as_it_did_then(run):
    "From the same C, with the same seed: first weights, order of the pairs and two steps are those of the old code, up to rounding."
    old = load_weights(run/"checkpoints"/"step_00000002"/"weights.safetensors")[0]
    shutil.rmtree(run/"checkpoints")
    train(replace(read_config(run/"config.json"), data=OLD/"pairs.npz", out=run, max_steps=2))
    new = load_weights(checkpoint_folders(run)[-1]/"weights.safetensors")[0]
    assert max((new[k].float() - old[k].float()).abs().max().item() for k in old) < 1e-4

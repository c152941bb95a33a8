"Two processes on one machine (gloo): they train one model, log once, and resume."
import json
import os
import subprocess
import sys
from dataclasses import replace

import torch

from cargan.bundle import save_bundle
from cargan.core import load_weights
from cargan.methods import plain
from cargan.training import checkpoint_folders
from methods import tiny, toy_bundle

TRAIN = """
import json, sys, torch
from pathlib import Path
from cargan.methods import read_config
from cargan.training import train
torch.set_num_threads(1)
train(read_config(sys.argv[1]))
"""

STEPS = """
import torch
from cargan.cascade import CARGANTrain, update_D, update_G
from cargan.core import seed_everything
from cargan.looking import ClassifierConfig, ImageClassifier
from cargan.residue import CARGAN, CARGANConfig
from cargan.training import make_accelerator, make_players
torch.set_num_threads(1)
cfg = CARGANTrain(model=CARGANConfig(size=32, base=2, d_base=2), batch_size=8, device="cpu")
acc = make_accelerator(cfg)
seed_everything(0)
p = make_players(cfg, lambda: CARGAN(cfg.model, ImageClassifier(ClassifierConfig(arch="small", size=32))), acc)
seed_everything(100 + acc.process_index)  # each process sees other pairs
first = [q.detach().clone() for q in p.model.G1.parameters()]
for _ in range(3):
    batch = dict(mel=torch.rand(4, 1, 32, 32), image=torch.rand(4, 3, 32, 32), label=torch.randint(0, 13, (4,)))
    out, _ = update_G(p, batch); update_D(p, batch, out)
for net in p.networks.values():
    for q in net.parameters():
        both = acc.gather(q.detach().flatten()[None])
        assert torch.equal(both[0], both[1]), "the processes hold different weights"
assert any(not torch.equal(a, b) for a, b in zip(first, p.model.G1.parameters()))
seen = acc.gather(batch["image"].sum()[None])
assert seen[0] != seen[1]
acc.end_training()
"""


def launch(folder, code, *args):
    (folder/"script.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(folder/"script.py"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


def test_gradients_are_shared(tmp_path): launch(tmp_path, STEPS)


def test_two_processes_train_log_once_and_resume(tmp_path):
    save_bundle(toy_bundle(), tmp_path/"pairs.npz")
    cfg = tiny("cargan", tmp_path, ema=0.9, checkpoint_every=3)
    for steps in (6, 9):
        (tmp_path/"config.json").write_text(json.dumps(plain(replace(cfg, max_steps=steps))))
        launch(tmp_path, TRAIN, tmp_path/"config.json")
    steps = [json.loads(line)["step"] for line in (cfg.out/"log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 9
    folder = checkpoint_folders(cfg.out)[-1]
    assert folder.name == "step_00000009"
    assert all(v.isfinite().all() for v in load_weights(folder/"weights.safetensors")[0].values() if v.is_floating_point())
    assert len(torch.load(folder/"state.pt", weights_only=True)["rng"]) == 2  # one random state for each process

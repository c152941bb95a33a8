"""Two processes, each with half of the batch, find the gradients of one process with all of it: `update_G` and `update_D` themselves, in double precision.

The losses are means over pairs, so the mean of two halves is the whole, as long as every pair is computed by itself. Batch norm alone mixes the
pairs of one process. The identity is therefore exact (to rounding) with batch norm in evaluation mode, and with batch norm as in training when both
halves are equal. With different halves the usual batch norm of each process gives other gradients; the last test says how far off they are."""
import os, subprocess, sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cargan.looking import ClassifierConfig, ImageClassifier
from cargan.core import load_weights, save_weights, seed_everything
from cargan.residue import CARGANConfig
from cargan.training import PRESETS, make_accelerator, make_players, update_D, update_G

PAIRS, TOLERANCE = 8, 1e-10  # of the largest gradient of a network; measured 2e-15


def pairs(twice: bool) -> dict:
    "Eight random pairs; `twice`: four of them, and the same four again."
    g = torch.Generator().manual_seed(1)
    batch = dict(mel=torch.rand(PAIRS, 1, 32, 32, generator=g) * 2 - 1, image=torch.rand(PAIRS, 3, 32, 32, generator=g) * 2 - 1, label=torch.arange(PAIRS))
    return {k: v[:PAIRS // 2].repeat(2, *[1] * (v.ndim - 1)) for k, v in batch.items()} if twice else batch


def gradients(norm: str, twice: bool, average: bool) -> dict:
    "One step on this process's share of the pairs; the gradients as the optimisers see them. norm: 'eval' or 'train'."
    cfg = replace(PRESETS["lab"], model=CARGANConfig(size=32, base=8, d_base=8), batch_size=PAIRS, device="cpu", ema=0.)
    acc, seen = make_accelerator(cfg), {}
    seed_everything(0)
    p = make_players(cfg, ImageClassifier(ClassifierConfig(arch="small", size=32)), acc)
    nets = {**p.generators, "D": acc.unwrap_model(p.D)}
    for net in nets.values():
        for name, q in net.named_parameters():
            if name.endswith("gamma"): q.data.fill_(0.5)  # attention counts
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d) and norm == "eval": m.eval()
    def note(*names): return lambda opt, *_: seen.update({f"{n}.{k}": q.grad.clone() for n in names for k, q in nets[n].named_parameters()})
    p.opt_G.optimizer.register_step_pre_hook(note("G1", "G2")); p.opt_D.optimizer.register_step_pre_hook(note("D"))
    if not average:
        for net in (p.model.G1, p.model.G2, p.D):
            if hasattr(net, "require_backward_grad_sync"): net.require_backward_grad_sync = False
    n = PAIRS // acc.num_processes
    share = slice(acc.process_index * n, (acc.process_index + 1) * n)
    batch = {k: v[share].double() if v.is_floating_point() else v[share] for k, v in pairs(twice).items()}
    out, _ = update_G(p, batch)
    update_D(p, batch, out)
    return seen


CASES = dict(identity=dict(norm="eval", twice=False, average=True), halves=dict(norm="train", twice=True, average=True),
             mistake=dict(norm="eval", twice=False, average=False), usual=dict(norm="train", twice=False, average=True))


def all_gradients() -> dict:
    "Every case in double precision, on one thread."
    threads = torch.get_num_threads()
    torch.set_num_threads(1); torch.set_default_dtype(torch.float64)
    try: return {name: gradients(**case) for name, case in CASES.items()}
    finally: torch.set_num_threads(threads); torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def off(tmp_path_factory):
    "For each case and network, two processes against one: the largest difference of a gradient, relative to the network's largest."
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, str(folder)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for name, one in all_gradients().items():
        two = load_weights(folder/f"{name}.safetensors")[0]
        assert one.keys() == two.keys()
        for net in ("G1", "G2", "D"):
            pairs = [(one[k], two[k]) for k in one if k.startswith(net + ".")]
            found[name, net] = (max((a - b).abs().max() for a, b in pairs) / max(a.abs().max() for a, _ in pairs)).item()
    print(*(f"{name} {net}: {v:.1e}" for (name, net), v in found.items()), sep="\n")
    return found


@pytest.mark.parametrize("net", ["G1", "G2", "D"])
def test_two_processes_find_the_gradients_of_one(off, net):
    "Exactly, with batch norm in evaluation mode; also with batch norm as in training, when both halves are equal."
    assert off["identity", net] < TOLERANCE and off["halves", net] < TOLERANCE


@pytest.mark.parametrize("net", ["G1", "G2", "D"])
def test_without_averaging_they_do_not(off, net):
    "The test above can fail: here each process keeps the gradients of its own half."
    assert off["mistake", net] > 0.1


@pytest.mark.parametrize("net", ["G1", "G2", "D"])
def test_batch_norm_of_each_process_is_another_thing(off, net):
    "Usual training, different halves: statistics of four pairs instead of eight give other gradients, and by much."
    assert off["usual", net] > 0.1


if __name__ == "__main__":
    for name, found in all_gradients().items():
        if os.environ["RANK"] == "0": save_weights(Path(sys.argv[1])/f"{name}.safetensors", found)

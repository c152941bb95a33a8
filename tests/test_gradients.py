"""Two processes, each with half of the batch, find the gradients of one process with all of it: every method's own step, in double precision.

The losses are means over pairs, so the mean of two halves is the whole, as long as every pair is computed by itself. Batch norm alone mixes the
pairs of one process. The identity is therefore exact (to rounding) with batch norm in evaluation mode, and with batch norm as in training when both
halves are equal. With different halves the usual batch norm of each process gives other gradients; the last test says how far off they are."""
import os, subprocess, sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cargan.bundle import save_bundle
from cargan.core import load_weights, save_weights
from cargan.methods import find_method
from cargan.training import make_accelerator, make_parts, make_players, open_pairs
from methods import TRAINED, tiny, toy_bundle

PAIRS, TOLERANCE = 8, 1e-7  # of the largest gradient of a network; measured 1e-15, and up to 3e-8 where C's logits are rounded to float32


def pairs(name: str, cfg, twice: bool) -> dict:
    "Eight random pairs with all that a method's batches hold; `twice`: four of them, and the same four again."
    g, method = torch.Generator().manual_seed(1), find_method(name)
    uniform = lambda *shape: torch.rand(PAIRS, *shape, generator=g) * 2 - 1
    told = lambda higher: torch.stack([torch.arange(PAIRS) % 13, 50. + higher + torch.arange(PAIRS), torch.full((PAIRS,), 0.5), torch.full((PAIRS,), -1.)], 1)
    batch = dict(mel=uniform(1, 32, 32), image=uniform(3, 32, 32), label=torch.arange(PAIRS), wrong_mel=uniform(1, 32, 32), wrong_image=uniform(3, 32, 32),
                 wrong_label=(torch.arange(PAIRS) + 1) % 13, told=told(0), other=told(7), noise=torch.randn(PAIRS, max(1, method.noise(cfg)), generator=g))
    return {k: v[:PAIRS // 2].repeat(2, *[1] * (v.ndim - 1)) for k, v in batch.items()} if twice else batch


def gradients(name: str, folder: Path, norm: str, twice: bool, average: bool) -> dict:
    "One step on this process's share of the pairs; the gradients as the optimisers see them. norm: 'eval' or 'train'."
    cfg, method = tiny(name, folder), find_method(name)
    acc, seen = make_accelerator(cfg), {}
    p = make_players(cfg, lambda: method.make_model(cfg, folder/name).double(), acc)
    for net in p.rivals.values(): net.double()
    for net in p.networks.values():
        for key, q in net.named_parameters():
            if key.endswith("gamma"): q.data.fill_(0.5)  # attention counts
        for m in net.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and norm == "eval": m.eval()
    def note(side, names):
        def found(opt, *_):
            for n in names: seen.update({f"{n}.{k}": q.grad.clone() for k, q in p.networks[n].named_parameters() if f"{n}.{k}" not in seen})
        p.optimisers[side].optimizer.register_step_pre_hook(found)
    note("G", list(p.model.networks)); note("D", list(p.rivals))
    if not average:
        for net in (*p.model.networks.values(), *p.rivals.values()):
            if hasattr(net, "require_backward_grad_sync"): net.require_backward_grad_sync = False
    n = PAIRS // acc.num_processes
    share = slice(acc.process_index * n, (acc.process_index + 1) * n)
    method.step(p, {k: v[share].double() if v.is_floating_point() else v[share] for k, v in pairs(name, cfg, twice).items()})
    return seen


CASES = dict(identity=dict(norm="eval", twice=False, average=True), halves=dict(norm="train", twice=True, average=True),
             mistake=dict(norm="eval", twice=False, average=False), usual=dict(norm="train", twice=False, average=True))


def all_gradients(folder: Path) -> dict:  # (method, case) -> gradients
    "Every case of every method in double precision, on one thread."
    threads = torch.get_num_threads()
    torch.set_num_threads(1); torch.set_default_dtype(torch.float64)
    try: return {(name, case): gradients(name, folder, **how) for name in TRAINED for case, how in CASES.items()}
    finally: torch.set_num_threads(threads); torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def off(tmp_path_factory):
    "For each method, case and network, two processes against one: the largest difference of a gradient, relative to the network's largest."
    folder = tmp_path_factory.mktemp("two")
    save_bundle(toy_bundle(), folder/"pairs.npz")
    for name in TRAINED:  # what is trained beforehand
        cfg = tiny(name, folder, out=folder/name)
        make_parts(cfg, find_method(name), open_pairs(cfg, "cpu"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=400, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for (name, case), one in all_gradients(folder).items():
        two = load_weights(folder/f"{name}-{case}.safetensors")[0]
        assert one.keys() == two.keys()
        for net in {k.split(".")[0] for k in one}:
            both = [(one[k], two[k]) for k in one if k.startswith(net + ".")]
            found[name, case, net] = (max((a - b).abs().max() for a, b in both) / max(a.abs().max() for a, _ in both)).item()
    print(*(f"{' '.join(key)}: {v:.1e}" for key, v in found.items()), sep="\n")
    return found


def of(off: dict, name: str, case: str) -> dict:  # network -> difference
    return {net: v for (n, c, net), v in off.items() if (n, c) == (name, case)}


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_find_the_gradients_of_one(off, name):
    "Exactly, with batch norm in evaluation mode; also with batch norm as in training, when both halves are equal."
    assert len(of(off, name, "identity")) >= 2
    assert max(of(off, name, "identity").values()) < TOLERANCE and max(of(off, name, "halves").values()) < TOLERANCE


@pytest.mark.parametrize("name", TRAINED)
def test_without_averaging_they_do_not(off, name):
    "The test above can fail: here each process keeps the gradients of its own half."
    assert max(of(off, name, "mistake").values()) > 0.1


@pytest.mark.parametrize("name", TRAINED)
def test_batch_norm_of_each_process_is_another_thing(off, name):
    "Usual training, different halves: statistics of four pairs instead of eight give other gradients, and by much."
    assert max(of(off, name, "usual").values()) > 0.01


if __name__ == "__main__":
    for (name, case), found in all_gradients(Path(sys.argv[1])).items():
        if os.environ["RANK"] == "0": save_weights(Path(sys.argv[1])/f"{name}-{case}.safetensors", found)

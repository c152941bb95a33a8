"""How close a training step comes to what the machine can do; `make bench` writes bench/results.json and prints it as a table.

  python bench/step.py [--sizes 64 128 256] [--seconds 4] [--out bench/results.json]

Every row is measured in a process of its own, on random pairs: what it reports as memory is that process's largest resident set, libraries included
(`libraries_mb`: what importing them took). `reference` is the paper read plainly (bench/reference.py), `released` the authors' code in our words
(bench/released.py). FLOPs are those of convolutions, matrix products and attention of *our* step, forward and backward, as the formulas need them: what is recomputed
counts once. The reference is held against the same count; the released step computes other things and gets none. The roofline of a step is the sum, over convolutions, attention,
batch norms and optimisers, forward and backward, of the larger of FLOPs / peak and bytes / bandwidth, both measured in the same process; the peak is that of convolution or matrix product, whichever is higher.
ResNet50 has random weights, the generators base 64, D 4 channels (64 at 256 px).
Parts are timed alone, one forward and one backward pass for every call in a step and all weights of G1, G2 and D learning, so they needn't sum up to the step.
The time of a step is the median of those after a first; only a first step of more than half a minute (the reference, 256 px, paper's attention) counts itself.
The same for parts, but at 256 px the first call counts."""
import json, resource, subprocess, sys, time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cargan.attention import ReleasedAttention, SelfAttention
from cargan.bundle import Bundle
from cargan.classifier import ClassifierConfig, ImageClassifier
from cargan.core import INSTRUMENTS, CarganError, seed_everything, writable_folder, write_json
from cargan.data import PairDataset
from cargan.residue import CARGANConfig
from cargan.speed import fake_players
from cargan.training import PRESETS, make_accelerator, make_players, to_device, tune, update_D, update_G
from common import read_rows, run
from reference import Reference
from released import Released

BATCH, D_BASE = {64: 8, 128: 4, 256: 2}, {64: 4, 128: 4, 256: 64}
WHAT = dict(sagan=("reference", "ours"), released=("released", "reference", "ours"))  # by attention
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Bench:
    sizes: tuple[Literal[64, 128, 256], ...] = (64, 128, 256)  # pixels
    variants: tuple[Literal["sagan", "released"], ...] = ("sagan", "released")  # the paper's attention, the released code's
    seconds: float = 4.  # for each row, after one step to warm up
    out: Path = Path("bench/results.json")


@dataclass(frozen=True)
class Case:
    size: int
    variant: str
    what: Literal["ours", "reference", "released"]
    seconds: float


def megabytes() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))


LIBRARIES = megabytes()  # before any network


def seconds(f, budget: float = .5, least: int = 2, warmup: int = 1) -> float:
    "The median time of one call, after `warmup` calls that don't count."
    for _ in range(warmup): f()
    times, end = [], time.perf_counter() + budget
    while len(times) < least or time.perf_counter() < end: start = time.perf_counter(); f(); times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def peaks() -> dict:
    "What this machine reaches at the moment: matrix product, convolution (forward), and bytes read and written."
    a, x, w = torch.randn(2048, 2048), torch.randn(8, 256, 32, 32), torch.randn(256, 256, 3, 3)
    big = torch.zeros(1 << 26)
    return dict(gemm=2 * 2048 ** 3 / seconds(lambda: a @ a), conv=2 * 8 * 32 * 32 * 256 * 256 * 9 / seconds(lambda: F.conv2d(x, w, padding=1)),
                bandwidth=2 * 4 * big.numel() / seconds(lambda: big.add_(1.)))


class Count:
    "Collects, for every layer that is called, the FLOPs and bytes of its forward and backward passes."
    def __init__(self): self.passes = []  # (FLOPs, bytes)

    def watch(self, net: nn.Module):
        for m in net.modules():
            if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)): m.register_forward_hook(self.conv)
            elif isinstance(m, nn.BatchNorm2d): m.register_forward_hook(self.norm)
            elif isinstance(m, (SelfAttention, ReleasedAttention)): m.register_forward_hook(self.attention)

    def conv(self, m, inputs, y):
        x, w = inputs[0], m.weight
        up = isinstance(m, nn.ConvTranspose2d)
        flops = 2 * (x if up else y).numel() * w[0].numel()
        moved = 4 * (x.numel() + w.numel() + y.numel())
        self.passes += [(flops, moved)] * (1 + bool(y.requires_grad and x.requires_grad) + bool(y.requires_grad and w.requires_grad))

    def norm(self, m, inputs, y): self.passes += [(0, 8 * y.numel())] + [(0, 12 * y.numel())] * bool(y.requires_grad)

    def attention(self, m, inputs, y):
        x = inputs[0]; n = x[0, 0].numel(); keys = n // 4 if isinstance(m, ReleasedAttention) else n
        inner, value = m.query.out_channels, m.value.out_channels
        project = 2 * x.numel() * (2 * inner + value + (inner if hasattr(m, "out") else 0))
        flops = project + 2 * len(x) * n * keys * (inner + value)
        moved = 4 * (2 * x.numel() + len(x) * n * (2 * inner + 2 * value))
        self.passes += [(flops, moved)] + [(2 * flops, 2 * moved)] * bool(y.requires_grad)

    def adam(self, net: nn.Module): self.passes.append((0, 28 * sum(q.numel() for q in net.parameters() if q.requires_grad)))  # reads 4, writes 3

    def flops(self) -> float: return sum(f for f, _ in self.passes)

    def roofline(self, peak: float, bandwidth: float) -> float: return sum(max(f / peak, b / bandwidth) for f, b in self.passes)  # seconds


def config(c: Case):
    model, C = CARGANConfig(size=c.size, d_base=D_BASE[c.size], attention=c.variant), ClassifierConfig(arch="resnet50", size=c.size, pretrained="none")
    return replace(PRESETS["paper"], model=model, classifier=C, batch_size=BATCH[c.size], device="cpu")


def random_pairs(c: Case) -> dict:
    n = BATCH[c.size]
    return dict(mel=torch.rand(n, 1, c.size, c.size) * 2 - 1, image=torch.rand(n, 3, c.size, c.size) * 2 - 1, label=torch.arange(n))


def players(c: Case):
    "Configuration, C and a batch of random pairs."
    seed_everything(0)
    cfg = config(c)
    return cfg, ImageClassifier(cfg.classifier), to_device(random_pairs(c), CPU)


def our_step(p, batch):
    out, losses = update_G(p, batch)
    return losses | update_D(p, batch, out)


def count(c: Case) -> Count:
    "One step of ours, counted on tensors without numbers."
    p, total = fake_players(config(c), torch.device("meta")), Count()
    with torch.device("meta"):
        for net in (p.model, p.D): total.watch(net)
        our_step(p, random_pairs(c))
    for net in (p.model, p.D): total.adam(net)
    return total


def make_step(c: Case):
    "A step to be timed, its networks by name, and its optimisers."
    cfg, C, batch = players(c)
    if c.what == "ours":
        p = make_players(cfg, C, make_accelerator(cfg)); go = lambda: our_step(p, batch)
        nets = dict(G1=p.model.G1, G2=p.model.G2, C=p.model.C, D=p.D)
    else:
        p = dict(reference=Reference, released=Released)[c.what](cfg.model, C); go = lambda: p.step(batch)
        nets = {k: getattr(p, k) for k in ("G1", "G2", "C", "D")}
    return go, nets, (p.opt_G, p.opt_D)


def zero_gradients(optimisers: tuple):
    for q in (q for opt in optimisers for g in opt.param_groups for q in g["params"]): q.requires_grad_(True).grad = torch.zeros_like(q)


def leave_behind(optimisers: tuple, gradients: bool):
    "What a step leaves to the next, so that the first one takes about as much memory as any other: Adam's moments, in the plain steps `gradients` too."
    zero_gradients(optimisers)
    for opt in optimisers:
        opt.step()  # by nothing: the weights stay as they are
        if not gradients: opt.zero_grad()


def watched(go, nets: dict) -> tuple:
    "Seconds of one step, and the shapes of what came into each network and into the attention of G1 and G2, call by call."
    attention = [m for k in ("G1", "G2") for m in nets[k].modules() if type(m).__name__.endswith("Attention")]
    calls = {m: [] for m in (*nets.values(), *attention)}
    hooks = [m.register_forward_hook(lambda m, inputs, y: calls[m].append([x.shape for x in inputs])) for m in calls]
    start = time.perf_counter(); go(); took = time.perf_counter() - start
    for h in hooks: h.remove()
    return took, calls


def parts(c: Case, nets: dict, optimisers: tuple, calls: dict) -> dict:
    "Seconds of each part alone, forward and backward, as often as a step calls it."
    timed = lambda f: seconds(f, .3, 3) if c.size < 256 else seconds(f, 0, 1, 0)
    def both(m):
        def go(): m(*[torch.rand(shape).requires_grad_() for shape in calls[m][0]]).float().square().mean().backward()
        return len(calls[m]) * timed(go)
    zero_gradients(optimisers)
    times = {k: both(net) for k, net in nets.items()} | dict(attention=sum(both(m) for m in calls if m not in nets.values()))
    return times | dict(optimiser=timed(lambda: [opt.step() for opt in optimisers]), data=timed(loader(c)))


def loader(c: Case):
    "What makes a batch of pairs, sound to spectrogram picture included."
    n, rng = BATCH[c.size], np.random.default_rng(0)
    pairs = PairDataset(Bundle(image=rng.integers(0, 256, (n, c.size, c.size, 3), np.uint8), lms_db=rng.normal(-40, 15, (n, 128, 44)).astype(np.float16),
                               label=np.arange(n), pair_id=np.array([f"{INSTRUMENTS[i]}00_{500 * i}" for i in range(n)])), c.size)
    return lambda: to_device(pairs.__getitems__(list(range(n))), CPU)


def measure(c: Case) -> dict:
    "One row. A machine's speed wanders, so its peaks are the larger of what it reached just before the step and just after."
    if c.what == "ours": tune(CPU)  # as make_players will; the peaks shall be those of the same settings
    before = peaks()
    go, nets, optimisers = make_step(c)
    leave_behind(optimisers, gradients=c.what != "ours")
    took, calls = watched(go, nets)
    if took < 30: took = seconds(go, c.seconds, 1, 0)
    memory, n = megabytes(), BATCH[c.size]
    top = {k: max(before[k], v) for k, v in peaks().items()}
    speed = dict(gflops_per_s=None, peak_share=None, roofline_share=None, step_gflops=None)  # the released step computes other things
    if c.what != "released":
        total, peak = count(c), max(top["gemm"], top["conv"]); rate = total.flops() / took
        speed = dict(gflops_per_s=rate / 1e9, peak_share=rate / peak, roofline_share=total.roofline(peak, top["bandwidth"]) / took, step_gflops=total.flops() / 1e9)
    machine = dict(threads=torch.get_num_threads(), torch=torch.__version__, gemm_gflops_per_s=top["gemm"] / 1e9, conv_gflops_per_s=top["conv"] / 1e9,
                   bandwidth_gb_per_s=top["bandwidth"] / 1e9)
    return dict(size=c.size, batch=n, what=c.what, variant=c.variant, images_per_s=n / took, **speed, peak_mb=memory, libraries_mb=LIBRARIES,
                parts={k: round(v, 4) for k, v in parts(c, nets, optimisers, calls).items()}, machine=machine)


def line(r: dict) -> str:
    "A row as it is printed; '-' where there is nothing to say."
    show = lambda v, form: format("-" if v is None else format(v, form), ">8")
    return (f"{r['size']:4} {r['batch']:5} {r['variant']:8} {r['what']:9} {r['images_per_s']:10.2f} {show(r['gflops_per_s'], '.0f')} {r['machine']['gemm_gflops_per_s']:8.0f} {r['machine']['conv_gflops_per_s']:8.0f} "
            f"{show(r['peak_share'], '.0%')} {show(r['roofline_share'], '.0%')} {r['peak_mb']:6.0f}  {' '.join(f'{k} {v:.3g}' for k, v in r['parts'].items())}")


def verdict(rows: list):
    "Ours against the others of the same size and attention."
    for ours in (r for r in rows if r["what"] == "ours"):
        for other in (r for r in rows if r["what"] != "ours" and (r["size"], r["variant"]) == (ours["size"], ours["variant"])):
            print(f"{ours['size']} px, {ours['variant']}: {ours['images_per_s'] / other['images_per_s']:.2f} times the pictures of {other['what']} in "
                  f"{ours['peak_mb'] / other['peak_mb']:.2f} of its memory")


def main(cfg: Bench):
    if not 0 < cfg.seconds <= 600: raise CarganError(f"seconds={cfg.seconds} is not possible; give a number above 0, at most 600")
    writable_folder(cfg.out.parent)
    kept = [r for r in read_rows(cfg.out) if r["size"] not in cfg.sizes or r["variant"] not in cfg.variants]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("size batch variant  what      pictures/s  GFLOP/s of gemm  of conv    share roofline     MB  parts, s")
    rows = []
    for size, variant, what in ((s, v, w) for s in cfg.sizes for v in cfg.variants for w in WHAT[v]):
        case = dict(size=size, variant=variant, what=what, seconds=cfg.seconds)
        done = subprocess.run([sys.executable, __file__, "--case", json.dumps(case)], capture_output=True, text=True)
        if done.returncode: raise SystemExit(f"bench: {size} px {variant} {what} failed:\n{done.stderr[-2000:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1])); print(line(rows[-1]), flush=True)
    verdict(rows)
    write_json(cfg.out, sorted(kept + rows, key=lambda r: r["size"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]: print(json.dumps(measure(Case(**json.loads(sys.argv[2])))))
    else: run(main, Bench, __doc__)

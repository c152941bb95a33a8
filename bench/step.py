"""How close a training step comes to what the machine can do; `make bench` writes bench/results.json and prints it as a table.

  python bench/step.py [--sizes 64 128 256] [--methods cargan s2ic cmcgan] [--seconds 3] [--out bench/results.json]

Every row is measured in a process of its own, on random pairs: what it reports as memory is that process's largest resident set, libraries included
(`libraries_mb`: what importing them took). `reference` is the paper read plainly (bench/reference.py), `released` the authors' code in our words
(bench/released.py). FLOPs are those of convolutions, matrix products and attention of *our* step, forward and backward, as the formulas need them: what is recomputed
counts once. The reference is held against the same count; the released step computes other things and gets none. The roofline of a step is the sum, over convolutions, attention,
batch norms and optimisers, forward and backward, of the larger of FLOPs / peak and bytes / bandwidth, both measured in the same process; the peak is that of convolution or matrix product, whichever is higher.
ResNet50 has random weights, the generators base 64, D 4 channels (64 at 256 px).
`methods` adds two rows for each method that learns, at 64 px: the widths of its preset `paper` (eight pairs) and its preset `lab` as it is. Their parts are made from noise.
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
from cargan.cascade import METHOD, PRESETS
from cargan.core import INSTRUMENTS, CarganError, seed_everything, writable_folder, write_json
from cargan.cost import fake_players, random_batch, random_players
from cargan.data import PairDataset
from cargan.looking import ClassifierConfig, ImageClassifier, fold_batch_norms
from cargan.methods import METHODS, find_method
from cargan.residue import CARGAN, CARGANConfig
from cargan.training import make_accelerator, make_players, to_device, tune
from common import learning, read_rows, run
from reference import Reference
from released import Released

BATCH, D_BASE = {64: 8, 128: 4, 256: 2}, {64: 4, 128: 4, 256: 64}
WHAT = dict(sagan=("reference", "ours"), released=("released", "reference", "ours"))  # by attention
CPU = torch.device("cpu")
METHOD_SIZE, METHOD_SECONDS = 64, 2.  # pixels; for each row, so that all stay within a minute or so
FIRST = next(iter(METHODS))  # whom the others are compared with


@dataclass(frozen=True)
class Bench:
    sizes: tuple[Literal[64, 128, 256], ...] = (64, 128, 256)  # pixels
    variants: tuple[Literal["sagan", "released"], ...] = ("sagan", "released")  # the paper's attention, the released code's
    methods: tuple[str, ...] = tuple(METHODS)  # two rows each, at 64 px; those that learn nothing have none
    seconds: float = 3.  # for each row, after one step to warm up
    out: Path = Path("bench/results.json")


@dataclass(frozen=True)
class Case:
    size: int
    variant: str
    what: Literal["ours", "reference", "released"]
    seconds: float
    method: str = ""  # rows of one method among others: `variant` is then a preset


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
    if c.method:
        cfg = find_method(c.method).presets[c.variant]
        batch = BATCH[c.size] if c.variant == "paper" else cfg.batch_size
        return replace(cfg, model=replace(cfg.model, size=c.size), batch_size=batch, device="cpu", ema=0.)
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


def our_players(cfg, C):
    "The players of a run of CAR-GAN around this C."
    return make_players(cfg, lambda: CARGAN(cfg.model, fold_batch_norms(C)), make_accelerator(cfg))


def count(c: Case) -> Count:
    "One step of ours, counted on tensors without numbers."
    cfg, total = config(c), Count()
    p = fake_players(cfg, torch.device("meta"))
    nets = (p.model, *p.rivals.values())
    for net in nets: total.watch(net)
    with torch.device("meta"): find_method(cfg.method).step(p, random_batch(cfg, p.model, cfg.batch_size))
    for net in nets: total.adam(net)
    return total


def make_step(c: Case):
    "A step to be timed, its networks by name, and its optimisers."
    if c.method:
        p = random_players(cfg := config(c)); batch = random_batch(cfg, p.model, cfg.batch_size)
        return (lambda: find_method(c.method).step(p, batch)), p.networks, tuple(p.optimisers.values())
    cfg, C, batch = players(c)
    if c.what == "ours":
        p = our_players(cfg, C); go = lambda: METHOD.step(p, batch)
        nets = dict(G1=p.model.G1, G2=p.model.G2, C=p.model.C, D=p.rivals["D"])
        return go, nets, tuple(p.optimisers.values())
    p = dict(reference=Reference, released=Released)[c.what](cfg.model, C)
    return (lambda: p.step(batch)), {k: getattr(p, k) for k in ("G1", "G2", "C", "D")}, (p.opt_G, p.opt_D)


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
    attention = [m for k in ("G1", "G2") if k in nets for m in nets[k].modules() if type(m).__name__.endswith("Attention")]
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
    memory, n = megabytes(), config(c).batch_size
    top = {k: max(before[k], v) for k, v in peaks().items()}
    speed = dict(gflops_per_s=None, peak_share=None, roofline_share=None, step_gflops=None)  # the released step computes other things
    if c.what != "released":
        total, peak = count(c), max(top["gemm"], top["conv"]); rate = total.flops() / took
        speed = dict(gflops_per_s=rate / 1e9, peak_share=rate / peak, roofline_share=total.roofline(peak, top["bandwidth"]) / took, step_gflops=total.flops() / 1e9)
    machine = dict(threads=torch.get_num_threads(), torch=torch.__version__, gemm_gflops_per_s=top["gemm"] / 1e9, conv_gflops_per_s=top["conv"] / 1e9,
                   bandwidth_gb_per_s=top["bandwidth"] / 1e9)
    row = dict(size=c.size, batch=n, what=c.what, variant=c.variant, images_per_s=n / took, **speed, peak_mb=memory, libraries_mb=LIBRARIES, machine=machine)
    if c.method: return dict(method=c.method) | row
    return row | dict(parts={k: round(v, 4) for k, v in parts(c, nets, optimisers, calls).items()})


def line(r: dict) -> str:
    "A row as it is printed; '-' where there is nothing to say."
    show = lambda v, form: format("-" if v is None else format(v, form), ">8")
    return (f"{r['size']:4} {r['batch']:5} {r['variant']:8} {r['what']:9} {r['images_per_s']:10.2f} {show(r['gflops_per_s'], '.0f')} {r['machine']['gemm_gflops_per_s']:8.0f} {r['machine']['conv_gflops_per_s']:8.0f} "
            f"{show(r['peak_share'], '.0%')} {show(r['roofline_share'], '.0%')} {r['peak_mb']:6.0f}  {' '.join(f'{k} {v:.3g}' for k, v in r['parts'].items())}")


def method_line(r: dict) -> str:
    "A row of one method among others."
    return (f"{r['method']:10} {r['variant']:6} {r['batch']:5} {r['images_per_s']:10.2f} {r['step_gflops'] / r['batch']:15.2f} {r['gflops_per_s']:8.0f} {r['machine']['conv_gflops_per_s']:8.0f} "
            f"{r['peak_share']:10.0%} {r['roofline_share']:8.0%} {r['peak_mb']:6.0f}")


def compare(rows: list):
    "The share of the peak that each method reaches, against half of what the first one reaches."
    first = {r["variant"]: r["peak_share"] for r in rows if r.get("method") == FIRST}
    for r in (r for r in rows if r.get("method", FIRST) != FIRST and r["variant"] in first):
        share, most = r["peak_share"], first[r["variant"]]
        print(f"{r['method']}, {r['variant']}: {share:.0%} of the peak, {FIRST} {most:.0%}: {'at least' if share >= most / 2 else 'LESS THAN'} half of it")


def verdict(rows: list):
    "Ours against the others of the same size and attention."
    for ours in (r for r in rows if r["what"] == "ours"):
        for other in (r for r in rows if r["what"] != "ours" and (r["size"], r["variant"]) == (ours["size"], ours["variant"])):
            print(f"{ours['size']} px, {ours['variant']}: {ours['images_per_s'] / other['images_per_s']:.2f} times the pictures of {other['what']} in "
                  f"{ours['peak_mb'] / other['peak_mb']:.2f} of its memory")


def in_a_process(case: dict) -> dict:
    "One row, measured in a process of its own."
    done = subprocess.run([sys.executable, __file__, "--case", json.dumps(case)], capture_output=True, text=True)
    if done.returncode: raise SystemExit(f"bench: {case} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def size_rows(cfg: Bench) -> list:
    "CAR-GAN's step and those that it is compared with."
    if cfg.sizes: print("size batch variant  what      pictures/s  GFLOP/s of gemm  of conv    share roofline     MB  parts, s")
    rows = []
    for size, variant, what in ((s, v, w) for s in cfg.sizes for v in cfg.variants for w in WHAT[v]):
        rows.append(in_a_process(dict(size=size, variant=variant, what=what, seconds=cfg.seconds))); print(line(rows[-1]), flush=True)
    verdict(rows)
    return rows


def method_rows(cfg: Bench) -> list:
    "Every method's step, with the widths of its paper and as it is in `lab`."
    names = [name for name in learning() if name in cfg.methods] if cfg.methods else []
    if names: print(f"\n{METHOD_SIZE} px\nmethod     preset batch pictures/s GFLOP a picture  GFLOP/s  of conv      share roofline     MB")
    rows = []
    for name, variant in ((n, v) for v in ("paper", "lab") for n in names):
        case = dict(size=METHOD_SIZE, variant=variant, what="ours", seconds=min(METHOD_SECONDS, cfg.seconds), method=name)
        rows.append(in_a_process(case)); print(method_line(rows[-1]), flush=True)
    compare(rows)
    return rows


def main(cfg: Bench):
    if not 0 < cfg.seconds <= 600: raise CarganError(f"seconds={cfg.seconds} is not possible; give a number above 0, at most 600")
    for name in cfg.methods: find_method(name) if name not in METHODS else None
    writable_folder(cfg.out.parent)
    old, key = read_rows(cfg.out), lambda r: (r.get("method", ""), r["size"], r["variant"], r["what"])
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = size_rows(cfg) + method_rows(cfg)
    kept = [r for r in old if key(r) not in set(map(key, rows))]
    write_json(cfg.out, sorted(kept + rows, key=lambda r: ("method" in r, r["size"])))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]: print(json.dumps(measure(Case(**json.loads(sys.argv[2])))))
    else: run(main, Bench, __doc__)

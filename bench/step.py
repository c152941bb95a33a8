"""How close a training step comes to what the machine can do; `make bench` writes bench/results.json and prints it as a table.

  python bench/step.py [--sizes 64 128 256] [--seconds 8] [--out bench/results.json]

Every row is measured in a process of its own, on random pairs: what it reports as memory is that process's largest resident set, torch included.
FLOPs are those of convolutions, matrix products and attention, forward and backward, as the formulas need them: what is recomputed counts once.
The roofline of a step is the sum, over convolutions, attention, batch norms and optimisers, forward and backward, of the larger of FLOPs / peak and
bytes / bandwidth; peak and bandwidth are measured first. ResNet50 has random weights, the generators base 64, D 4 channels (64 at 256 px)."""
import json, resource, subprocess, sys, time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from cargan.attention import ReleasedAttention, SelfAttention
from cargan.classifier import ClassifierConfig, ImageClassifier
from cargan.core import CarganError, seed_everything, writable_folder, write_json
from cargan.residue import CARGANConfig
from cargan.training import PRESETS, layout, make_accelerator, make_players, to_device, update_D, update_G
from common import read_rows, run
from reference import Reference

BATCH, D_BASE = {64: 8, 128: 4, 256: 2}, {64: 4, 128: 4, 256: 64}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Bench:
    sizes: tuple[Literal[64, 128, 256], ...] = (64, 128, 256)  # pixels
    variants: tuple[Literal["sagan", "released"], ...] = ("sagan", "released")  # the paper's attention, the released code's
    seconds: float = 8.  # for each row, after one step to warm up; at least two steps
    out: Path = Path("bench/results.json")


@dataclass(frozen=True)
class Case:
    size: int
    variant: str
    what: Literal["ours", "reference"]
    seconds: float
    gemm: float = 1.  # FLOP/s
    conv: float = 1.  # FLOP/s
    bandwidth: float = 1.  # bytes/s


def seconds(f, budget: float = 1., least: int = 2) -> float:
    "The median time of one call, after one that doesn't count."
    f(); times, end = [], time.perf_counter() + budget
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter(); f(); times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def peaks() -> dict:
    "What this machine reaches: matrix product, convolution (forward), and bytes read and written."
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
    model = CARGANConfig(size=c.size, d_base=D_BASE[c.size], attention=c.variant)
    return replace(PRESETS["paper"], model=model, batch_size=BATCH[c.size], device="cpu")


def players(c: Case):
    "The networks and a batch of random pairs."
    seed_everything(0)
    cfg, bs = config(c), BATCH[c.size]
    C = ImageClassifier(ClassifierConfig(arch="resnet50", size=c.size, pretrained="none"))
    batch = dict(mel=torch.rand(bs, 1, c.size, c.size) * 2 - 1, image=torch.rand(bs, 3, c.size, c.size) * 2 - 1, label=torch.arange(bs))
    return cfg, C, to_device(batch, CPU)


def our_step(p, batch):
    out, losses = update_G(p, batch)
    return losses | update_D(p, batch, out)


def count(c: Case) -> Count:
    "One step of ours, counted; only ever called in a process that isn't timed."
    cfg, C, batch = players(c)
    p, total = make_players(cfg, C, make_accelerator(cfg)), Count()
    for net in (p.model, p.D): total.watch(net)
    our_step(p, batch)
    for net in (p.model, p.D): total.adam(net)
    return total


def parts(p, batch: dict) -> dict:
    "Seconds of each part alone, forward and backward, as often as a step uses it."
    image, mel = batch["image"], batch["mel"]
    def both(f, *inputs):
        def go():
            leaves = [x.detach().requires_grad_() for x in inputs]; f(*leaves).float().square().mean().backward()
        return seconds(go, 1., 1)
    wide = lambda G: torch.rand(len(image), G.cfg.in_channels, G.cfg.size, G.cfg.size)
    maps = []
    note = lambda m, inputs, y: maps.append((m, inputs[0].detach()))
    hooks = [m.register_forward_hook(note) for m in p.model.modules() if isinstance(m, (SelfAttention, ReleasedAttention))]
    with torch.no_grad(): p.model(mel, batch["label"])
    for h in hooks: h.remove()
    times = dict(G1=both(p.model.G1, wide(p.model.G1)), G2=both(p.model.G2, wide(p.model.G2)), C=2 * both(p.model.C, image),
                 D=3 * both(lambda x: p.D(mel, x), image), attention=sum(both(m, x) for m, x in maps))
    for opt in (p.opt_G, p.opt_D):
        for q in (q for g in opt.param_groups for q in g["params"]): q.grad = torch.zeros_like(q)
    return times | dict(optimiser=seconds(lambda: (p.opt_G.step(), p.opt_D.step()), 1., 1))


def measure(c: Case) -> dict:
    cfg, C, batch = players(c)
    if c.what == "reference": ref = Reference(cfg.model, C); step = lambda: ref.step(batch)
    else: p = make_players(cfg, C, make_accelerator(cfg)); step = lambda: our_step(p, batch)
    took = seconds(step, c.seconds)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    timed = parts(p, batch) if c.what == "ours" else {}
    total = count(c)
    return dict(size=c.size, batch=BATCH[c.size], what=c.what, variant=c.variant, images_per_s=BATCH[c.size] / took, gflops_per_s=total.flops() / took / 1e9,
                peak_share=total.flops() / took / c.conv, roofline_share=total.roofline(c.conv, c.bandwidth) / took, peak_mb=memory,
                step_gflops=total.flops() / 1e9, parts={k: round(v, 4) for k, v in timed.items()})


def main(cfg: Bench):
    if not 0 < cfg.seconds <= 600: raise CarganError(f"seconds={cfg.seconds} is not possible; give a number above 0, at most 600")
    writable_folder(cfg.out.parent)
    kept = [r for r in read_rows(cfg.out) if r["size"] not in cfg.sizes or r["variant"] not in cfg.variants]
    top = peaks()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}: GEMM {top['gemm'] / 1e9:.0f} GFLOP/s, convolution {top['conv'] / 1e9:.0f}, memory {top['bandwidth'] / 1e9:.1f} GB/s")
    print("size batch variant  what       pictures/s GFLOP/s peak roofline     MB  parts, s")
    rows = []
    for size in cfg.sizes:
        for variant in cfg.variants:
            for what in ("reference", "ours"):
                case = dict(size=size, variant=variant, what=what, seconds=cfg.seconds, **top)
                done = subprocess.run([sys.executable, __file__, "--case", json.dumps(case)], capture_output=True, text=True)
                if done.returncode: raise SystemExit(f"bench: {size} px {variant} {what} failed:\n{done.stderr[-2000:]}")
                r = json.loads(done.stdout.splitlines()[-1]); rows.append(r)
                print(f"{size:4} {r['batch']:5} {variant:8} {what:9} {r['images_per_s']:11.2f} {r['gflops_per_s']:7.0f} {r['peak_share']:4.0%} {r['roofline_share']:8.0%} "
                      f"{r['peak_mb']:6.0f}  {' '.join(f'{k} {v:.2f}' for k, v in r['parts'].items())}", flush=True)
    machine = dict(threads=torch.get_num_threads(), torch=torch.__version__, **{f"{k}_gflops_per_s": top[k] / 1e9 for k in ("gemm", "conv")}, bandwidth_gb_per_s=top["bandwidth"] / 1e9)
    write_json(cfg.out, sorted(kept + [r | dict(machine=machine) for r in rows], key=lambda r: r["size"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]: print(json.dumps(measure(Case(**json.loads(sys.argv[2])))))
    else: run(main, Bench, __doc__)

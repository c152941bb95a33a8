"""How time and memory grow: of a training step with the size of the picture, of attention with the number of positions. Writes bench/growth.json.

  python bench/growth.py [--what step memory attention operations] [--sizes 64 128 256 512] [--out bench/growth.json]

Every row is measured in a process of its own: seconds of one call, and by how much its first call made the process's largest resident set grow
(after a small step or a small map, which load the libraries). Rows of kinds not named in `--what` are kept as they are in the file.
  step        base 8, D 8 channels, small C, one random pair: with the paper's attention, and without any
  memory      base 24, D 16, small C, 8 to 32 pairs, beside what `cargan.cost.step_cost` predicts
  attention   128 channels, so queries, keys and values of 16 numbers; one map, forward and backward; fused (ours), and with its matrix written
              down (bench/reference.py)
  operations  one step at 128 px (batch 4, base 64, D 4, ResNet50 with random weights): FLOPs, bytes and seconds of each tensor operation
Exponents are slopes of least-squares lines through log(value) against log(side) or log(positions), of the three largest."""
import math, multiprocessing, resource, time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from cargan.attention import SelfAttention
from cargan.cascade import METHOD, PRESETS
from cargan.core import CarganError, read_json, seed_everything, write_json
from cargan.cost import StepMeter, step_cost
from cargan.looking import ImageClassifier
from cargan.residue import CARGANConfig
from cargan.speed import exponents
from common import run
from reference import Attention
from step import Case, our_players, peaks, players


@dataclass(frozen=True)
class Growth:
    what: tuple[Literal["step", "memory", "attention", "operations"], ...] = ("step", "memory", "attention", "operations")  # kinds to measure
    sizes: tuple[int, ...] = (64, 128, 256, 512)  # pixels of a side; powers of two
    positions: tuple[int, ...] = (256, 1024, 4096, 9216, 16384, 65536)  # squares
    naive_up_to: int = 16384  # positions whose matrix still fits into memory: it takes about 16 bytes x positions^2
    out: Path = Path("bench/growth.json")


def peak_mb() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(f, budget: float = 1.) -> dict:
    "What the first call adds to memory, and the seconds of the fastest of a few; what takes long is called once."
    before, times, grew = peak_mb(), [], None
    while not times or sum(times) < budget:
        start = time.perf_counter(); f(); times.append(time.perf_counter() - start)
        if grew is None: grew = peak_mb() - before
    return dict(seconds=min(times), grew_mb=grew)


def make_step(cfg):
    "A function that builds the networks and takes one step; from then on it only takes steps."
    size, n, made = cfg.model.size, cfg.batch_size, []
    batch = dict(mel=torch.rand(n, 1, size, size), image=torch.rand(n, 3, size, size), label=torch.arange(n) % 13)
    def step():
        if not made: made.append(our_players(cfg, ImageClassifier(cfg.classifier)))
        METHOD.step(made[0], batch)
    return step


def step(what: str, size: int, variant: str, base: int, d_base: int, batch: int) -> dict:
    seed_everything(0)
    cfg = replace(PRESETS["lab"], model=CARGANConfig(size=size, base=base, d_base=d_base, attention=variant), batch_size=batch, device="cpu", ema=0.)
    make_step(replace(cfg, model=CARGANConfig(size=32, base=4, d_base=4), batch_size=1))()
    cost = measured(make_step(cfg))
    return dict(what=what, variant=variant, size=size, base=base, batch=batch, **cost, **(dict(predicted_mb=step_cost(cfg, batch).peak / 2**20) if what == "memory" else {}))


def attention(positions: int, variant: str) -> dict:
    side = int(positions ** 0.5)
    net = SelfAttention(128) if variant == "fused" else Attention("sagan", 128)
    def call(side): net(torch.randn(1, 128, side, side, requires_grad=True)).square().mean().backward()
    call(8)
    return dict(what="attention", variant=variant, positions=positions, **measured(lambda: call(side)))


def operations() -> dict:
    "The third step: every operation of at least 0.2 ms, and this machine's peaks."
    cfg, C, batch = players(Case(128, "sagan", "ours", 1.))
    p, meter = our_players(cfg, C), StepMeter()
    for _ in range(2): METHOD.step(p, batch)
    start = time.perf_counter()
    with meter: METHOD.step(p, batch)
    took = time.perf_counter() - start
    kept = [{k: r[k] for k in ("op", "shapes", "flops", "bytes", "seconds")} for r in meter.rows if r["seconds"] >= 2e-4]
    return dict(what="operations", size=128, batch=4, step_seconds=took, kept_seconds=sum(r["seconds"] for r in kept), operations=kept, **peaks())


def cases(cfg: Growth):
    "(function, its arguments), in the order of measurement."
    for variant in ("none", "sagan"):
        for size in cfg.sizes: yield step, dict(what="step", size=size, variant=variant, base=8, d_base=8, batch=1)
    for size, batch in ((64, 8), (64, 32), (128, 8), (128, 16)): yield step, dict(what="memory", size=size, variant="sagan", base=24, d_base=16, batch=batch)
    for variant in ("fused", "naive"):
        for n in cfg.positions:
            if variant == "fused" or n <= cfg.naive_up_to: yield attention, dict(positions=n, variant=variant)
    yield operations, {}


def check(cfg: Growth):
    "Refuse what cannot be measured before anything is."
    for n in cfg.sizes:
        if n < 64 or n & (n - 1): raise CarganError(f"sizes: {n} is not possible; give powers of two, at least 64")
    for n in (*cfg.positions, cfg.naive_up_to):
        if n < 1 or math.isqrt(n) ** 2 != n: raise CarganError(f"positions: {n} is not possible; give squares, such as 4096")


def rows_of(path: Path) -> list:
    found = read_json(path, "growth")
    if "rows" not in found: raise CarganError(f"{path} holds something else than this benchmark's rows; give another --out")
    return found["rows"]


def main(cfg: Growth):
    check(cfg)
    context = multiprocessing.get_context("forkserver")
    rows = [r for r in (rows_of(cfg.out) if cfg.out.exists() else []) if r["what"] not in cfg.what]
    context.set_forkserver_preload(["cargan.speed"])  # imported once, not for each row
    with context.Pool(1, maxtasksperchild=1) as pool:
        for function, case in cases(cfg):
            if case.get("what", function.__name__) not in cfg.what: continue
            rows.append(r := pool.apply(function, kwds=case))
            print(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in r.items() if k != "operations"), flush=True)
    fitted = exponents(rows)
    for r in fitted: print("exponent:", " ".join(f"{k} {v:.2f}" if isinstance(v, float) else str(v) for k, v in r.items()))
    write_json(cfg.out, dict(threads=torch.get_num_threads(), torch=torch.__version__, exponents=fitted, rows=rows))


if __name__ == "__main__": run(main, Growth, __doc__)

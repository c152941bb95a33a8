"""What one GPU does with every method, in at most six minutes: checks first, then speed; writes bench/gpu.json.

  python bench/gpu.py [--seconds 330] [--out bench/gpu.json]     on a machine with a GPU
  python bench/gpu.py --short --out /tmp/gpu.json                the same script on a CPU, with tiny networks: tries its logic, measures nothing

Every finished measurement is written at once. Started again with the same --out, the script goes on with what is missing; it stops by itself after `--seconds` and
says what it left out. It needs torch, torchvision, accelerate and the small libraries that training needs; no data, no downloads. Scoring pictures needs more libraries, and is left out.

  machine    what the GPU reaches in matrix products (float32, TF32, bfloat16) and in memory
  agree      pictures and losses of one step on the GPU against the CPU: float32 without TF32, then bfloat16 on the GPU against float32 on the CPU
  waits      does a training step make the program wait for the GPU? None may (torch.cuda.set_sync_debug_mode)
  attention  which kernel PyTorch takes for the paper's attention on 16,384 positions, and the seconds of each that is possible
  step       training steps: pictures/s, TFLOP/s, share of the matrix product's peak in that precision, memory. Widths are the paper's; parts are small up to 64 px, the paper's above.
             FLOPs are those of `cargan.cost.step_flops`: what is recomputed in a backward pass counts
  draw       pictures/s of a trained model's `draw`, one at a time and 64 together
  log_mel    half-second windows per second, from samples to decibels

All weights and pictures are random. Exit status 1: a check failed."""
import time
START = time.monotonic()  # before the imports: they count
import argparse, os, signal, sys, tempfile
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Callable

import torch

sys.path[1:1] = [str(Path(__file__).resolve().parent.parent)]  # the package, where it isn't installed
from cargan.attention import SelfAttention
from cargan.core import CarganError, read_json, seed_everything, write_json
from cargan.cost import random_batch, random_parts, step_flops
from cargan.lms import LMSConfig, log_mel
from cargan.methods import TrainConfig, find_method
from cargan.training import Meter, bare_networks, make_accelerator, make_players, to_device
from common import learning
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

PRECISIONS = {"bf16": ("bf16", True), "TF32": ("no", True), "float32": ("no", False)}  # autocast; TF32
HOUSE = {f.name for f in fields(TrainConfig)} | {"model", "loss"}


class OutOfTime(BaseException):
    "Not an `Exception`, so that nobody catches it on its way."


@dataclass(frozen=True)
class Desk:
    "Where and how much is measured."
    device: torch.device
    short: bool  # tiny networks and few repetitions
    parts: Path  # folder for what methods make beforehand

    @property
    def budget(self) -> float: return 0.05 if self.short else 1.5  # seconds of each timing

    @property
    def sizes(self) -> tuple: return (32,) if self.short else (256, 128, 64)  # pixels

    @property
    def pairs(self) -> int: return 2 if self.short else 64  # of a step; the paper's batch

    def wait(self):
        if self.device.type == "cuda": torch.cuda.synchronize()

    def seconds(self, f: Callable, warmup: int = 3) -> float:
        "Of one call, over as many as fit into the budget, without waiting between them."
        for _ in range(warmup): f()
        self.wait(); start = time.perf_counter(); f(); self.wait()
        n = min(200, max(2, int(self.budget / (time.perf_counter() - start))))
        start = time.perf_counter()
        for _ in range(n): f()
        self.wait()
        return (time.perf_counter() - start) / n


@contextmanager
def tf32(on: bool):
    "TF32 in matrix products and convolutions, or not."
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places: place.allow_tf32 = on
    try: yield
    finally:
        for place, was in zip(places, before): place.allow_tf32 = was


def config(desk: Desk, name: str, size: int, precision: str = "no", device: str = "auto", **changes) -> TrainConfig:
    "A method at a size: the paper's widths, and up to 64 pixels the small parts of `lab`; on a CPU all of it is `lab`."
    lab, paper = (find_method(name).presets[k] for k in ("lab", "paper"))
    small = {f.name: getattr(lab, f.name) for f in fields(lab) if f.name not in HOUSE}
    cfg = lab if desk.short else replace(paper, **small) if size <= 64 else paper
    device = "cpu" if desk.device.type == "cpu" else device
    return replace(cfg, model=replace(cfg.model, size=size), batch_size=desk.pairs, ema=0., precision=precision, device=device, **changes)


def folder_of(desk: Desk, cfg: TrainConfig) -> Path:
    "What this method makes beforehand at this size, made from noise; kept until the end."
    folder = desk.parts/f"{cfg.method}-{cfg.model.size}"
    folder.mkdir(exist_ok=True)
    return random_parts(cfg, folder, desk.device)


def players(desk: Desk, cfg: TrainConfig):
    "The players of a run; equal configurations have equal weights on every device."
    folder = folder_of(desk, cfg)
    return make_players(cfg, lambda: find_method(cfg.method).make_model(cfg, folder), make_accelerator(cfg))


def noise(cfg: TrainConfig, p, pairs: int) -> dict:
    "A batch of noise on the players' device; the same on every device."
    torch.manual_seed(1)
    return to_device(random_batch(cfg, p.model, pairs), p.accelerator.device)


def machine(desk: Desk) -> dict:
    "What it reaches at best: matrix products of each precision, TFLOP/s; memory read and written, GB/s."
    n, found = 256 if desk.short else 8192, {}
    for name, (autocast, fast) in PRECISIONS.items():
        a = torch.randn(n, n, device=desk.device, dtype=torch.bfloat16 if autocast == "bf16" else torch.float32)
        with tf32(fast): found[name] = 2 * n ** 3 / desk.seconds(lambda: a @ a) / 1e12
    x = torch.zeros(1 << (16 if desk.short else 28), device=desk.device)
    return dict(matmul_tflops_per_s=found, memory_gb_per_s=8 * x.numel() / desk.seconds(lambda: x.add_(1.)) / 1e9)


def drawn(p, batch: dict) -> torch.Tensor:
    "The last picture of the model as it is, on the CPU."
    with torch.no_grad(), p.accelerator.autocast(): img = p.model.eval().draw(batch["mel"], batch["label"])["fine"]
    p.model.train()
    return img.float().cpu()


def agree(desk: Desk, name: str, precision: str) -> dict:
    "One step and one picture of the same weights, here and on the CPU."
    near = dict(picture=1e-3, losses=1e-2) if precision == "no" else dict(picture=0.05, losses=0.1)
    sides = []
    for device, autocast in (("cpu", "no"), ("auto", precision)):
        cfg = config(desk, name, min(desk.sizes), autocast, device, compile=False)
        p = players(desk, replace(cfg, batch_size=8))
        batch = noise(cfg, p, 8)
        with tf32(False): img = drawn(p, batch); losses = find_method(name).step(p, batch)
        sides.append((img, {k: v.item() for k, v in losses.items()}))
    (img, losses), (other, found) = sides
    apart = dict(picture=(img - other).abs().max().item() if precision == "no" else (img - other).abs().mean().item(),
                 losses=max(abs(found[k] - v) / max(1., abs(v)) for k, v in losses.items()))
    return dict(apart=apart, tolerance=near, losses=found, ok=all(apart[k] <= near[k] for k in near))


def waits(desk: Desk, name: str, average: bool) -> dict:
    "Steps as the training loop takes them, from pinned memory; whatever makes the program wait raises."
    cfg = replace(config(desk, name, min(desk.sizes), "bf16"), ema=0.9 if average else 0.)
    p, meter, step = players(desk, cfg), Meter(), find_method(name).step
    host = {k: v.pin_memory() if desk.device.type == "cuda" else v for k, v in random_batch(cfg, p.model, desk.pairs).items()}
    def go(i):
        meter.add(i, step(p, to_device(host, p.accelerator.device)))
        if p.ema: p.ema.update_parameters(nn.ModuleDict(bare_networks(p)))
    for i in range(3): go(i)  # allocations and the choice of kernels do wait
    desk.wait()
    if desk.device.type != "cuda": return dict(ok=True, where="nowhere: there is no GPU to wait for")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i in range(3, 6): go(i)
        where = ""
    except RuntimeError as e: where = origin(e)
    finally: torch.cuda.set_sync_debug_mode("default")
    return dict(ok=not where, where=where)


def origin(e: BaseException) -> str:
    "The last line of our own code that led to an error, and the error."
    line, trace = "", e.__traceback__
    while trace:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.parent.name in ("cargan", "bench"): line = f"{file.name}:{trace.tb_lineno}: "
        trace = trace.tb_next
    return line + f"{type(e).__name__}: {e}".splitlines()[0][:300]


def attention(desk: Desk, precision: str) -> dict:
    "Forward and backward on one map of 128 channels; the operation that PyTorch chose, and each that is possible."
    side, n = (8, 1) if desk.short else (128, 8)
    net, x = SelfAttention(128).to(desk.device), torch.randn(n, 128, side, side, device=desk.device, requires_grad=True)
    net.gamma.data.fill_(0.5)
    autocast, fast = PRECISIONS[precision]
    def go():
        with torch.autocast(desk.device.type, torch.bfloat16, enabled=autocast == "bf16"): y = net(x)
        y.float().square().mean().backward()
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (desk.device.type == "cuda")
    seconds, kernels = {}, set()
    with tf32(fast):
        go()
        with torch.profiler.profile(activities=kinds) as prof: go()
        for kind in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
            try:
                with sdpa_kernel(getattr(SDPBackend, kind)): seconds[kind] = desk.seconds(go, 1)
            except RuntimeError as e: seconds[kind] = f"not possible: {str(e).splitlines()[0][:100]}"
    for e in prof.key_averages():
        if "_scaled_dot_product" in e.key or any(k in e.key for k in ("fmha", "flash_fwd", "flash_bwd")): kernels.add(e.key[:120])
    fused = any(word in k for k in kernels for word in ("flash", "efficient", "cudnn"))
    return dict(positions=side ** 2, pictures=n, operations=sorted(kernels), seconds_of=seconds, ok=fused)


def step(desk: Desk, name: str, size: int, precision: str, peak: float, compiled: bool = False) -> dict:
    "Training steps in one precision; the batch is halved until it fits."
    autocast, fast = PRECISIONS[precision]
    cfg, pairs, update = config(desk, name, size, autocast, compile=compiled), desk.pairs, find_method(name).step
    while True:
        try:
            p = players(desk, replace(cfg, batch_size=pairs))
            batch = noise(cfg, p, pairs)
            with tf32(fast):
                losses = update(p, batch); desk.wait()
                if desk.device.type == "cuda": torch.cuda.reset_peak_memory_stats()
                took = desk.seconds(lambda: losses.update(update(p, batch)), 2)
            break
        except torch.OutOfMemoryError:
            p = batch = None; torch.cuda.empty_cache()
            if pairs == 1: raise
            pairs //= 2
    memory = torch.cuda.max_memory_allocated() / 1e9 if desk.device.type == "cuda" else None
    gflop = step_flops(replace(cfg, device="cpu", batch_size=2), folder_of(desk, cfg)) / 1e9
    rate = gflop * pairs / took / 1e3
    return dict(pairs=pairs, ms=took * 1e3, pictures_per_s=pairs / took, gflop_a_picture=gflop, tflops_per_s=rate, share_of_peak=rate / peak, memory_gb=memory,
                finite=all(bool(v.isfinite()) for v in losses.values()))


def draw(desk: Desk, name: str, size: int) -> dict:
    "Pictures a second of `draw` in float32, as `generate` uses it."
    cfg = config(desk, name, size)
    p, rates = players(desk, cfg), {}
    for n in (1, desk.pairs):
        batch = noise(cfg, p, n)
        with torch.inference_mode(), tf32(False): rates[str(n)] = n / desk.seconds(lambda: p.model.eval().draw(batch["mel"], batch["label"]))
    return dict(pictures_per_s=rates)


def sounds(desk: Desk) -> dict:
    "Log-mel spectrograms on the device, and how far they are from the CPU's above -80 dB."
    n, cfg = 16 if desk.short else 1000, LMSConfig()
    torch.manual_seed(0)
    waves = torch.randn(n, cfg.samples) * torch.logspace(-3, -0.5, n)[:, None]
    here = waves.to(desk.device)
    expected, found = log_mel(waves[::max(1, n // 50)]), log_mel(here[::max(1, n // 50)]).cpu()
    apart = (expected - found)[expected > -80].abs().max().item()
    return dict(windows=n, windows_per_s=n / desk.seconds(lambda: log_mel(here)), apart_db=apart, ok=apart < 0.05)


@dataclass(frozen=True)
class Job:
    name: str
    needs: float  # seconds on a fast GPU; not begun with less left
    go: Callable


def jobs(desk: Desk, names: tuple, found: dict):
    "All measurements, the most valuable first. `found` holds the results so far."
    large, peak = max(desk.sizes), lambda precision: found["machine"]["matmul_tflops_per_s"][precision]
    def steps(precision, sizes, names):
        for size in sizes:
            for name in names:
                yield Job(f"step/{name}/{size}/{precision}", 12, lambda n=name, s=size: step(desk, n, s, precision, peak(precision)))
    yield Job("machine", 10, lambda: machine(desk))
    for name in names: yield Job(f"agree/{name}/float32", 10, lambda n=name: agree(desk, n, "no"))
    for name in names: yield Job(f"agree/{name}/bf16", 10, lambda n=name: agree(desk, n, "bf16"))
    for name in names: yield Job(f"waits/{name}", 8, lambda n=name: waits(desk, n, False))
    yield Job(f"waits/{names[0]} with a moving average", 8, lambda: waits(desk, names[0], True))
    for precision in PRECISIONS: yield Job(f"attention/{precision}", 8, lambda k=precision: attention(desk, k))
    yield from steps("bf16", desk.sizes, names)
    yield Job("log_mel", 6, lambda: sounds(desk))
    for size in dict.fromkeys((large, min(desk.sizes))):
        for name in names: yield Job(f"draw/{name}/{size}", 8, lambda n=name, s=size: draw(desk, n, s))
    yield from steps("TF32", (large,), names)
    yield from steps("float32", (large,), names)
    if not desk.short: yield Job(f"step/{names[0]}/{large}/bf16 compiled", 90, lambda: step(desk, names[0], large, "bf16", peak("bf16"), compiled=True))
    for precision in ("TF32", "float32"): yield from steps(precision, [s for s in desk.sizes if s != large], names)


def attempt(desk: Desk, job: Job, until: float) -> tuple:  # (result, why there is none)
    "One measurement, cut off when the time is over; an error is noted, and doesn't stop the others."
    left = until - time.monotonic()
    if left < job.needs * (0.1 if desk.short else 1): return None, "no time left"
    def over(*args): raise OutOfTime
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, left)
    start = time.monotonic()
    try:
        seed_everything(0)
        return job.go() | dict(seconds=round(time.monotonic() - start, 1)), ""
    except OutOfTime: return None, "cut off: no time left"
    except KeyboardInterrupt: raise
    except Exception as e: return None, f"failed: {origin(e)}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0); signal.signal(signal.SIGALRM, before)
        if torch.cuda.is_available(): torch.cuda.empty_cache()


def told(name: str, r: dict) -> str:
    "A result in one line."
    if "share_of_peak" in r:
        memory = "" if r["memory_gb"] is None else f", {r['memory_gb']:.1f} GB"
        return f"{r['pictures_per_s']:.1f} pictures/s, {r['tflops_per_s']:.2f} TFLOP/s, {r['share_of_peak']:.0%} of the peak{memory}, {r['pairs']} pairs"
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in r.items() if k not in ("losses", "tolerance"))


def kept_results(out: Path, here: dict) -> dict:
    "What an earlier start measured; raises `CarganError` if that was another machine."
    if not out.exists(): return {}
    old = read_json(out, "results")
    if old.get("where") != here: raise CarganError(f"{out} was measured elsewhere ({old.get('where')}); give another --out, or remove it")
    return old["measured"]


def main(argv: list) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=330., help="stop after so long, counted from the start of the program")
    parser.add_argument("--out", type=Path, default=Path("bench/gpu.json"))
    parser.add_argument("--short", action="store_true", help="tiny networks on a CPU")
    a = parser.parse_args(argv)
    if not a.seconds > 0: raise CarganError(f"seconds={a.seconds} is not possible; give a number above 0")
    if not a.short and not torch.cuda.is_available(): raise CarganError("no GPU was found; give --short to try the script on a CPU")
    if a.short: os.environ["CUDA_VISIBLE_DEVICES"] = ""
    device = torch.device("cpu" if a.short else "cuda")
    here = dict(device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu", torch=torch.__version__, cuda=torch.version.cuda, short=a.short)
    found, names = kept_results(a.out, here), learning()
    with tempfile.TemporaryDirectory() as tmp:
        left_out = work(Desk(device, a.short, Path(tmp)), names, found, a, here)
    bad = [k for k, r in found.items() if not r.get("ok", True) or not r.get("finite", True)]
    for k in bad: print(f"CHECK FAILED: {k}: {told(k, found[k])}")
    for k, why in left_out.items(): print(f"left out: {k}: {why}")
    print(f"{len(found)} measured, {len(left_out)} left out, {len(bad)} checks failed, {time.monotonic() - START:.0f} s; {a.out}")
    return int(bool(bad) or any(why.startswith("failed") for why in left_out.values()))


def work(desk: Desk, names: tuple, found: dict, a, here: dict) -> dict:  # name -> why it was left out
    "Go through all jobs that are not done yet; `found` and the file grow with each."
    left_out = {}
    def save(): write_json(a.out, dict(where=here, measured=found, left_out=left_out))
    for job in jobs(desk, names, found):
        if job.name in found: continue
        result, why = (None, "the machine's peaks are missing") if job.name.startswith("step/") and "machine" not in found else attempt(desk, job, START + a.seconds)
        if result is None: left_out[job.name] = why
        else: found[job.name] = result; print(f"{job.name}: {told(job.name, result)}", flush=True)
        save()
    save()
    return left_out


if __name__ == "__main__":
    try: sys.exit(main(sys.argv[1:]))
    except CarganError as e:
        print(f"gpu: {e}", file=sys.stderr)
        sys.exit(2)

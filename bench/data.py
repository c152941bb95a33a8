"""Whether training ever waits for data; prints three tables and writes bench/data.json.

  python bench/data.py [--gb 2] [--source data/synthurmp] [--out bench/data.json]

1. The loader (a memory-mapped bundle of random pairs, `make_loader`) in pairs/s: sizes, numbers of worker processes, and the page cache emptied before or
   filled. Beside it, what the training step of bench/results.json takes in (its fastest row of that size), and what one GPU would: the step's FLOPs at
   256 px against `gpu_tflops` x `gpu_share`. That is arithmetic, not a measurement: no GPU is used.
2. Random batches from the first n pairs of one 256 px bundle of `gb` gigabytes, n growing: cold, and among pairs that are cached.
3. With `source` (a data set in the released layout): `cargan prepare` with 1, 2, ... processes, and whether its bytes are the same.

The bundles are written to `folder` (a temporary one) and deleted; `gb` larger than memory is allowed. Emptying the page cache needs Linux."""
import os, resource, shutil, tempfile, time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cargan.bundle import PART, PrepareConfig, open_bundle, prepare, read_source, write_folder
from cargan.core import INSTRUMENTS, CarganError, cores, writable_folder, write_json
from cargan.data import EpochSampler, PairDataset, make_loader
from cargan.lms import LMSConfig
from common import read_rows, run

LMS = LMSConfig()


@dataclass(frozen=True)
class Data:
    sizes: tuple[int, ...] = (64, 128, 256)  # pixels
    workers: tuple[int, ...] = (0, 1, 2)  # loader processes; 0: in the training process
    batch: int = 16  # pairs
    seconds: float = 2.  # of each measurement
    loader_gb: float = 0.5  # of each bundle of the first table
    gb: float = 2.  # of the bundle of the second table; 0: leave it out
    source: Path | None = None  # of the third table; none: leave it out
    prepare_size: int = 64  # pixels
    results: Path = Path("bench/results.json")  # what steps take in
    gpu_tflops: float = 989.  # bf16, dense: an H100 SXM's data sheet
    gpu_share: float = 0.4  # of it, assumed to be reached by a training step
    folder: Path | None = None  # where bundles are written; none: the system's temporary folder
    out: Path = Path("bench/data.json")


def pair_bytes(size: int) -> int: return 3 * size ** 2 + 2 * LMS.n_mels * LMS.frames


@contextmanager
def random_bundle(cfg: Data, size: int, gb: float):  # yields a folder
    "A bundle of about `gb` gigabytes, written as `prepare` writes it; the pixels of 256 pairs are random, and repeated."
    rng, parts = np.random.default_rng(0), max(1, round(gb * 1e9 / pair_bytes(size) / PART))
    part = dict(image=rng.integers(0, 256, (PART, size, size, 3), dtype=np.uint8), lms_db=rng.uniform(-100, 0, (PART, LMS.n_mels, LMS.frames)).astype(np.float16),
                label=np.arange(PART) % len(INSTRUMENTS))
    small = dict(pair_id=np.array([f"{INSTRUMENTS[i % 13]}{i // 1300:02d}_{500 + i % 1300}" for i in range(parts * PART)]), instruments=np.array(INSTRUMENTS))
    with tempfile.TemporaryDirectory(dir=cfg.folder, prefix="cargan-bench-") as tmp:
        write_folder(Path(tmp)/"pairs", [part] * parts, small)
        yield Path(tmp)/"pairs"


def forget(folder: Path):
    "Drop a folder's files from the page cache, where the system can."
    if not hasattr(os, "posix_fadvise"): return
    for path in folder.iterdir():
        with open(path, "rb+") as f: os.fsync(f.fileno()); os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remember(folder: Path):
    "Read a folder's files once, from front to back."
    for path in folder.iterdir():
        with open(path, "rb", buffering=0) as f:
            while f.read(1 << 24): pass


def opened(folder: Path, cold: bool):  # a Bundle
    "A checked bundle; the check has read some of it, so a cold one is mapped anew."
    bundle = open_bundle(folder)
    if not cold: return bundle
    small = replace(bundle, image=None, lms_db=None)
    del bundle; forget(folder)
    return replace(small, **{k: np.load(folder/f"{k}.npy", mmap_mode="r") for k in ("image", "lms_db")})


def read_mb() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_inblock * 512 / 1e6  # from the disk, by this process


def cpu_seconds() -> np.ndarray:  # of this process, of those that it started and that have ended
    return np.array([sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)])


def rate(dataset: PairDataset, sampler: EpochSampler, workers: int, seconds: float) -> dict:  # pairs/s; per batch: ms, MB read; per pair: ms of processor time, here and in workers
    "Batches until the time is over or the epoch is; the first one, which starts the processes, doesn't count."
    batches, cpu = iter(make_loader(dataset, sampler, workers=workers)), cpu_seconds()
    n = len(next(batches)["label"])
    mb, start, count, took = read_mb(), time.perf_counter(), 0, 0.
    for _ in batches:
        count, took = count + 1, time.perf_counter() - start
        if took > seconds: break
    if not count: raise CarganError("too few pairs for two batches; raise --loader-gb or --gb, or lower --batch")
    mb = (read_mb() - mb) / count
    del batches, _  # the workers end, and their time is known
    here, there = (cpu_seconds() - cpu) * 1e3 / (n * (count + 1))
    return dict(batches=count, pairs_per_s=n * count / took, ms_per_batch=1e3 * took / count, mb_read_per_batch=mb, cpu_ms_here=here, cpu_ms_workers=there)


def loader_rows(cfg: Data) -> list:
    rows = []
    for size in cfg.sizes:
        with random_bundle(cfg, size, cfg.loader_gb) as folder:
            for cache in ("cold", "warm"):
                for workers in cfg.workers:
                    bundle = opened(folder, cache == "cold")
                    if cache == "warm": remember(folder)
                    measured = rate(PairDataset(bundle, size), EpochSampler(len(bundle), cfg.batch, seed=workers), workers, cfg.seconds)
                    rows.append(dict(what="loader", size=size, workers=workers, cache=cache, batch=cfg.batch, pairs=len(bundle)) | measured)
                    del bundle
    return rows


def step_takes(cfg: Data, size: int) -> float | None:  # pictures/s
    "The fastest step of this size in the step benchmark's results, if they are there."
    return max((r["images_per_s"] for r in read_rows(cfg.results) if r["size"] == size and "method" not in r), default=None)


def picture_gflops(cfg: Data, size: int = 256) -> float:
    "FLOPs of a training step for one picture, paper's attention: from the results, or counted now."
    rows = [r for r in read_rows(cfg.results) if r["size"] == size and r["variant"] == "sagan"]
    if rows: return rows[0]["step_gflops"] / rows[0]["batch"]
    from step import BATCH, Case, count
    return count(Case(size, "sagan", "ours", 0.)).flops() / 1e9 / BATCH[size]


def gpu_row(cfg: Data, rows: list) -> dict:
    "What one GPU would take in at 256 px, and how many loader processes that needs."
    gflops = picture_gflops(cfg)
    takes = cfg.gpu_tflops * 1e3 * cfg.gpu_share / gflops
    one = next((r["pairs_per_s"] for r in rows if (r["size"], r["workers"], r["cache"]) == (256, 1, "warm")), None)
    return dict(what="gpu", size=256, gflops_per_picture=gflops, tflops=cfg.gpu_tflops, share=cfg.gpu_share, takes_per_s=takes, one_worker_per_s=one,
                workers_needed=None if one is None else int(np.ceil(takes / one)))


def growth_rows(cfg: Data, folder: Path) -> list:
    "Random batches among more and more pairs of one bundle at 256 px: from the disk, then the same pairs again in another order."
    rows, bundle, total = [], None, len(open_bundle(folder))
    for n in (max(2 * cfg.batch, total >> k) for k in (3, 2, 1, 0)):
        bundle = None  # nothing may be mapped while the cache is emptied
        bundle = opened(folder, True)
        sampler = EpochSampler(n, cfg.batch)
        for cache in ("cold", "cached"):
            measured = rate(PairDataset(bundle, 256), sampler, 0, cfg.seconds)
            rows.append(dict(what="growth", size=256, pairs=n, gb=n * pair_bytes(256) / 1e9, cache=cache, batch=cfg.batch) | measured)
            sampler = EpochSampler(np.ravel(sampler.batches[:measured["batches"] + 1]), cfg.batch, seed=1)
    return rows


def prepare_rows(cfg: Data) -> list:
    rows, first = [], None
    with tempfile.TemporaryDirectory(dir=cfg.folder, prefix="cargan-bench-") as tmp:
        for workers in sorted({1, 2, cores()}):
            start = time.perf_counter()
            out = prepare(PrepareConfig(cfg.source, Path(tmp)/f"{workers}.npz", size=cfg.prepare_size, workers=workers))
            took, data = time.perf_counter() - start, out.read_bytes()
            first = first or data
            rows.append(dict(what="prepare", size=cfg.prepare_size, workers=workers, seconds=took, pairs_per_s=len(open_bundle(out)) / took, same_bytes=data == first))
    return rows


def show(cfg: Data, rows: list):
    print(f"{cores()} cores, {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB of memory")
    print(f"\nloader, pairs/s, batches of {cfg.batch}\nsize workers    cold    warm  CPU ms a pair: here, workers (warm)  times what the step takes in (cold)")
    loader = {(r["size"], r["workers"], r["cache"]): r for r in rows if r["what"] == "loader"}
    for size, workers in sorted({k[:2] for k in loader}):
        takes, cold, warm = step_takes(cfg, size), loader[size, workers, "cold"]["pairs_per_s"], loader[size, workers, "warm"]
        print(f"{size:4} {workers:7} {cold:7,.0f} {warm['pairs_per_s']:7,.0f} {warm['cpu_ms_here']:20.2f} {warm['cpu_ms_workers']:8.2f} {'step not measured' if takes is None else f'{cold / takes:,.0f}':>38}")
    for r in rows:
        if r["what"] == "gpu": print(f"\none GPU at 256 px: {r['tflops']:.0f} TFLOP/s x {r['share']:.0%} / {r['gflops_per_picture']:.0f} GFLOP = {r['takes_per_s']:,.0f} pictures/s (assumed, not measured); loader processes needed: {r['workers_needed']}")
    if grown := [r for r in rows if r["what"] == "growth"]: print(f"\nrandom batches of {cfg.batch} pairs at 256 px\n   pairs      GB  cache   ms/batch  MB read/batch")
    for r in grown: print(f"{r['pairs']:8,} {r['gb']:7.2f}  {r['cache']:6} {r['ms_per_batch']:9.1f} {r['mb_read_per_batch']:14.1f}")
    if made := [r for r in rows if r["what"] == "prepare"]: print(f"\nprepare, {cfg.prepare_size} px\nprocesses seconds  pairs/s  same bytes")
    for r in made: print(f"{r['workers']:9} {r['seconds']:7.1f} {r['pairs_per_s']:8,.0f}  {'yes' if r['same_bytes'] else 'NO'}")


def check(cfg: Data):
    "Raises `CarganError` before anything is written."
    if not min(cfg.batch, cfg.seconds, cfg.loader_gb, cfg.gpu_tflops, cfg.gpu_share, cfg.prepare_size, *cfg.sizes) > 0 or not min(cfg.gb, *cfg.workers) >= 0:
        raise CarganError("sizes, batch, seconds, loader_gb and the GPU's numbers must be positive, gb and workers at least 0")
    free = shutil.disk_usage(writable_folder(cfg.folder or tempfile.gettempdir())).free / 1e9
    if max(cfg.gb, cfg.loader_gb) > 0.9 * free: raise CarganError(f"bundles of {max(cfg.gb, cfg.loader_gb):.1f} GB don't fit: {free:.1f} GB are free; lower --gb or give another --folder")
    if cfg.source: read_source(cfg.source)


def main(cfg: Data):
    check(cfg)
    rows = loader_rows(cfg)
    if 256 in cfg.sizes: rows.append(gpu_row(cfg, rows))
    if cfg.gb:
        with random_bundle(cfg, 256, cfg.gb) as folder: rows += growth_rows(cfg, folder)
    if cfg.source: rows += prepare_rows(cfg)
    show(cfg, rows)
    write_json(cfg.out, rows)


if __name__ == "__main__": run(main, Data, __doc__)

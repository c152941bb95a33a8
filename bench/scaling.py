"""What a second process brings on a machine with two cores: pictures a second of training steps, written to bench/scaling.json.

  python bench/scaling.py [--seconds 10] [--out bench/scaling.json]

Preset `lab` (64 px, batch 8, base 24, D 16, small C), random pairs, on the CPU. One process with one thread and with two, against two processes of one
thread each (`torchrun`; gloo averages the gradients; `accelerate launch --cpu --num_processes 2` starts a single one where there is no MPI): the same batch shared by both, and a batch for each.
Efficiency is pictures a second over those of one thread, divided by the threads."""
import json, os, subprocess, sys, tempfile, time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cargan.cascade import METHOD, PRESETS
from cargan.core import CarganError, read_json, write_json
from cargan.looking import ImageClassifier
from common import run
from step import our_players

CASES = [(1, 1, 8), (1, 2, 8), (2, 1, 8), (1, 1, 16), (1, 2, 16), (2, 1, 16)]  # processes, threads of each, pairs of a step over all processes


@dataclass(frozen=True)
class Scaling:
    seconds: float = 10.  # for each row, after two steps to warm up
    out: Path = Path("bench/scaling.json")


def work(out: str, threads: int, batch: int, seconds: float):
    "What each process does; the first one writes down the time of a step."
    torch.set_num_threads(threads)
    cfg = replace(PRESETS["lab"], batch_size=batch, device="cpu", ema=0.)
    p = our_players(cfg, ImageClassifier(cfg.classifier))
    acc, n = p.accelerator, batch // p.accelerator.num_processes
    pairs = dict(mel=torch.rand(n, 1, 64, 64), image=torch.rand(n, 3, 64, 64), label=torch.arange(n) % 13)
    for _ in range(2): METHOD.step(p, pairs)
    acc.wait_for_everyone(); start = time.perf_counter(); METHOD.step(p, pairs); acc.wait_for_everyone()
    once = acc.gather(torch.tensor([time.perf_counter() - start])).max().item()  # all processes agree on the number of steps
    start, steps = time.perf_counter(), max(3, round(seconds / once))
    for _ in range(steps): METHOD.step(p, pairs)
    acc.wait_for_everyone(); took = (time.perf_counter() - start) / steps
    if acc.is_main_process: write_json(Path(out), dict(processes=acc.num_processes, threads=threads, batch=batch, seconds=took, images_per_s=batch / took))


def measure(processes: int, threads: int, batch: int, seconds: float) -> dict:
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp)/"row.json"
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes] if processes > 1 else []
        command = [sys.executable, *launch, __file__, "--work", json.dumps(dict(out=str(out), threads=threads, batch=batch, seconds=seconds))]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        if done.returncode: raise SystemExit(f"scaling: {processes} processes failed:\n{done.stderr[-2000:]}")
        return read_json(out, "row")


def main(cfg: Scaling):
    if not 0 < cfg.seconds < 600: raise CarganError(f"seconds={cfg.seconds} is not possible; give a number between 0 and 600")
    rows = []
    print("processes threads batch  s/step pictures/s efficiency")
    for case in CASES:
        r = measure(*case, cfg.seconds)
        if r["processes"] != case[0]: raise SystemExit(f"scaling: asked for {case[0]} processes, got {r['processes']}")
        single = next((x for x in rows if x["batch"] == r["batch"]), r)
        rows.append(r := r | dict(efficiency=r["images_per_s"] / single["images_per_s"] / (r["processes"] * r["threads"])))
        print(f"{r['processes']:9} {r['threads']:7} {r['batch']:5} {r['seconds']:7.3f} {r['images_per_s']:10.2f} {r['efficiency']:10.0%}", flush=True)
    write_json(cfg.out, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]: work(**json.loads(sys.argv[2]))
    else: run(main, Scaling, __doc__)

"""How fast pictures come out: PyTorch, the graph of torch.export and onnxruntime, in turn; prints a table and writes bench/inference.json.

  python bench/inference.py [--sizes 64 128 256] [--run runs/quickstart] [--seconds 5] [--out bench/inference.json]

64 px has the widths of the preset `lab`, 128 and 256 px those of `paper` (base 64, ResNet50); weights are random, so the pictures are too. Input of all three
is half a second in decibels and a label. "from sound" begins with 22,050 samples and ends with 8-bit pictures: log-mel, cascade, rounding.
Calls alternate between engines and numbers of threads, so that all share the machine's good and bad moments. A batch expected to take longer than
`--longest` a call is left out. Each batch's rows are written as soon as they are there; rows of other models and batches that `--out` holds already are kept."""
import tempfile, time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cargan.core import CarganError, seed_everything, to_uint8, writable_folder, write_json  # first: it forbids ONNX Runtime to report to its makers

import numpy as np
import onnxruntime
import torch

from cargan.cascade import PRESETS
from cargan.looking import ClassifierConfig, ImageClassifier
from cargan.export import FromDecibels, OnnxModel, difference, example, export_program, write_onnx
from cargan.lms import log_mel
from cargan.residue import CARGAN
from cargan.training import load_run
from common import read_rows, run


@dataclass(frozen=True)
class Bench:
    sizes: tuple[Literal[64, 128, 256], ...] = (64, 128, 256)  # pixels; nothing for none
    run: Path | None = None  # also a trained run
    batches: tuple[int, ...] = (1, 8, 32)  # pictures a call
    threads: tuple[int, ...] = (1, 2)  # of each engine
    seconds: float = 5.  # at least, for each model and batch; and at least three calls of everything
    longest: float = 10.  # seconds a call may be expected to take
    out: Path = Path("bench/inference.json")


def random_model(size: int) -> CARGAN:
    "A cascade that has learnt nothing; its speed doesn't show it."
    seed_everything(0)
    cfg = PRESETS["lab" if size == 64 else "paper"]
    return CARGAN(replace(cfg.model, size=size), ImageClassifier(ClassifierConfig(arch=cfg.classifier.arch, size=size, pretrained="none"))).eval()


def engines(model: CARGAN, threads: tuple, folder: Path) -> tuple[dict, float]:
    "(engine, threads) -> a function of decibels and labels; and how far onnxruntime's pictures are from PyTorch's."
    net, graph = FromDecibels(model), export_program(model).module()
    write_onnx(folder/"cascade.onnx", model)
    made = {}
    for t in threads:
        cascade = OnnxModel(folder/"cascade.onnx", threads=t)
        made |= {("PyTorch", t): net, ("torch.export", t): graph, ("onnxruntime", t): cascade}
    return made, difference(model, cascade)


def from_sound(engine):
    "The same engine, fed with samples."
    def go(wave, label): return [to_uint8(torch.as_tensor(x)) for x in engine(log_mel(wave), label)]
    return go


def alternate(calls: dict, inputs: tuple, seconds: float) -> dict:
    "Seconds of each call of each function, in turn; the first round doesn't count where a call is short."
    took, end = {k: [] for k in calls}, None
    while end is None or time.perf_counter() < end or min(map(len, took.values())) < 3:
        for key, f in calls.items():
            torch.set_num_threads(key[1])
            time.sleep(0.02)  # the other engine's threads stop looking for work
            start = time.perf_counter(); f(*inputs); took[key].append(time.perf_counter() - start)
        if end is None:
            end = time.perf_counter() + seconds
            if sum(map(sum, took.values())) < 2 * seconds: took = {k: [] for k in calls}
    return took


@torch.inference_mode()
def measure(name: str, model: CARGAN, cfg: Bench, machine: dict):
    "All rows of one model, printed and written."
    alone = {}
    with tempfile.TemporaryDirectory() as folder: made, off = engines(model, cfg.threads, Path(folder))
    print(f"\n{name}: onnxruntime differs from PyTorch by at most {off:.0e}\nengine                 threads batch  pictures/s  median ms  95 % ms  calls", flush=True)
    for batch in cfg.batches:
        decibels, label = (x.repeat(batch, *[1] * (x.ndim - 1)) for x in example(n=1))
        kept = {k: f for k, f in made.items() if batch * alone.get(k, 0) < cfg.longest}
        took = alternate(kept, (decibels, label), cfg.seconds) if kept else {}
        if batch == 1:
            alone = {k: np.median(v) for k, v in took.items()}
            sound = {(f"{k} from sound", t): from_sound(f) for (k, t), f in made.items() if k != "torch.export"}
            took |= alternate(sound, (torch.randn(1, 22050) / 9, label), cfg.seconds)
        rows = []
        for (engine, threads), v in took.items():
            r = dict(model=name, size=model.size, engine=engine, threads=threads, batch=batch, pictures_per_s=batch / np.median(v),
                     median_ms=1e3 * np.median(v), p95_ms=1e3 * np.percentile(v, 95), calls=len(v), onnx_difference=off, machine=machine)
            rows.append({k: float(f"{x:.4g}") if isinstance(x, float) else x for k, x in r.items()})
            print(f"{engine:22} {threads:7} {batch:5} {r['pictures_per_s']:11.2f} {r['median_ms']:10.1f} {r['p95_ms']:8.1f} {len(v):6}", flush=True)
        rows += [r for r in read_rows(cfg.out) if (r["model"], r["batch"]) != (name, batch)]
        write_json(cfg.out, sorted(rows, key=lambda r: (r["size"], r["model"], r["batch"])))


def main(cfg: Bench):
    if min(*cfg.batches, *cfg.threads, 1) < 1 or cfg.seconds <= 0: raise CarganError("batches, threads and seconds must be above 0")
    writable_folder(cfg.out.parent)
    trained = load_run(cfg.run)[0] if cfg.run else None
    models = {f"{'lab' if size == 64 else 'paper'}, {size} px": lambda size=size: random_model(size) for size in cfg.sizes}
    if trained: models[f"run {cfg.run.name}"] = lambda: trained
    machine = dict(torch=torch.__version__, onnxruntime=onnxruntime.__version__)
    print(", ".join(f"{k} {v}" for k, v in machine.items()))
    for name, make in models.items(): measure(name, make(), cfg, machine)


if __name__ == "__main__": run(main, Bench, __doc__)

"""How fast pictures come out: PyTorch, the graph of torch.export and onnxruntime, in turn; prints a table and writes bench/inference.json.

  python bench/inference.py [--methods cargan listener] [--sizes 64 128 256] [--run runs/listener] [--seconds 5]

CAR-GAN at 64 px has the widths of the preset `lab`, at 128 and 256 px those of `paper` (base 64, ResNet50); the listener has those of
`lab`, `full` and `paper`, and the shipped ear. Other weights are random, so the pictures are too. Input of all engines is half a second
in decibels, and a label where the method wants one. "from sound" begins with 22,050 samples and ends with 8-bit pictures: log-mel by
PyTorch, networks, rounding. "one file" is the file that begins with samples and has the ear in it, rounding included; "ratio" is its
processor time to that of the file that begins with decibels, the median of pairs of calls. "CPU ms" is the median of the processor time
of a call, which other programs on the machine lengthen less than the time on the clock. Calls alternate between engines and numbers of
threads, so that all share the machine's good and bad moments. A batch expected to take longer than `--longest` a call is left out. Each
batch's rows are written as soon as they are there; rows of other models and batches that `--out` holds already are kept."""
import tempfile, time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

# first: it forbids ONNX Runtime to report to its makers
from cargan.core import CarganError, seed_everything, to_uint8, writable_folder, write_json

import numpy as np
import onnxruntime
import torch

from cargan.cascade import PRESETS
from cargan.eye import Eye
from cargan.export import FromDecibels, FromSamples, OnnxModel, difference, example, export_program, write_onnx
from cargan.hearing import Who, WhoConfig, find_ear, load_audio_classifier
from cargan.listener import Listener, METHOD as LISTENER
from cargan.lms import log_mel
from cargan.looking import ClassifierConfig, ImageClassifier
from cargan.residue import CARGAN
from cargan.training import load_run
from common import read_rows, run


@dataclass(frozen=True)
class Bench:
    methods: tuple[Literal["cargan", "listener"], ...] = ("cargan", "listener")  # with random weights
    sizes: tuple[Literal[64, 128, 256], ...] = (64, 128, 256)  # pixels; nothing for none
    run: Path | None = None  # also a trained run
    batches: tuple[int, ...] = (1, 8, 32)  # pictures a call
    threads: tuple[int, ...] = (1, 2)  # of each engine
    seconds: float = 5.  # at least, for each model and batch; and at least three calls of everything
    longest: float = 10.  # seconds a call may be expected to take
    out: Path = Path("bench/inference.json")


def random_cargan(size: int) -> CARGAN:
    "A cascade that has learnt nothing; its speed doesn't show it."
    cfg = PRESETS["lab" if size == 64 else "paper"]
    return CARGAN(replace(cfg.model, size=size), ImageClassifier(ClassifierConfig(arch=cfg.classifier.arch, size=size, pretrained="none")))


def random_listener(size: int) -> Listener:
    "A listener that has learnt nothing but to hear, with three players an instrument."
    cfg, ear = LISTENER.presets[{64: "lab", 128: "full", 256: "paper"}[size]], load_audio_classifier(find_ear("shipped"))
    people = tuple((k, str(i)) for k in range(13) for i in range(3))
    eye = Eye(replace(cfg.eye, size=size, people=len(people)))
    return Listener(replace(cfg.model, size=size), eye, ear, Who(WhoConfig(people=people, features=6 * ear.cfg.width)))


def random_model(method: str, size: int):
    seed_everything(0)
    return (random_cargan if method == "cargan" else random_listener)(size).eval()


def ear_for(model): return None if hasattr(model, "ear") else load_audio_classifier(find_ear("shipped"))


def engines(net: FromDecibels, threads: tuple, folder: Path) -> tuple[dict, float]:
    "(engine, threads) -> a function of what the file takes; and how far onnxruntime's pictures are from PyTorch's."
    graph, made = export_program(net).module(), {}
    write_onnx(folder/"cascade.onnx", net)
    for t in threads:
        cascade = OnnxModel(folder/"cascade.onnx", threads=t)
        made |= {("PyTorch", t): net, ("torch.export", t): graph, ("onnxruntime", t): cascade}
    return made, difference(net, cascade)


def from_sound(engine):
    "The same engine, fed with samples."
    def go(wave, *label): return [to_uint8(torch.as_tensor(x)) for x in engine(log_mel(wave), *label)]
    return go


def whole_files(model, made: dict, decibels, threads: tuple, folder: Path) -> tuple[dict, float]:  # as `engines`
    "What begins with samples, beside the file that begins with decibels; and how far the file with the ear is from PyTorch."
    net = FromSamples(model, ear_for(model))
    write_onnx(folder/"whole.onnx", net)
    files, names = {t: OnnxModel(folder/"whole.onnx", threads=t) for t in threads}, {k[0] for k in made} - {"torch.export"}
    def one_file(file): return lambda wave, *label: [to_uint8(torch.as_tensor(x)) for x in file(wave)]
    def drawing_alone(file): return lambda wave, *label: file(decibels, *label)
    calls = {(f"{name} from sound", t): from_sound(made[name, t]) for name in sorted(names) for t in threads}
    calls |= {("onnxruntime, one file", t): one_file(files[t]) for t in threads}
    return calls | {("decibels", t): drawing_alone(made["onnxruntime", t]) for t in threads}, difference(net, files[threads[0]])


def alternate(calls: dict, inputs: tuple, seconds: float) -> dict:
    "Seconds on the clock and of processor time of each call, in turn; the first round doesn't count where calls are short."
    took, end = {k: [] for k in calls}, None
    while end is None or time.perf_counter() < end or min(map(len, took.values())) < 3:
        for key, f in calls.items():
            torch.set_num_threads(key[1])
            time.sleep(0.02)  # the other engine's threads stop looking for work
            start, busy = time.perf_counter(), time.process_time()
            f(*inputs)
            took[key].append((time.perf_counter() - start, time.process_time() - busy))
        if end is None:
            end = time.perf_counter() + seconds
            if sum(t for v in took.values() for t, _ in v) < 2 * seconds: took = {k: [] for k in calls}
    return {k: np.array(v) for k, v in took.items()}


@torch.inference_mode()
def measure(name: str, model, cfg: Bench, machine: dict):
    "All rows of one model, printed and written."
    alone, net, folder = {}, FromDecibels(model), tempfile.TemporaryDirectory()
    made, off = engines(net, cfg.threads, Path(folder.name))
    print(f"\n{name}: onnxruntime differs from PyTorch by at most {off:.0e}")
    print("engine                 threads batch  pictures/s  median ms  95 % ms   CPU ms  calls  ratio", flush=True)
    for batch in cfg.batches:
        inputs, ratio = tuple(x.repeat(batch, *[1] * (x.ndim - 1)) for x in example(net, 1)), {}
        kept = {k: f for k, f in made.items() if batch * alone.get(k, 0) < cfg.longest}
        took = alternate(kept, inputs, cfg.seconds) if kept else {}
        if batch == 1:
            alone = {k: np.median(v[:, 0]) for k, v in took.items()}
            calls, whole_off = whole_files(model, made, inputs[0], cfg.threads, Path(folder.name))
            off = max(off, whole_off)
            sound = alternate(calls, (torch.randn(1, 22050) / 9, *inputs[1:]), cfg.seconds)
            for t in cfg.threads:
                ratio["onnxruntime, one file", t] = np.median(sound["onnxruntime, one file", t] / sound.pop(("decibels", t)), 0)[1]
            took |= sound
        rows = []
        for (engine, threads), both in took.items():
            v, busy = both.T
            r = dict(model=name, size=model.size, engine=engine, threads=threads, batch=batch, pictures_per_s=batch / np.median(v),
                     median_ms=1e3 * np.median(v), p95_ms=1e3 * np.percentile(v, 95), cpu_ms=1e3 * np.median(busy), calls=len(v),
                     onnx_difference=off, machine=machine)
            says, shown = ratio.get((engine, threads)), ""
            if says: r, shown = r | dict(to_decibels=says), f"{says:.2f}"
            rows.append({k: float(f"{x:.4g}") if isinstance(x, float) else x for k, x in r.items()})
            numbers = f"{r['pictures_per_s']:11.2f} {r['median_ms']:10.1f} {r['p95_ms']:8.1f} {r['cpu_ms']:8.1f}"
            print(f"{engine:22} {threads:7} {batch:5} {numbers} {len(v):6} {shown:>6}", flush=True)
        rows += [r for r in read_rows(cfg.out) if (r["model"], r["batch"]) != (name, batch)]
        write_json(cfg.out, sorted(rows, key=lambda r: (r["size"], r["model"], r["batch"])))
    folder.cleanup()


def title(method: str, size: int) -> str:
    if method == "cargan": return f"{'lab' if size == 64 else 'paper'}, {size} px"
    return f"listener {({64: 'lab', 128: 'full', 256: 'paper'})[size]}, {size} px"


def main(cfg: Bench):
    if min(*cfg.batches, *cfg.threads, 1) < 1 or cfg.seconds <= 0: raise CarganError("batches, threads and seconds must be above 0")
    writable_folder(cfg.out.parent)
    trained = load_run(cfg.run)[0] if cfg.run else None
    models = {title(m, size): lambda m=m, size=size: random_model(m, size) for m in cfg.methods for size in cfg.sizes}
    if trained: models[f"run {cfg.run.name}"] = lambda: trained
    machine = dict(torch=torch.__version__, onnxruntime=onnxruntime.__version__)
    print(", ".join(f"{k} {v}" for k, v in machine.items()))
    for name, make in models.items(): measure(name, make(), cfg, machine)


if __name__ == "__main__": run(main, Bench, __doc__)

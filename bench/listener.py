"""What each part of the listener is worth: its variants, trained for the same short time and scored alike, and one picture of all.

  python bench/listener.py runs/variants --data data/synthurmp.npz [--epochs 3] [--names listener no-eye] [--picture nbs/pictures/listener_variants.png]

Each variant is an ordinary run (OUT/NAME), which goes on where it was interrupted; its figures are one line of OUT/NAME.json, written when it
is done, and of the table that is printed at the end (and of --json FILE). All of them are scored by the same probe, on all held-out windows in
which somebody plays: 'told' is told the true factors, 'heard' is told what the ear hears."""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from cargan.core import CarganError, read_json, save_figure, to_uint8, write_json
from cargan.data import PairDataset, open_data, split_recordings
from cargan.following import Held, alternatives, hear, imagined, score_following, show_sweep, sweep_drawings, sweep_sounds
from cargan.listening import ProbeConfig, load_probe, read_off, real_pictures, save_probe, train_probe
from cargan.methods import find_method
from cargan.metrics import EffNetExtractor, distances, features
from cargan.runs import load_run, read_log
from cargan.training import train
from common import run

METHOD = find_method("listener")
CUES = ("pitch_cue", "loudness_cue")


class Scores:
    "The held-out windows, their real pictures, and who reads them."
    def __init__(self, data: Path, out: Path, size: int = 64):
        self.bundle = b = open_data(data)
        train_idx, idx = split_recordings(b, seed=0)
        rest = np.asarray(b.factors["rest"]).astype(float) > 0
        self.data, self.idx, self.cues = PairDataset(b, size), idx[~rest[idx]], np.stack([np.asarray(b.factors[k], float) for k in CUES], 1)
        path = out/"probe.safetensors"
        if not path.exists(): save_probe(path, train_probe(ProbeConfig(), self.data, train_idx[~rest[train_idx]], self.cues))
        self.probe, self.net = load_probe(path), EffNetExtractor("efficientnet-lite0", ["1280", "logits"])
        self.label, real = np.asarray(b.label)[self.idx], real_pictures(self.data, self.idx)
        self.held = Held(self.label, np.asarray(b.recording)[self.idx], np.asarray(b.performer)[self.idx].astype(str), real,
                         self.cues[self.idx], np.asarray(b.factors["pitch"], float)[self.idx], read_off(self.probe, real, self.label))
        self.pairs, self.real = alternatives(self.held), features(self.net, real, "real")

    def of(self, model) -> dict:  # "told" and "heard" -> figures
        lms_db, both = np.asarray(self.bundle.lms_db[self.idx], np.float32), {}
        for name, told in dict(told=model.truth(self.bundle, self.idx), heard=hear(model, lms_db)).items():
            img = imagined(model, told, lms_db, name=name)["fine"]
            found = score_following(self.held, img, self.label, read_off(self.probe, img, self.label), self.pairs)
            kept = {k: found[k] for k in ("l1", "note_r2", "loudness_r2", "two_alternatives", "alternatives_reading", "alternatives_pixels")}
            both[name] = kept | dict(fd=distances(features(self.net, img, name), self.real, "FD")["FD"])
        return both


def one(name: str, cfg, scores: Scores) -> dict:  # the line of a variant
    file = cfg.out.with_suffix(".json")
    if file.exists(): return read_json(file)
    train(cfg)
    model, _ = load_run(cfg.out)
    line = dict(variant=name, seed=cfg.seed, epochs=cfg.epochs, seconds=float(read_log(cfg.out)["seconds"].iloc[-1]), n=len(scores.idx))
    write_json(file, line := line | scores.of(model))
    return line


@torch.no_grad()
def climb(runs: dict,  # name -> folder
          instrument: str = "trombone"):  # the matplotlib figure
    "One recording whose note climbs, drawn by every run."
    sweep, lms_db = sweep_sounds(((instrument, (0, 1, 2)),))
    real = sweep_drawings(((instrument, (0, 1, 2)),), 64)
    pictures = dict(real=real)
    for name, folder in runs.items():
        model, _ = load_run(folder)
        mel = lms_db[:, None]
        pictures[name] = torch.from_numpy(to_uint8(model.draw(mel)["fine"])).movedim(-1, 1)
    return show_sweep(sweep, pictures, (instrument,))


@dataclass(frozen=True)
class Bench:
    out: tyro.conf.Positional[Path]  # folder of the runs
    data: Path = Path("data/synthurmp.npz")  # a bundle that knows its factors
    names: tuple[str, ...] = ("listener", *METHOD.variants)  # what is trained, in this order
    epochs: int = 3  # passes over the training pairs
    seed: int = 0
    json: Path | None = None  # where all lines go
    picture: Path | None = None  # where the picture goes


def main(cfg: Bench):
    if unknown := set(cfg.names) - {"listener", *METHOD.variants}: raise CarganError(f"there is no variant {', '.join(sorted(unknown))}; choose some of {', '.join(METHOD.variants)}")
    cfg.out.mkdir(parents=True, exist_ok=True)
    scores, lines, start = Scores(cfg.data, cfg.out), [], replace(METHOD.presets["lab"], data=cfg.data, parts=cfg.out/"parts")
    for name in cfg.names:
        plain = replace(start, out=cfg.out/name, epochs=cfg.epochs, seed=cfg.seed, checkpoint_every=10_000, sample_every=10_000)
        lines.append(line := one(name, METHOD.variants[name](plain) if name in METHOD.variants else plain, scores))
        for what in ("told", "heard"): print(f"{name:18} {line['seconds']:5.0f} s  {what:5} " + "  ".join(f"{k} {v:.3f}" for k, v in line[what].items()), flush=True)
    if cfg.json: write_json(cfg.json, lines)
    if cfg.picture: save_figure(climb({line["variant"]: cfg.out/line["variant"] for line in lines}), cfg.picture)


if __name__ == "__main__": run(main, Bench, __doc__)

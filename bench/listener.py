"""What each part of the listener is worth: its variants, trained for the same short time and scored alike, and one picture of all.

  python bench/listener.py runs/box --box cargan/weights/listener --data data/synth128.npz
  python bench/listener.py runs/variants --data data/synthurmp.npz [--epochs 3] [--names listener no-eye] [--picture nbs/pictures/listener_variants.png]

Each variant is an ordinary run (OUT/NAME), which goes on where it was interrupted; its figures are one line of OUT/NAME.json, written when it
is done, and of the table that is printed at the end (and of --json FILE). All of them are scored by the same probe, on all held-out windows in
which somebody plays: 'told' is told the true factors, 'heard' is told what the ear hears. --box scores a folder of `save_listener` instead; pictures of
another size are shrunk to 64 pixels before they are compared and read, the real ones, too. The probe learns from 4,160 training pictures at most."""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro

from cargan.core import CarganError, read_json, save_figure, to_uint8, write_json
from cargan.data import PairDataset, open_data, split_recordings
from cargan.following import Held, alternatives, hear, imagined, score_following, show_sweep, sweep_drawings, sweep_sounds
from cargan.listener import load_listener
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
        lessons = train_idx[~rest[train_idx]]
        lessons = lessons[np.linspace(0, len(lessons) - 1, min(len(lessons), 4160)).round().astype(int)]
        if not path.exists(): save_probe(path, train_probe(ProbeConfig(), self.data, lessons, self.cues))
        self.probe, self.net = load_probe(path), EffNetExtractor("efficientnet-lite0", ["1280", "logits"])
        self.label, real = np.asarray(b.label)[self.idx], real_pictures(self.data, self.idx)
        self.held = Held(self.label, np.asarray(b.recording)[self.idx], np.asarray(b.performer)[self.idx].astype(str), real,
                         self.cues[self.idx], np.asarray(b.factors["pitch"], float)[self.idx], read_off(self.probe, real, self.label))
        self.pairs, self.real = alternatives(self.held), features(self.net, real, "real")

    def of(self, model) -> dict:  # "told" and "heard" -> figures
        lms_db, both = np.asarray(self.bundle.lms_db[self.idx], np.float32), {}
        for name, told in dict(told=model.truth(self.bundle, self.idx), heard=hear(model, lms_db)).items():
            img = shrunk(imagined(model, told, lms_db, name=name)["fine"], self.data.size)
            found = score_following(self.held, img, self.label, read_off(self.probe, img, self.label), self.pairs)
            kept = {k: found[k] for k in ("l1", "note_r2", "loudness_r2", "two_alternatives", "alternatives_reading", "alternatives_pixels")}
            right = dict(instrument=float((told.instrument.numpy() == self.label).mean()), who=self.who(model, told))
            both[name] = kept | right | dict(fd=distances(features(self.net, img, name), self.real, "FD")["FD"])
        return both


    def who(self, model, told) -> float:  # share of the windows in which the player is right
        names = [model.people[int(w)][1] if w >= 0 else "" for w in told.who]
        return float((np.array(names) == self.held.who).mean())


def shrunk(img: torch.Tensor, size: int) -> torch.Tensor:  # N x 3 x S x S, uint8 -> N x 3 x size x size
    if img.shape[-1] == size: return img
    return torch.cat([F.interpolate(x.float(), (size, size), mode="bilinear", antialias=True).round().byte() for x in img.split(128)])


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


def show(line: dict):
    for what in ("told", "heard"): print(f"{line['variant']:18} {what:5} " + "  ".join(f"{k} {v:.3f}" for k, v in line[what].items()), flush=True)


@dataclass(frozen=True)
class Bench:
    out: tyro.conf.Positional[Path]  # folder of the runs
    data: Path = Path("data/synthurmp.npz")  # a bundle that knows its factors
    names: tuple[str, ...] = ("listener", *METHOD.variants)  # what is trained, in this order
    epochs: int = 3  # passes over the training pairs
    seed: int = 0
    box: Path | None = None  # instead: a folder of `save_listener` to be scored
    json: Path | None = None  # where all lines go
    picture: Path | None = None  # where the picture goes


def main(cfg: Bench):
    if unknown := set(cfg.names) - {"listener", *METHOD.variants}: raise CarganError(f"there is no variant {', '.join(sorted(unknown))}; choose some of {', '.join(METHOD.variants)}")
    cfg.out.mkdir(parents=True, exist_ok=True)
    scores, lines, start = Scores(cfg.data, cfg.out), [], replace(METHOD.presets["lab"], data=cfg.data, parts=cfg.out/"parts")
    for name in () if cfg.box else cfg.names:
        plain = replace(start, out=cfg.out/name, epochs=cfg.epochs, seed=cfg.seed, checkpoint_every=10_000, sample_every=10_000)
        lines.append(one(name, METHOD.variants[name](plain) if name in METHOD.variants else plain, scores))
        show(lines[-1])
    if cfg.box: lines = [dict(variant=str(cfg.box), n=len(scores.idx), **scores.of(load_listener(cfg.box)))]; show(lines[0])
    if cfg.json: write_json(cfg.json, lines)
    if cfg.picture and not cfg.box: save_figure(climb({line["variant"]: cfg.out/line["variant"] for line in lines}), cfg.picture)


if __name__ == "__main__": run(main, Bench, __doc__)

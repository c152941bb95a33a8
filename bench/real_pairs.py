"""Train and score `lab` on real pairs, which cannot be part of the project.

  python bench/real_pairs.py bundle PAIRS.npz OUT [--size 128] [--epochs 12]   train on a bundle, score on held-out pairs
  python bench/real_pairs.py overfit FOLDER OUT                                the authors' list format: learn a few pairs by heart

FOLDER holds the authors' sample: spectram/<split>/<instrument>/<stem>.png beside img_256/<split>/<instrument>/<stem>.jpg; the list file is
written into OUT. Both print a table and the path of a sheet to look at; started again, they go on."""
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from cargan.bundle import PrepareConfig, open_bundle, prepare
from cargan.cascade import PRESETS
from cargan.core import INSTRUMENTS, CarganError, save_figure, writable_folder
from cargan.data import PairDataset
from cargan.evaluation import EvaluateConfig, contact_sheet, evaluate, metrics_table
from cargan.training import load_run, one_per_instrument, read_log, train


@dataclass(frozen=True)
class Bundle:
    "Train on a bundle and score on held-out pairs."
    pairs: tyro.conf.Positional[Path]  # .npz
    out: tyro.conf.Positional[Path]  # the run's folder
    size: int = 64  # pixels
    epochs: int = 12
    seed: int = 0


@dataclass(frozen=True)
class Overfit:
    "Learn the authors' sample pairs by heart."
    folder: tyro.conf.Positional[Path]  # spectram and img_256
    out: tyro.conf.Positional[Path]  # new folder for list, bundle and run
    size: int = 64  # pixels
    steps: int = 600


def score(c: Bundle):
    cfg = PRESETS["lab"]
    train(replace(cfg, data=c.pairs, out=c.out, epochs=c.epochs, seed=c.seed, model=replace(cfg.model, size=c.size)))
    print(metrics_table(evaluate(EvaluateConfig(c.out, c.pairs))))
    print(f"trained at {read_log(c.out).images_per_s.iloc[-1]:.1f} pictures/s; sheet: {c.out/'contact_sheet.png'}")


def write_list(folder: Path, path: Path):
    "The authors' list file for the sample folder: `lms.png||one-hot||image.jpg`, one line a pair."
    lines = []
    for lms in sorted((folder/"spectram").glob("*/*/*.png")):
        split, instrument = lms.parts[-3:-1]
        image = folder/"img_256"/split/instrument/f"{lms.stem}.jpg"
        lines.append(f"{lms.resolve()}||{', '.join(str(int(i == instrument)) for i in INSTRUMENTS)}||{image.resolve()}")
    path.write_text("\n".join(lines) + "\n")


def overfit(c: Overfit):
    out = writable_folder(c.out)
    write_list(c.folder, out/"train.txt")
    data = prepare(PrepareConfig(source=out/"train.txt", out=out/"pairs.npz", size=c.size))
    cfg = PRESETS["lab"]
    run = train(replace(cfg, data=data, out=out/"run", model=replace(cfg.model, size=c.size), batch_size=13, epochs=10**6, max_steps=c.steps,
                        classifier=replace(cfg.classifier, epochs=100), audio=replace(cfg.audio, epochs=1, other_windows=0)))  # 26 pictures: one batch an epoch
    bundle, (model, _) = open_bundle(data), load_run(run)
    batch = PairDataset(bundle, c.size).__getitems__(range(len(bundle)))
    with torch.no_grad(): drawn = model(batch["mel"], batch["label"])
    for name, img in dict(stage_I=drawn.coarse, stage_II=drawn.fine).items():
        print(f"{name}: mean L1 on [-1, 1] over {len(bundle)} pairs {(img - batch['image']).abs().mean():.3f}")
    mean = (batch["image"] - batch["image"].mean(0)).abs().mean()
    print(f"the mean picture would have {mean:.3f}; sheet: {out/'sheet.png'}")
    save_figure(contact_sheet(model, PairDataset(bundle, c.size), one_per_instrument(bundle.label, np.arange(len(bundle)))), out/"sheet.png")


if __name__ == "__main__":
    job = tyro.cli(Bundle | Overfit, description=__doc__)
    try: (score if isinstance(job, Bundle) else overfit)(job)
    except CarganError as e:
        print(f"real_pairs: {e}", file=sys.stderr)
        sys.exit(2)

"""What other makers' instruments are worth to an ear that meets real recordings.

    python bench/ears.py DATA FOLDER OUT [--seeds 0 1 2] [--windows 4000] [--epochs 12]

DATA is a bundle (`data/synthurmp.npz` of `make quickstart`), FOLDER holds recordings and `index.csv` as for `bench/real_notes.py`. For each
seed, five ears learn from the same windows of DATA, and four of them from more that are rendered on the same or on other instruments; each is scored
on held-out windows of DATA and on the recordings. Trained ears are kept in OUT, so an interrupted comparison goes on."""
import sys
from pathlib import Path

import pandas as pd
import tyro

from real_notes import measure

from cargan.bundle import open_bundle
from cargan.hearing import AudioClassifierConfig, load_audio_classifier, train_audio_classifier
from cargan.looking import save_classifier
from cargan.core import CarganError, atomic_path, writable_folder
from cargan.data import split_recordings

MAKERS = {"data alone": (), "+ more of the same": ("TimGM6mb",), "+ formants": ("formants",), "+ Merlin": ("Merlin",), "+ all three": ("TimGM6mb", "Merlin", "formants")}


def main(data: tyro.conf.Positional[Path], folder: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path],
         seeds: tuple[int, ...] = (0, 1, 2), windows: int = 4000, epochs: int = 12):
    bundle, out, rows = open_bundle(data), writable_folder(out), []
    train_idx, valid_idx = split_recordings(bundle, seed=0)
    for seed in seeds:
        for name, makers in MAKERS.items():
            cfg = AudioClassifierConfig(epochs=epochs, seed=seed, other_windows=windows if makers else 0, **(dict(makers=makers) if makers else {}))
            path = out/f"ear_{'_'.join(makers) or 'none'}_{windows}_{epochs}_{seed}.safetensors"
            if not path.exists(): save_classifier(path, *train_audio_classifier(cfg, bundle, train_idx, valid_idx))
            ear = load_audio_classifier(path)
            real = measure(folder, ear)
            rows.append(dict(learnt_from=name, seed=seed, held_out=ear.report["accuracy"], per_recording=real["accuracy_per_recording"],
                             per_window=real["accuracy_per_window"], n=real["n_recordings"], seconds=ear.report["seconds"]))
            print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1, float_format="%.3f"), flush=True)
    table = pd.DataFrame(rows)
    with atomic_path(out/"ears.csv") as tmp: table.to_csv(tmp, index=False)
    print(table.groupby("learnt_from", sort=False)[["held_out", "per_recording", "per_window"]].agg(["mean", "std"]).round(3))


if __name__ == "__main__":
    try: tyro.cli(main)
    except CarganError as e:
        print(e, file=sys.stderr)
        sys.exit(2)

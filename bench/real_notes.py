"""How well a trained audio classifier names the instruments of real recordings.

    python bench/real_notes.py FOLDER AUDIO_CLASSIFIER.safetensors [--out REPORT_FOLDER]

FOLDER holds `index.csv` with the columns `file` (relative to FOLDER) and `instrument`. A recording is cut into half-second
windows; its label is the one with the largest mean log-probability over its windows, among the 13 instruments.
Nothing is trained here."""
import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch

from cargan.hearing import load_audio_classifier
from cargan.looking import accuracy_report
from cargan.core import INSTRUMENTS, CarganError, existing_file, write_json
from cargan.lms import cut_windows, load_audio, log_mel


def read_index(folder: Path) -> list:
    "Rows of `index.csv` with a known instrument."
    with open(existing_file(folder/"index.csv", "index"), newline="", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    if not rows or not {"file", "instrument"} <= set(rows[0]): raise CarganError(f"{folder}/index.csv needs the columns file and instrument")
    unknown = {r["instrument"] for r in rows} - set(INSTRUMENTS)
    if unknown: raise CarganError(f"{folder}/index.csv names unknown instruments {sorted(unknown)}; known are {', '.join(INSTRUMENTS)}")
    return rows


@torch.no_grad()
def listen(model, path: Path) -> np.ndarray:
    "windows x 14 log-probabilities; the 14th is 'nothing'."
    return model(log_mel(cut_windows(load_audio(path)))).log_softmax(1).numpy()


def measure(folder: Path, model) -> dict:
    "Accuracy per window and per recording, confusion of the recordings, a table per instrument and per source."
    rows, n = read_index(folder), len(INSTRUMENTS)
    windows, recordings, silent, sources = np.zeros((n, n), int), np.zeros((n, n), int), 0, {}
    for row in rows:
        truth, logp = INSTRUMENTS.index(row["instrument"]), listen(model, folder/row["file"])
        np.add.at(windows[truth], logp[:, :n].argmax(1), 1)
        guess = int(logp[:, :n].mean(0).argmax())
        recordings[truth, guess] += 1
        silent += int(logp.argmax(1).tolist().count(n))
        hits = sources.setdefault(row.get("source") or "all", [0, 0])
        hits[0] += guess == truth; hits[1] += 1
    w, r = accuracy_report(windows), accuracy_report(recordings)
    table = {name: dict(recordings=int(recordings[i].sum()), accuracy=r["per_class"][name], accuracy_per_window=w["per_class"][name])
             for i, name in enumerate(INSTRUMENTS)}
    return dict(accuracy_per_recording=r["accuracy"], n_recordings=r["n"], accuracy_per_window=w["accuracy"], n_windows=w["n"],
                windows_called_nothing=silent, per_instrument=table, confusion=r["confusion"],
                per_source={k: dict(accuracy=a / b, n=b) for k, (a, b) in sources.items()})


def write_csv(path: Path, confusion):
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["truth \\ named", *INSTRUMENTS], *[[name, *row] for name, row in zip(INSTRUMENTS, confusion)]])


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="recordings and index.csv")
    parser.add_argument("classifier", type=Path, help="audio_classifier.safetensors of a run")
    parser.add_argument("--out", type=Path, help="also write report.json and confusion.csv into this folder")
    args = parser.parse_args(argv)
    try: report = measure(args.folder, load_audio_classifier(args.classifier))
    except CarganError as e:
        print(e, file=sys.stderr)
        return 2
    print(f"per recording {report['accuracy_per_recording']:.3f} (n = {report['n_recordings']}), "
          f"per window {report['accuracy_per_window']:.3f} (n = {report['n_windows']}), chance {1 / len(INSTRUMENTS):.3f}; "
          f"{report['windows_called_nothing']} windows called 'nothing'")
    print(json.dumps(report["per_source"]))
    print(f"\n{'truth':12}{'n':>4}{'acc.':>6}  " + "".join(f"{name[:6]:>7}" for name in INSTRUMENTS))
    for name, row in zip(INSTRUMENTS, report["confusion"]):
        t = report["per_instrument"][name]
        print(f"{name:12}{t['recordings']:4}{t['accuracy'] if t['accuracy'] is not None else float('nan'):6.2f}  " + "".join(f"{v:7}" for v in row))
    if args.out:
        write_json(args.out/"report.json", report)
        write_csv(args.out/"confusion.csv", report["confusion"])
    return 0


if __name__ == "__main__": sys.exit(main())

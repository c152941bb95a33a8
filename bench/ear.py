"""Train the ear that comes with the package, from nothing, and say how good it is on makers that it has not heard.

    python bench/ear.py OUT [--maker NAME=PATH[,PATH]] ... [--windows 5000] [--synth 16000] [--speech 4000] [--epochs 14]

Three makers are always there: TimGM6mb, Merlin and formants. Each `--maker` adds one: a SoundFont, a folder with one file per General
MIDI program, or a folder of recorded notes; several paths that grew out of one another are one maker. The model card of the package
(`cargan/weights/ear.md`) names those of the ear that is shipped, and their licences. Recordings for evaluation are never opened here.

1. Every maker plays `windows` half seconds, and TimGM6mb another `synth` of them as `cargan synth` does, with other seeds. A program that
   speaks, espeak-ng (`apt-get install espeak-ng`), reads sentences in six languages: nobody plays in them. Without it, that is left out, and said.
2. The makers are dealt out to three folds. For each fold an ear learns from the other makers and listens to the recordings of the fold.
3. From these answers come the two settings of `cargan hear`: the temperature, so that a probability means what it says, and the threshold
   under which an answer is called a guess.
4. The ear itself learns from everything, the speech included.

Everything finished is kept in OUT; started again, it goes on. OUT/ear.safetensors is the ear, OUT/ear.json holds every number."""
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import tyro
from real_notes import calibration

from cargan.audio import load_audio
from cargan.core import INSTRUMENTS, CarganError, atomic_path, writable_folder, write_json
from cargan.heard import FAMILIES, Memory, vote
from cargan.hearing import AudioClassifierConfig, levels, listen_to, load_audio_classifier, score_ear, train_audio_classifier, what_sounds
from cargan.lms import log_mel
from cargan.looking import save_classifier
from cargan.makers import other_sounds
from cargan.sound import SoundConfig, render_recording

FOLDS = 3
SYNTH_SEED = -1  # and downwards: `cargan synth` numbers its recordings 10,000 x seed + song, from 0 on


def as_synth(n: int, windows: int = 6) -> dict:
    "Windows as in the embedded data set, of recordings that no data set of its first seeds holds."
    lms, label, pitch, loudness, rest, recording = [], [], [], [], [], []
    for k in range(-(-n // windows)):
        name = INSTRUMENTS[k % 13]
        wave, causes = render_recording(name, k // 13 % 6, SYNTH_SEED - k, SoundConfig(windows=windows))
        lms.append(log_mel(wave.reshape(windows, -1)).half().numpy())
        for f in causes:
            label.append(k % 13); rest.append(f.rest); recording.append(k)
            pitch.append(np.nan if f.rest else f.pitch); loudness.append(f.loudness)
    return dict(lms=np.concatenate(lms), label=label, pitch=pitch, loudness=loudness, rest=rest, recording=recording)


def as_maker(paths: tuple, n: int, seed: int) -> dict:
    "Phrases on one maker's instruments, without the windows that have no right answer."
    played = other_sounds(n, seed, paths)
    h = played[played.counts]
    rest = (h.label == 13).numpy()
    pitch = np.where(h.note.numpy() < 0, np.nan, h.note.numpy())
    return dict(lms=h.lms_db.numpy(), label=np.where(rest, 0, h.label.numpy()), pitch=pitch, loudness=h.loudness.numpy(), rest=rest, recording=h.recording.numpy())


SENTENCES = dict(en="The quick brown fox jumps over the lazy dog, and nobody knows why she sells sea shells by the shore.",
                 fr="Il fait très beau aujourd'hui, et nous irons au marché avec les enfants.", es="Mañana iremos a la playa si no llueve demasiado.",
                 pl="Dzień dobry, jak się masz, dzisiaj jest bardzo zimno.", sv="I dag skiner solen och barnen leker i parken.",
                 tr="Bugün hava çok güzel, çocuklar bahçede oynuyor.")
VOICES = ("m1", "m3", "m4", "m7", "f1", "f3", "croak")


def as_speech(n: int, seed: int) -> dict:
    "Windows of sentences that are read aloud, with many voices, heights and speeds; 'nothing' is the right answer to all of them."
    rng, found, k = np.random.default_rng(seed), [], 0
    with tempfile.TemporaryDirectory() as folder:
        while sum(map(len, found)) < n:
            language, voice = list(SENTENCES)[k % len(SENTENCES)], VOICES[k % len(VOICES)]
            words = ["espeak-ng", "-v", f"{language}+{voice}", "-p", str(rng.integers(5, 95)), "-s", str(rng.integers(100, 240)), "-w", f"{folder}/a.wav"]
            subprocess.run([*words, SENTENCES[language]], check=True, capture_output=True)
            wave = load_audio(f"{folder}/a.wav")[rng.integers(0, 11000):]
            windows = wave[:len(wave) // 22050 * 22050].reshape(-1, 22050)
            found.append(log_mel(windows[(windows ** 2).mean(1) > 1e-4]).half().numpy())
            k += 1
    lms = np.concatenate(found)[:n]
    return dict(lms=lms, label=np.zeros(n, int), pitch=np.full(n, np.nan), loudness=np.zeros(n), rest=np.ones(n, bool), recording=np.arange(n))


def rendered(out: Path, makers: dict, cfg) -> dict:  # name -> arrays
    "Every maker's windows, rendered or read from OUT."
    found = {}
    how = dict(synth=lambda: as_synth(cfg.synth)) | {name: lambda paths=paths: as_maker(paths, cfg.windows, cfg.seed) for name, paths in makers.items()}
    if shutil.which("espeak-ng"): how["speech"] = lambda: as_speech(cfg.speech, cfg.seed)
    else: print("espeak-ng isn't installed, so the ear won't learn what speech is: apt-get install espeak-ng")
    for name, make in how.items():
        path = out/"windows"/f"{name}-{dict(synth=cfg.synth, speech=cfg.speech).get(name, cfg.windows)}-{cfg.seed}.npz"
        if not path.exists():
            print(f"rendering {name}", flush=True)
            arrays = make()
            writable_folder(path.parent)
            with atomic_path(path) as tmp, open(tmp, "wb") as f: np.savez(f, **{k: np.asarray(v) for k, v in arrays.items()})
        with np.load(path, allow_pickle=False) as z: found[name] = {k: z[k] for k in z.files}
    return found


def bundle_of(parts: dict) -> SimpleNamespace:
    "All windows as one bundle without pictures; `maker` says whose they are."
    def all_of(key): return np.concatenate([part[key] for part in parts.values()])
    factors = {name: all_of(name) for name in ("pitch", "loudness", "rest")}
    maker = np.concatenate([np.full(len(part["label"]), name) for name, part in parts.items()])
    recording = np.char.add(np.char.add(maker, "/"), all_of("recording").astype(str))
    return SimpleNamespace(lms_db=all_of("lms"), label=all_of("label"), factors=factors, maker=maker, recording=recording, instruments=np.array(INSTRUMENTS))


def votes(ear, bundle, idx: np.ndarray) -> tuple:
    "For each recording: the truth, and what its windows vote for (13 numbers that add up to 1)."
    playing = idx[~np.asarray(bundle.factors["rest"])[idx].astype(bool)]
    x = torch.as_tensor(bundle.lms_db[playing])
    heard, level = listen_to(ear, x), torch.cat([levels(part.float()) for part in x.split(512)])
    truth, said = [], []
    for name in np.unique(bundle.recording[playing]):
        rows = np.flatnonzero(bundle.recording[playing] == name)
        p, _ = vote(Memory(heard.instrument[rows], None, None, level[rows]))
        truth.append(int(bundle.label[playing[rows[0]]])); said.append(p[:13].numpy() / p[:13].sum())
    return np.array(truth), np.array(said)


def calibrate(truth: np.ndarray, said: np.ndarray) -> dict:
    "The temperature with the least surprise, and the lowest threshold above which 8 of 10 answers are right."
    def at(t):
        p = said ** (1 / t)
        return p / p.sum(1, keepdims=True)
    grid = np.geomspace(0.4, 4, 60)
    temperature = min(grid, key=lambda t: -np.log(at(t)[np.arange(len(truth)), truth] + 1e-9).mean())
    p, right = at(temperature).max(1), said.argmax(1) == truth
    order = np.argsort(-p)
    precision = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(precision >= 0.8)
    sure = float(p[order[enough[-1]]]) if len(enough) else 1.
    return dict(temperature=float(temperature), sure=round(sure, 3), ece=float(calibration(p, right)[0]), share_sure=float((p >= sure).mean()))


def same_family(a: np.ndarray, b: np.ndarray) -> float:
    family = {INSTRUMENTS.index(name): f for f, names in FAMILIES.items() for name in names}
    return float(np.mean([family[int(x)] == family[int(y)] for x, y in zip(a, b)]))


def trained(path: Path, cfg: AudioClassifierConfig, bundle, train_idx, valid_idx):
    "An ear, trained or read from OUT."
    if not path.exists():
        print(f"training {path.stem} on {len(train_idx)} windows", flush=True)
        save_classifier(path, *train_audio_classifier(cfg, bundle, train_idx, valid_idx, progress=sys.stderr.isatty()))
    return load_audio_classifier(path)


def cross_validate(out: Path, bundle, names: list, cfg) -> tuple:  # (truth, votes, per maker)
    "Three ears, each of them judged on makers that it has not heard."
    truth, said, table = [], [], {}
    for fold in range(FOLDS):
        held = names[fold::FOLDS]
        strange = np.isin(bundle.maker, [*held, "speech"])
        few = np.random.default_rng(0).permutation(np.flatnonzero(np.isin(bundle.maker, held)))[:1500]
        ear = trained(out/f"fold_{fold}.safetensors", replace(cfg.ear, epochs=cfg.fold_epochs), bundle, np.flatnonzero(~strange), few)
        for name in held:
            idx = np.flatnonzero(bundle.maker == name)
            numbers, _ = score_ear(ear, torch.as_tensor(bundle.lms_db[idx]), what_sounds(bundle_rows(bundle, idx)))
            y, p = votes(ear, bundle, idx)
            table[name] = dict(numbers, recordings=len(y), recording_accuracy=float((p.argmax(1) == y).mean()), family=same_family(p.argmax(1), y))
            print(name, {k: round(v, 3) for k, v in table[name].items()}, flush=True)
            truth.append(y); said.append(p)
    return np.concatenate(truth), np.concatenate(said), table


def bundle_rows(bundle, idx) -> SimpleNamespace:
    return SimpleNamespace(lms_db=bundle.lms_db[idx], label=bundle.label[idx], factors={k: v[idx] for k, v in bundle.factors.items()})


def main(out: tyro.conf.Positional[Path], maker: tyro.conf.UseAppendAction[tuple[str, ...]] = (), windows: int = 5000, synth: int = 16000, speech: int = 4000,
         epochs: int = 14, fold_epochs: int = 5, seed: int = 0, only_render: bool = False,
         ear: AudioClassifierConfig = AudioClassifierConfig()):
    out, makers = writable_folder(out), {name: (name,) for name in ("TimGM6mb", "Merlin", "formants")}
    for words in maker:
        name, _, paths = words.partition("=")
        if not name or not paths: raise CarganError(f"--maker {words!r} is not NAME=PATH; give for instance --maker csound=/usr/share/sounds/sf2/sf_GMbank.sf2")
        makers[name] = tuple(paths.split(","))
    cfg = SimpleNamespace(windows=windows, synth=synth, speech=speech, seed=seed, fold_epochs=fold_epochs, ear=replace(ear, seed=seed))
    parts = rendered(out, makers, cfg)
    if only_render: return
    bundle = bundle_of(parts)
    truth, said, table = cross_validate(out, bundle, list(makers), cfg)
    settings = calibrate(truth, said)
    print("settings from held-out makers", settings, flush=True)
    checked = np.random.default_rng(1).permutation(len(bundle.label))[:2000]
    chosen = {k: settings[k] for k in ("temperature", "sure")}
    final = trained(out/"all.safetensors", replace(cfg.ear, epochs=epochs), bundle, np.arange(len(bundle.label)), checked)
    final.cfg = replace(final.cfg, **chosen)
    report = dict(held_out_makers=table, **settings, recordings=len(truth), accuracy_held_out_makers=float((said.argmax(1) == truth).mean()),
                  family_held_out_makers=same_family(said.argmax(1), truth), windows=len(bundle.label), makers=list(makers),
                  seconds_training=final.report["seconds"])
    save_classifier(out/"ear.safetensors", final, report)
    write_json(out/"ear.json", report)
    print({k: v for k, v in report.items() if k != "held_out_makers"})


if __name__ == "__main__":
    try: tyro.cli(main)
    except CarganError as e:
        print(e, file=sys.stderr)
        sys.exit(2)

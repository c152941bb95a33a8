"The command line: help, the whole chain on a toy scale, and every way to get it wrong."
import json, re, shutil, signal, subprocess, sys, time, zlib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import av, numpy as np, pytest, soundfile
from PIL import Image

from cargan.cli import COMMANDS, main
from cargan.methods import METHODS, find_method
from conftest import ANY, ROOT, TINY

CARGAN = [sys.executable, "-m", "cargan.cli"]


# ---- help

def test_overview_names_every_command_and_needs_no_torch():
    code = "import sys; from cargan.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(re.search(rf"^  {name} ", done.stdout, re.M) for name in COMMANDS)


def options_in_help(words, capfd) -> set:
    "The options that a command's help lists; each has an explanation."
    assert main([*words, "--help"]) == 0
    out, err = capfd.readouterr()
    assert err == "" and f"usage: cargan {words[0]}" in out
    plain = re.sub(r"[│╭╮╰╯─]", "", out)
    undocumented = re.findall(r"^ *(--[\w.-]+(?: \S+)?) +(?:\(default|\(required)", plain, re.M)
    assert undocumented == []
    return set(re.findall(r"^ {1,2}(--[\w.-]+)", plain, re.M))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command, capfd):
    assert options_in_help([command], capfd) or command == "info"


def all_options(config, prefix="") -> set:
    "`--model.base` and so on, from the dataclasses."
    hints, found = get_type_hints(config), set()
    for f in fields(config):
        found |= all_options(hints[f.name], f"{prefix}{f.name}.") if is_dataclass(hints[f.name]) else {f"--{prefix}{f.name}".replace("_", "-")}
    return found


@pytest.mark.parametrize("name", METHODS)
def test_help_of_a_method_lists_its_options_and_no_others(name, capfd):
    method = find_method(name)
    words = {"--method", "--preset"} | ({"--variant"} if method.variants else set())
    assert options_in_help(["train", "--method", name], capfd) == all_options(method.config) | words


def test_help_names_every_method_and_says_what_variants_change(capfd):
    assert main(["train", "--help"]) == 0
    out = re.sub(r"[│\s]+", " ", capfd.readouterr().out)
    assert "{" + ",".join(METHODS) + "}" in out
    for name in find_method("cargan").variants: assert re.search(rf"\b{name}: \w", out), name
    assert "A: model.attention none" in out


def test_version(capfd):
    import cargan
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"cargan {cargan.__version__}\n"


def test_presets_and_overrides():
    from cargan.cli import parse_train
    lab, paper = (parse_train(["--data", "d", "--out", "o", "--base", "40", "--preset", p]) for p in ("lab", "paper"))
    assert (lab.model.size, paper.model.size, lab.model.base, paper.model.base) == (64, 256, 40, 40)
    assert (paper.batch_size, paper.lr, paper.epochs, paper.classifier.arch) == (64, 8e-4, 200, "resnet50")
    assert parse_train(["--data=d", "--out=o", "--preset=paper"]).model.size == 256


@pytest.mark.parametrize("name", METHODS)
def test_presets_and_variants_of_every_method(name):
    "Words, and nothing else, give what the notebook's own functions give."
    from cargan.cli import parse_train
    method = find_method(name)
    for preset, start in method.presets.items():
        for variant, change in {None: lambda cfg: cfg, **method.variants}.items():
            words = ["--method", name, "--preset", preset, *(["--variant", variant] if variant else []), "--data", "d", "--out", "o", "--seed", "5"]
            assert parse_train(words) == replace(change(start), data=Path("d"), out=Path("o"), seed=5)


def test_what_is_said_overrides_a_variant():
    from cargan.cli import parse_train
    cfg = parse_train(["--variant", "A", "--preset=paper", "--data", "d", "--out", "o", "--attention", "released", "--parts", "shared"])
    assert (cfg.model.attention, cfg.model.size, cfg.parts) == ("released", 256, Path("shared"))


def test_a_method_of_somebody_else(toy, method_run, tiny_data, tmp_path, capfd):
    "One file and one line in the table: train, generate and info know the rest."
    run = method_run(toy)
    assert main(["generate", "--run", str(run), "--out", str(tmp_path/"out"), f"{tiny_data}/melody.wav"]) == 0
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == ["generate.json", "melody_fine.png"]
    capfd.readouterr()
    assert main(["info", str(run)]) == 0
    out = capfd.readouterr().out
    assert re.search(r"^method +toy \(preset lab, .*audio.other_windows|^method +toy \(preset lab\)", out, re.M)
    assert re.search(r"^label +none: it gets the sound alone$", out, re.M) and re.search(r"^parameters +layer 0.00 M$", out, re.M)
    assert main(["train", "--method", toy, "--variant", "wide", "--data", f"{tiny_data}/data.npz", "--out", str(tmp_path/"wide"), *ANY]) == 0
    assert json.loads((tmp_path/"wide"/"config.json").read_text())["model"]["kernel"] == 5


# ---- the chain

def test_train_wrote_a_run(tiny_run):
    assert {"config.json", "log.jsonl", "samples", "checkpoints", "classifier.safetensors", "audio_classifier.safetensors"} <= {p.name for p in tiny_run.iterdir()}


def test_train_on_a_finished_run_says_so(tiny_run, tiny_data, capfd):
    before = snapshot(tiny_run)
    assert main(["train", "--data", f"{tiny_data}/data.npz", "--out", str(tiny_run), *TINY, "--max-steps", "4"]) == 0
    assert "finished" in capfd.readouterr().out
    assert snapshot(tiny_run/"checkpoints") == {k.removeprefix("checkpoints/"): v for k, v in before.items() if k.startswith("checkpoints/")}


def test_evaluate_writes_the_agreed_metrics(tiny_run, tiny_data, tmp_path, capfd):
    run = shutil.copytree(tiny_run, tmp_path/"run")
    argv = ["evaluate", "--run", str(run), "--data", f"{tiny_data}/data.npz", "--evaluator.epochs", "1", "--judge-steps", "1", "--probe.epochs", "1", "--pictures", "13", "--listen", "26"]
    assert main(argv) == 0
    metrics = json.loads((run/"metrics.json").read_text())
    assert {"accuracy_true_label", "accuracy_predicted_label", "l1_coarse", "l1_fine", "n", "seconds"} <= metrics.keys()
    assert {"accuracy", "listening", "probes", "distances", "stages", "attention", "loudness", "paper"} <= metrics.keys()
    assert metrics["n"] > 0 and f"{metrics['l1_fine']:.3f}" in capfd.readouterr().out
    pictures = ("contact_sheet", "confusion", "following", "sweep", "listening", "probes", "memorisation", "attention")
    assert all(Image.open(run/f"{name}.png").width > 300 for name in pictures)
    page = (run/"report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.findall(r"(?:src|href)=.(?!data:)|https?://|NaN|None", re.sub("base64,[^\"]*", "", page))
    assert all(f"]({name}.png)" in (run/"metrics.md").read_text() for name in pictures)


def test_generate_writes_pictures_film_and_json(tiny_run, tiny_data, tmp_path, capfd):
    song, other = tiny_data/"melody.wav", tmp_path/"in"/"melody.wav"
    other.parent.mkdir(); shutil.copy(song, other)
    silent = tmp_path/"in"/"silence.flac"
    soundfile.write(silent, np.zeros(30000), 22050)
    assert main(["generate", "--run", str(tiny_run), "--out", str(tmp_path/"out"), "--video", "--gif", "--frames", str(song), str(other), str(silent)]) == 0
    assert capfd.readouterr().err == ""
    entries = json.loads((tmp_path/"out"/"generate.json").read_text())
    assert [e["input"] for e in entries] == [str(song), str(other), str(silent)]
    assert all({"label", "probability", "heard"} <= e.keys() for e in entries)
    for stem in ("melody", "melody_2", "silence"):
        for stage in ("coarse", "fine"): assert Image.open(tmp_path/"out"/f"{stem}_{stage}.png").size == (32, 32)
    n, seconds = len(entries[0]["windows"]), soundfile.info(song).duration
    assert abs(n - 2 * seconds) <= 1
    with av.open(str(tmp_path/"out"/"melody.mp4")) as film:
        video = film.streams.video[0]
        assert (video.pix_fmt, video.width % 2, video.height % 2) == ("yuv420p", 0, 0)
        assert sum(1 for _ in film.decode(video=0)) == n
    with av.open(str(tmp_path/"out"/"melody.mp4")) as film:
        assert abs(sum(f.samples / f.sample_rate for f in film.decode(audio=0)) - seconds) < 0.1
    assert Image.open(tmp_path/"out"/"melody.gif").n_frames > 1
    assert len(list((tmp_path/"out"/"melody_frames").iterdir())) == n
    assert not [p for p in (tmp_path/"out").iterdir() if p.name.startswith(".")]


def test_generate_with_a_given_label(tiny_run, tiny_data, tmp_path):
    assert main(["generate", "--run", str(tiny_run), "--out", str(tmp_path), "--label", "Double Bass", f"{tiny_data}/melody.wav"]) == 0
    assert json.loads((tmp_path/"generate.json").read_text())[0]["label"] == "double_bass"


@pytest.mark.parametrize("name", METHODS)
def test_generate_and_info_with_every_method(name, method_run, tiny_data, tmp_path, capfd):
    from cargan.training import load_run
    run = method_run(name)
    model = load_run(run)[0]
    assert main(["generate", "--run", str(run), "--out", str(tmp_path/"out"), f"{tiny_data}/melody.wav"]) == 0
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == sorted(["generate.json", *(f"melody_{stage}.png" for stage in model.stages)])
    entry = json.loads((tmp_path/"out"/"generate.json").read_text())[0]
    assert list(entry) == ["input", "label", "probability", "heard", "note", "loudness", "sure", "start", "performer", "alternatives", "files", "windows"]
    assert list(entry["windows"][0]) == ["label", "probability", "heard", "start", "note", "loudness", "sure", "rests", "performer"]
    capfd.readouterr()
    code = main(["generate", "--run", str(run), "--out", str(tmp_path/"asked"), "--label", "tuba", f"{tiny_data}/melody.wav"])
    err = capfd.readouterr().err
    if model.label == "wants" or hasattr(model, "imagine"): assert code == 0 and err == ""
    else: assert code == 2 and "takes no label" in err and len(err.splitlines()) == 1 and not (tmp_path/"asked").exists()
    assert main(["info", str(run)]) == 0
    out = capfd.readouterr().out
    assert re.search(rf"^method +{name} \(preset lab", out, re.M) and re.search(rf"^label +{model.label}: ", out, re.M)
    assert all(net in out for net in model.networks) and ", ".join(model.stages) in out


def test_generate_needs_neither_run_nor_folder(tiny_data, tmp_path, capfd, monkeypatch):
    "The listener in the box draws into `pictures`; a second time it draws over it."
    monkeypatch.chdir(tmp_path)
    for _ in range(2): assert main(["generate", "--alternatives", "1", "--performer", "1", f"{tiny_data}/melody.wav"]) == 0
    assert capfd.readouterr().err == ""
    entry = json.loads((tmp_path/"pictures"/"generate.json").read_text())[0]
    assert entry["performer"] == 1 and entry["alternatives"][0]["performer"] == 1
    assert {p.name for p in (tmp_path/"pictures").iterdir()} == {*entry["files"], "generate.json"}


def test_info_of_the_box(capfd):
    from cargan.drawing import the_box
    assert main(["info", str(the_box())]) == 0
    out = capfd.readouterr().out
    assert re.search(r"^told +instrument, note, loudness, who$", out, re.M) and re.search(r"^players +bassoon \d", out, re.M)


def test_a_run_of_the_version_before(tiny_data, tmp_path, capfd):
    run = ROOT/"tests"/"old_run"/"run"
    assert main(["generate", "--run", str(run), "--out", str(tmp_path), f"{tiny_data}/melody.wav"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["generate.json", "melody_coarse.png", "melody_fine.png"]
    assert main(["info", str(run)]) == 0
    assert re.search(r"^method +cargan \(preset \w+, ", capfd.readouterr().out, re.M)


@pytest.mark.parametrize("what", ["run", "data.npz", "data", "run/classifier.safetensors", "melody.wav"])
def test_info_describes_everything_we_write(what, tiny_run, tiny_data, capfd):
    path = tiny_run.parent/what if what.startswith("run") else tiny_data/what
    assert main(["info", str(path)]) == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) >= 3 and err == ""


# ---- bad input

def snapshot(folder: Path) -> dict:
    "Every file below a folder, with a checksum."
    return {str(p.relative_to(folder)): zlib.crc32(p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def put(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def cut(path: Path, keep: float = 0.5) -> Path:
    "Keep only the first part of a file."
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * keep)])
    return path


class Scene:
    "A folder of its own for one bad command, and the means to break things in it."
    def __init__(self, tmp: Path, data: Path, tiny_run): self.tmp, self.data, self.tiny_run = tmp, data, tiny_run

    @property
    def bundle(self) -> Path: return self.data/"data.npz"

    @property
    def song(self) -> Path: return self.data/"melody.wav"

    @property
    def picture(self) -> Path: return sorted((self.data/"data").glob("img/*/*/*"))[0]

    @property
    def in_the_way(self) -> Path: return put(self.tmp/"file", b"a file")/"out"

    def run(self, *, without=(), cut_short=(), garbage=()) -> Path:
        "A copy of the tiny run with files missing, cut short or replaced by garbage."
        run = shutil.copytree(self.tiny_run(), self.tmp/"run")
        config = json.loads((run/"config.json").read_text()) | {"out": str(run)}
        (run/"config.json").write_text(json.dumps(config, indent=2) + "\n")
        for pattern in without:
            for p in run.glob(pattern): shutil.rmtree(p) if p.is_dir() else p.unlink()
        for pattern in cut_short:
            for p in run.glob(pattern): cut(p)
        for pattern in garbage:
            for p in run.glob(pattern): p.write_bytes(b"garbage" * 99)
        return run

    def new_bundle(self, **changes) -> Path:
        "The tiny bundle with arrays replaced (or, by None, left out)."
        with np.load(self.bundle) as f: arrays = {**f, **changes}
        np.savez(self.tmp/"changed.npz", **{k: v for k, v in arrays.items() if v is not None})
        return self.tmp/"changed.npz"

    def released(self, spoil) -> Path:
        "A copy of the data folder in which `spoil` has been at work on one picture and its sound."
        folder = shutil.copytree(self.data/"data", self.tmp/"data")
        picture = sorted(folder.glob("img/train/tuba/*"))[0]
        spoil(picture, next(folder.glob(f"chunk/train/tuba/{picture.stem}.*")))
        return folder

    def sound(self, kind: str) -> Path:
        path = self.tmp/"bad.wav"
        match kind:
            case "empty": put(path)
            case "text": put(path, b"this is not a sound\n" * 50)
            case "truncated": put(path, self.song.read_bytes()[:44])  # the header alone: of a longer rest, the rest is used
            case "nan": soundfile.write(path, np.full(30000, np.nan), 44100, subtype="FLOAT")
            case "no samples": soundfile.write(path, np.zeros(0), 44100)
            case "random mp3": path = put(self.tmp/"bad.mp3", np.random.default_rng(0).bytes(5000))
        return path


def load(path: Path) -> dict:
    with np.load(path) as f: return dict(f)


def with_json(run: Path, config) -> Path:
    "The run with `config` for a configuration."
    (run/"config.json").write_text(json.dumps(config))
    return run


def nan_lms(s: Scene):
    lms = load(s.bundle)["lms_db"]; lms[0, 0, 0] = np.nan
    return s.new_bundle(lms_db=lms)


G, E, T, P = (lambda s, *a, **k: ["generate", "--run", s.run(**k), "--out", s.tmp/"out", *a]), (lambda s, **k: ["evaluate", "--run", s.run(**k), "--data", s.bundle]), \
             (lambda s, *a, data=None: ["train", "--data", data or s.bundle, "--out", s.tmp/"out", *TINY, *a]), (lambda s, *a, source=None: ["prepare", "--source", source or s.data/"data", "--out", s.tmp/"out.npz", *a])
X = lambda s, out=None, run=None, **k: ["export", "--run", run or s.run(**k), "--out", out or s.tmp/"out.onnx"]


def R(s, *words, file=None):
    "Words of `cargan reproduce`, perhaps with a result that is there."
    if file is not None: put(s.tmp/"results"/"runs"/"synthurmp"/"mean-plain-seed0.json", file)
    return ["reproduce", "--out", s.tmp/"results", "--work", s.tmp/"work", *words]


BAD = {
    "unknown command": lambda s: ["paint"],
    # synth
    "synth: nothing given": lambda s: ["synth"],
    "synth: unknown option": lambda s: ["synth", "--out", s.tmp/"out", "--colour", "red"],
    "synth: not a number": lambda s: ["synth", "--out", s.tmp/"out", "--recordings", "many", "1"],
    "synth: no recordings": lambda s: ["synth", "--out", s.tmp/"out", "--recordings", "0", "0"],
    "synth: impossible size": lambda s: ["synth", "--out", s.tmp/"out", "--size", "-3"],
    "synth: unknown split": lambda s: ["synth", "--out", s.tmp/"out", "--split", "none"],
    "synth: missing sound font": lambda s: ["synth", "--out", s.tmp/"out", "--soundfont", s.tmp/"no.sf2"],
    "synth: broken sound font": lambda s: ["synth", "--out", s.tmp/"out", "--soundfont", put(s.tmp/"bad.sf2", b"RIFF nonsense" * 9)],
    "synth: a file in the way": lambda s: ["synth", "--out", s.in_the_way],
    # videos
    "videos: nothing given": lambda s: ["videos"],
    "videos: missing folder": lambda s: ["videos", "--source", s.tmp/"no", "--out", s.tmp/"out"],
    "videos: empty folder": lambda s: ["videos", "--source", put(s.tmp/"videos"/"x").parent, "--out", s.tmp/"out"],
    "videos: not a video": lambda s: ["videos", "--source", put(s.tmp/"videos"/"tuba"/"a.mp4", b"text" * 99).parent.parent, "--out", s.tmp/"out"],
    # prepare
    "prepare: nothing given": lambda s: ["prepare"],
    "prepare: missing source": lambda s: P(s, source=s.tmp/"no"),
    "prepare: empty folder": lambda s: P(s, source=put(s.tmp/"empty"/"x").parent),
    "prepare: unknown kind": lambda s: P(s, "--kind", "tape"),
    "prepare: impossible size": lambda s: P(s, "--size", "0"),
    "prepare: workers below 0": lambda s: P(s, "--workers", "-1"),
    "prepare: a folder that is no instrument": lambda s: P(s, source=s.released(lambda img, wav: shutil.copytree(img.parent, img.parent.parent/"Tuba"))),
    "prepare: two pictures of one name": lambda s: P(s, source=s.released(lambda img, wav: shutil.copy(img, img.with_suffix(".png")))),
    "prepare: truncated picture": lambda s: P(s, source=s.released(lambda img, wav: cut(img))),
    "prepare: text for a picture": lambda s: P(s, source=s.released(lambda img, wav: put(img, b"text"))),
    "prepare: empty sound": lambda s: P(s, source=s.released(lambda img, wav: put(wav))),
    "prepare: text for a sound": lambda s: P(s, source=s.released(lambda img, wav: put(wav, b"text" * 99))),
    "prepare: NaN in a sound": lambda s: P(s, source=s.released(lambda img, wav: soundfile.write(wav, np.full(22050, np.nan), 44100, subtype="FLOAT"))),
    "prepare: picture without sound": lambda s: P(s, source=s.released(lambda img, wav: wav.unlink())),
    "prepare: broken list": lambda s: P(s, source=put(s.tmp/"pairs.txt", b"a.png||0, 1||b.jpg\n")),
    "prepare: a file in the way": lambda s: ["prepare", "--source", s.data/"data", "--out", s.in_the_way/"b.npz"],
    # train
    "train: nothing given": lambda s: ["train"],
    "train: unknown option": lambda s: T(s, "--learning", "1"),
    "train: not a number": lambda s: T(s, "--lr", "fast"),
    "train: unknown preset": lambda s: T(s, "--preset", "huge"),
    "train: unknown method": lambda s: T(s, "--method", "pix2pix"),
    "train: unknown variant": lambda s: T(s, "--variant", "F"),
    "train: a variant of another method": lambda s: T(s, "--method", "mean", "--variant", "A"),
    "train: an option of another method": lambda s: ["train", "--method", "cmcgan", "--data", s.bundle, "--out", s.tmp/"out", *ANY, "--g2-input", "residue"],
    "train: no method after --method": lambda s: T(s, "--method"),
    "train: another method than before": lambda s: ["train", "--method", "mean", "--data", s.bundle, "--out", s.run(), *ANY],
    "train: missing bundle": lambda s: T(s, data=s.tmp/"no.npz"),
    "train: empty bundle": lambda s: T(s, data=put(s.tmp/"b.npz")),
    "train: text for a bundle": lambda s: T(s, data=put(s.tmp/"b.npz", b"text" * 99)),
    "train: truncated bundle": lambda s: T(s, data=cut(Path(shutil.copy(s.bundle, s.tmp)))),
    "train: bundle without labels": lambda s: T(s, data=s.new_bundle(label=None)),
    "train: bundle with a 14th label": lambda s: T(s, data=s.new_bundle(label=load(s.bundle)["label"] + 3)),
    "train: bundle with NaN": lambda s: T(s, data=nan_lms(s)),
    "train: lengths differ": lambda s: T(s, data=s.new_bundle(label=load(s.bundle)["label"][:-1])),
    "train: pickled bundle": lambda s: T(s, data=s.new_bundle(pair_id=load(s.bundle)["pair_id"].astype(object))),
    "train: lr is NaN": lambda s: T(s, "--lr", "nan"),
    "train: batch of zero": lambda s: T(s, "--batch-size", "0"),
    "train: batch larger than the data": lambda s: T(s, "--batch-size", "5000"),
    "train: size not a power of two": lambda s: T(s, "--size", "50"),
    **{f"train: {' '.join(o)}": lambda s, o=o: T(s, *o) for o in (
        ("--workers", "-1"), ("--seed", "-1"), ("--loss.lambda-l1", "nan"), ("--loss.lambda-l1", "-5"), ("--model.n-classes", "20"), ("--classifier.n-classes", "20"),
        ("--classifier.lr", "nan"), ("--audio.n-mels", "64"), ("--audio.drop", "3"))},
    "train: a maker that there isn't": lambda s: T(s, "--ear", "own", "--audio.other-windows", "3", "--audio.makers", "Stradivari"),
    "train: an ear that there isn't": lambda s: T(s, "--ear", s.tmp/"no_ear.safetensors"),
    "train: another log-mel recipe": lambda s: T(s, data=s.new_bundle(lms_db=load(s.bundle)["lms_db"][:, :64])),
    "train: a list for config.json": lambda s: ["train", "--data", s.bundle, "--out", with_json(s.run(), []), *TINY],
    "train: other pairs than before": lambda s: ["train", "--data", s.new_bundle(pair_id=load(s.bundle)["pair_id"][::-1]), "--out", s.run(), *TINY, "--max-steps", "4"],
    "train: a file in the way": lambda s: ["train", "--data", s.bundle, "--out", s.in_the_way, *TINY],
    "train: a folder that is no run": lambda s: ["train", "--data", s.bundle, "--out", put(s.tmp/"mine"/"letter.txt", b"dear").parent, *TINY],
    "train: another configuration": lambda s: ["train", "--data", s.bundle, "--out", s.run(), *TINY, "--base", "8"],
    "train: damaged config.json": lambda s: ["train", "--data", s.bundle, "--out", s.run(cut_short=["config.json"]), *TINY],
    "train: damaged checkpoint": lambda s: ["train", "--data", s.bundle, "--out", s.run(cut_short=["checkpoints/*/*"]), *TINY, "--max-steps", "4"],
    "train: damaged classifier": lambda s: ["train", "--data", s.bundle, "--out", s.run(garbage=["classifier.safetensors"]), *TINY, "--max-steps", "4"],
    # evaluate
    "evaluate: nothing given": lambda s: ["evaluate"],
    "evaluate: missing run": lambda s: ["evaluate", "--run", s.tmp/"no", "--data", s.bundle],
    "evaluate: not a run": lambda s: ["evaluate", "--run", put(s.tmp/"mine"/"x", b"x").parent, "--data", s.bundle],
    "evaluate: no checkpoint": lambda s: E(s, without=["checkpoints/*"]),
    "evaluate: truncated checkpoint": lambda s: E(s, cut_short=["checkpoints/*/weights.safetensors"]),
    "evaluate: garbage for a checkpoint": lambda s: E(s, garbage=["checkpoints/*/weights.safetensors"]),
    "evaluate: damaged config.json": lambda s: E(s, cut_short=["config.json"]),
    "evaluate: no audio classifier": lambda s: E(s, without=["audio_classifier.safetensors"]),
    "evaluate: no pictures": lambda s: [*E(s), "--pictures", "0"],
    "evaluate: missing Inception weights": lambda s: [*E(s), "--inception", s.tmp/"no.pth"],
    "evaluate: text for Inception weights": lambda s: [*E(s), "--inception", put(s.tmp/"inception.pth", b"text" * 99)],
    "evaluate: missing data": lambda s: ["evaluate", "--run", s.run(), "--data", s.tmp/"no.npz"],
    "evaluate: truncated data": lambda s: ["evaluate", "--run", s.run(), "--data", cut(Path(shutil.copy(s.bundle, s.tmp)))],
    # generate
    "hear: nothing given": lambda s: ["hear"],
    "hear: missing sound": lambda s: ["hear", s.tmp/"no.wav"],
    "hear: an ear that there isn't": lambda s: ["hear", "--ear", s.tmp/"no_ear", s.song],
    "hear: a sound for an ear": lambda s: ["hear", "--ear", s.song, s.song],
    "hear: no step at all": lambda s: ["hear", "--hop", "0", s.song],
    "hear: a folder for the JSON": lambda s: ["hear", "--out", s.tmp, s.song],
    "generate: nothing given": lambda s: ["generate"],
    "generate: no sound": lambda s: G(s),
    "generate: missing sound": lambda s: G(s, s.tmp/"no.wav"),
    "generate: a folder": lambda s: G(s, s.data),
    "generate: empty sound": lambda s: G(s, s.sound("empty")),
    "generate: text for a sound": lambda s: G(s, s.sound("text")),
    "generate: truncated sound": lambda s: G(s, s.sound("truncated")),
    "generate: NaN in a sound": lambda s: G(s, s.sound("nan")),
    "generate: no samples": lambda s: G(s, s.sound("no samples")),
    "generate: random bytes as MP3": lambda s: G(s, s.sound("random mp3")),
    "generate: the second of two is bad": lambda s: G(s, s.song, s.sound("text")),
    "generate: unknown label": lambda s: G(s, s.song, "--label", "theremin"),
    "generate: unknown device": lambda s: G(s, s.song, "--device", "abacus"),
    "generate: the example and a sound": lambda s: ["generate", "--out", s.tmp/"out", "--example", s.song],
    "generate: neither sound nor example": lambda s: ["generate", "--out", s.tmp/"out"],
    "generate: a performer of a run that draws nobody": lambda s: G(s, s.song, "--performer", "0"),
    "generate: a performer that there isn't": lambda s: ["generate", "--out", s.tmp/"out", s.song, "--performer", "50"],
    "generate: a performer below 0": lambda s: ["generate", "--out", s.tmp/"out", s.song, "--performer", "-1"],
    "generate: too many alternatives": lambda s: G(s, s.song, "--alternatives", "13"),
    "generate: a run and the hub": lambda s: ["generate", "--run", s.run(), "--hub", "a/b", "--out", s.tmp/"out", s.song],
    "generate: no name on the hub": lambda s: ["generate", "--hub", "not a name", "--out", s.tmp/"out", s.song],
    "generate: a file for a run": lambda s: ["generate", "--run", s.song, "--out", s.tmp/"out", s.song],
    "generate: a damaged listener": lambda s: ["generate", "--run", put(put(s.tmp/"mine"/"config.json", b'{"kind": "Listener"}').parent/"model.safetensors", b"garbage" * 99).parent,
                                               "--out", s.tmp/"out", s.song],
    "generate: missing run": lambda s: ["generate", "--run", s.tmp/"no", "--out", s.tmp/"out", s.song],
    "generate: no checkpoint": lambda s: G(s, s.song, without=["checkpoints/*"]),
    "generate: truncated checkpoint": lambda s: G(s, s.song, cut_short=["checkpoints/*/weights.safetensors"]),
    "generate: garbage for the audio classifier": lambda s: G(s, s.song, garbage=["audio_classifier.safetensors"]),
    "generate: no audio classifier": lambda s: G(s, s.song, without=["audio_classifier.safetensors"]),
    "generate: a file in the way": lambda s: ["generate", "--run", s.run(), "--out", s.in_the_way, s.song],
    "generate: a folder where a picture belongs": lambda s: ["generate", "--run", s.run(), "--out", put(s.tmp/"mine"/f"{s.song.stem}_fine.png"/"letter.txt", b"dear").parent.parent, s.song],
    "generate: somebody's files among the frames": lambda s: ["generate", "--run", s.run(), "--out", put(s.tmp/"mine"/f"{s.song.stem}_frames"/"letter.txt", b"dear").parent.parent, s.song, "--frames"],
    # sound
    "sound: nothing given": lambda s: ["sound"],
    "sound: no picture": lambda s: ["sound", "--run", s.run(), "--out", s.tmp/"out"],
    "sound: missing picture": lambda s: ["sound", "--run", s.run(), "--out", s.tmp/"out", s.tmp/"no.png"],
    "sound: missing run": lambda s: ["sound", "--run", s.tmp/"no", "--out", s.tmp/"out", s.picture],
    "sound: a run that only draws": lambda s: ["sound", "--run", s.run(), "--out", s.tmp/"out", s.picture],
    "sound: text for a picture": lambda s: ["sound", "--run", s.run(), "--out", s.tmp/"out", put(s.tmp/"bad.png", b"text" * 99)],
    # export
    "export: nothing given": lambda s: ["export"],
    "export: missing run": lambda s: X(s, run=s.tmp/"no"),
    "export: no checkpoint": lambda s: X(s, without=["checkpoints/*"]),
    "export: truncated checkpoint": lambda s: X(s, cut_short=["checkpoints/*/weights.safetensors"]),
    "export: damaged classifier": lambda s: X(s, garbage=["classifier.safetensors"]),
    "export: not .onnx": lambda s: X(s, out=s.tmp/"out.pt2"),
    "export: exists already": lambda s: X(s, out=put(s.tmp/"mine"/"letter.onnx", b"dear")),
    "export: a file in the way": lambda s: X(s, out=s.in_the_way/"out.onnx"),
    # reproduce
    "reproduce: a row that there isn't": lambda s: R(s, "--only", "modles"),
    "reproduce: a shard that there isn't": lambda s: R(s, "--shard", "4/3"),
    "reproduce: a seed that there isn't": lambda s: R(s, "--seeds", "7"),
    "reproduce: no epochs": lambda s: R(s, "--more-epochs", "0"),
    "reproduce: no speed": lambda s: R(s, "--dry-run", "--tflops", "0"),
    "reproduce: the paper's size without data": lambda s: R(s, "--preset", "paper"),
    "reproduce: missing data": lambda s: R(s, "--data", s.tmp/"no.npz"),
    "reproduce: truncated data": lambda s: R(s, "--data", cut(Path(shutil.copy(s.bundle, s.tmp)))),
    "reproduce: a file in the way": lambda s: ["reproduce", "--out", s.in_the_way, "--work", s.tmp/"work", "--data", s.bundle],
    "reproduce: a damaged result": lambda s: R(s, "--tables", file=b"{"),
    "reproduce: a list for a result": lambda s: R(s, "--only", "mean-plain", file=b"[]"),
    "reproduce: an empty result": lambda s: R(s, "--only", "mean-plain", file=b"{}"),
    # info
    "info: nothing given": lambda s: ["info"],
    "info: a method that there isn't": lambda s: ["info", with_json(s.run(), {"method": "pix2pix"})],
    "info: a list for config.json": lambda s: ["info", with_json(s.run(), [])],
    "info: impossible values in config.json": lambda s: ["info", with_json(s.run(), {"model": {"stages": 7}})],
    "info: missing path": lambda s: ["info", s.tmp/"no"],
    "info: a text file": lambda s: ["info", put(s.tmp/"letter.txt", b"dear")],
    "info: a folder of something else": lambda s: ["info", put(s.tmp/"mine"/"letter.txt", b"dear").parent],
    "info: truncated bundle": lambda s: ["info", cut(Path(shutil.copy(s.bundle, s.tmp)))],
    "info: garbage for weights": lambda s: ["info", put(s.tmp/"w.safetensors", b"garbage" * 99)],
    "info: a damaged listener": lambda s: ["info", put(s.tmp/"mine"/"config.json", b'{"kind": "Listener", "model": {"size": "large"}}').parent],
    "info: no checkpoint": lambda s: ["info", s.run(without=["checkpoints/*"])],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path, tiny_data, request, capfd):
    "Exit code 2, one line on stderr that says what is wrong, nothing half-written."
    argv = [str(a) for a in BAD[case](Scene(tmp_path, tiny_data, lambda: request.getfixturevalue("tiny_run")))]
    before = snapshot(tmp_path), snapshot(tiny_data)
    capfd.readouterr()
    code = main(argv)
    out, err = capfd.readouterr()
    print(err)
    assert code == 2
    assert len(err.splitlines()) == 1 and err.endswith("\n"), f"not one line: {err!r}"
    assert err.startswith("cargan") and "Traceback" not in out + err
    assert 20 < len(err) < 1000
    for whole in (*tmp_path.rglob("*.problems.txt"), *tmp_path.rglob("evaluator.safetensors")): whole.unlink()  # a report, a cache: meant to stay
    assert (snapshot(tmp_path), snapshot(tiny_data)) == before


def test_every_command_is_tried_with_bad_input():
    assert {case.split(":")[0] for case in BAD} >= set(COMMANDS)


# ---- as a process

def test_one_line_from_the_installed_command(tmp_path):
    done = subprocess.run([Path(sys.executable).parent/"cargan", "info", tmp_path/"no"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_reader_who_leaves_early(tiny_data):
    command = f"{sys.executable} -m cargan.cli info {tiny_data}/data.npz | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == "" and done.returncode in (0, 141)


def test_ctrl_c_says_how_to_go_on(tmp_path, tiny_data):
    "Interrupted in the middle of training: 130, one line; the same command goes on and finishes."
    argv = ["train", "--data", str(tiny_data/"data.npz"), "--out", str(tmp_path/"run"), *TINY, "--epochs", "100000", "--checkpoint-every", "5", "--log-every", "5"]
    listen = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background inherit deafness
    process = subprocess.Popen([*CARGAN, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    deadline = time.time() + 120
    while not list(tmp_path.glob("run/checkpoints/step_*")) and time.time() < deadline and process.poll() is None: time.sleep(0.2)
    for _ in range(5):  # Python drops an interrupt that falls into a finaliser; a person presses again, and so do we
        process.send_signal(signal.SIGINT)
        try: _, err = process.communicate(timeout=30); break
        except subprocess.TimeoutExpired: continue
    assert process.returncode == 130, err
    assert len(err.splitlines()) == 1 and "goes on" in err
    steps = int(sorted(tmp_path.glob("run/checkpoints/step_*"))[-1].name.split("_")[1])
    assert main([*argv, "--max-steps", str(steps + 2)]) == 0
    assert [p.name for p in tmp_path.glob("run/checkpoints/step_*")] == [f"step_{steps + 2:08d}"]

"Every kind of run that can be loaded leaves PyTorch with its pictures unchanged."
import shutil

import numpy as np, pytest, soundfile, torch
from torch import nn

from cargan.looking import ClassifierConfig, ImageClassifier
from cargan.cli import main
from cargan.core import CarganError, seed_everything, to_uint8
from cargan.export import FromDecibels, FromSamples, OnnxModel, example, export_program, facts, write_onnx
from cargan.hearing import find_ear, listen_to, load_audio_classifier, predict_label
from cargan.lms import log_mel
from cargan.methods import METHODS
from cargan.residue import CARGAN, CARGANConfig
from cargan.training import load_run
from conftest import ROOT

VARIANTS = {  # every value of every field that changes the graph, at least once
    "the paper": dict(size=64, classifier="compact"),
    "released": dict(lms="jet", attention="released", g2_input="audio+residue", dropout=0.5, size=64),
    "label, no attention": dict(residue="label", attention="none", classifier="resnet50"),
    "no residue": dict(residue="zero", g2_input="audio+residue", attention="none"),
    "one stage": dict(stages=1, attention="released"),
    "no label": dict(told="nothing", attention="none"),
    "deaf": dict(hears="silence", attention="none", stages=1)}


def toy_cascade(classifier="small", **kwargs) -> CARGAN:
    seed_everything(0)
    cfg = CARGANConfig(**dict(size=32, base=4, d_base=4, init_std=0.1) | kwargs)
    model = CARGAN(cfg, ImageClassifier(ClassifierConfig(arch=classifier, size=cfg.size, pretrained="none")))
    for m in model.modules():
        if hasattr(m, "gamma"): nn.init.constant_(m.gamma, 0.5)
    return model


def agree(model, path, flat=1e-3):
    "PyTorch, the graph and the file give the same pictures, whatever the batch; to 1e-4 on [-1, 1]."
    net = FromDecibels(model)
    write_onnx(path, net, method="some")
    file, graph, inputs = OnnxModel(path, threads=1), export_program(net).module(), example(net, 3)
    assert (tuple(file.shapes), file.stages) == (net.inputs, model.stages)
    for b in (1, 3):
        some = [x[:b] for x in inputs]
        with torch.no_grad(): ours, exported = net(*some), graph(*some)
        assert max(x.std() for x in ours) > flat
        for a, e, o in zip(ours, exported, file(*some), strict=True):
            assert (a - e).abs().max() < 1e-4 and np.abs(a.numpy() - o).max() < 1e-4
    assert (dict(facts(net)) | {"method": "some"}).items() <= file.facts.items()
    assert ("label" in file.facts) == (model.label == "wants")


@pytest.fixture(scope="session")
def waves(tiny_data):
    "Rendered windows of all instruments and of a melody; then silence, a clipped loud sound, a very soft one, noise."
    files = sorted((tiny_data/"data").rglob("chunk/**/*.wav"))
    assert len(files) > 26
    windows = [soundfile.read(f, dtype="float32", always_2d=True)[0].mean(1)[:22050] for f in files[::3]]
    melody = soundfile.read(tiny_data/"melody.wav", dtype="float32")[0]
    windows += list(melody[:len(melody) // 22050 * 22050].reshape(-1, 22050)[:4])
    noise = np.random.default_rng(0).normal(0, 0.1, 22050)
    windows += [np.zeros(22050), np.clip(40 * windows[0], -1, 1), 1e-3 * windows[1], noise]
    return np.stack(windows).astype(np.float32)


def house(model, ear, waves) -> dict:
    "What the house makes of samples, step by step: its log-mel, its ear, its label, its pictures."
    lms_db, net = log_mel(torch.from_numpy(waves)), FromDecibels(model)
    label = [torch.eye(13)[predict_label(ear, lms_db)[0]]] if "label" in net.inputs else []
    with torch.no_grad(): return dict(zip(net.outputs, net(lms_db, *label))) | listen_to(ear, lms_db)._asdict()


def agree_from_samples(model, ear, path, waves):
    "The file that begins with samples gives what the house gives: pictures to two 8-bit steps, whatever the batch."
    write_onnx(path, FromSamples(model, ear), method="some")
    file, ours = OnnxModel(path, threads=1), house(model, ear, waves)
    assert (list(file.shapes), file.stages) == (["samples"], model.stages)
    alone = {name: np.concatenate([file.run(wave[None])[name] for wave in waves[-8:]]) for name in file.outputs}
    for name, theirs in file.run(waves).items():
        if name in file.stages:
            steps = to_uint8(ours[name]).astype(int) - to_uint8(torch.from_numpy(theirs))
            assert np.abs(steps).max() <= 2 and np.abs(steps).mean() < 0.05, (name, np.abs(steps).max((1, 2, 3)))
        else: assert np.abs(ours[name].numpy() - theirs).max() < 0.01, name
        assert np.abs(alone[name] - theirs[-8:]).max() < 0.01
    assert {"samples", "instrument", "size"} <= file.facts.keys() and "lms_db" not in file.facts


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant, tmp_path): agree(toy_cascade(**VARIANTS[variant]), tmp_path/"c.onnx")


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method, method_run, tmp_path):
    agree(load_run(method_run(method))[0], tmp_path/"m.onnx", flat=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_from_samples(method, method_run, waves, tmp_path):
    run = method_run(method)
    model = load_run(run)[0]
    ear = model.ear if hasattr(model, "ear") else load_audio_classifier(find_ear(run))
    agree_from_samples(model, ear, tmp_path/"m.onnx", waves)


def test_pictures_that_follow_the_label(waves, tmp_path):
    model, ear = toy_cascade(), load_audio_classifier(find_ear("shipped"))
    agree_from_samples(model, ear, tmp_path/"c.onnx", waves)
    drawn = OnnxModel(tmp_path/"c.onnx").run(waves)
    said = drawn["instrument"][:, :-1].argmax(1)
    assert len(set(said)) > 6 and drawn["instrument"][-4].argmax() == 13  # many instruments; silence is nothing
    wrong = np.abs(FromDecibels(model)(log_mel(waves), torch.eye(13)[(said + 1) % 13])[1].detach().numpy() - drawn["fine"])
    assert wrong.max() > 2 / 127.5  # another label would show


def test_jet(waves, tmp_path):
    "Silence is left out: stretched to its own range, nothing but its rounding is painted."
    model, ear = toy_cascade(**VARIANTS["released"]), load_audio_classifier(find_ear("shipped"))
    agree_from_samples(model, ear, tmp_path/"c.onnx", waves[waves.any(1)])


def test_an_ear_from_samples(waves, tmp_path):
    import onnxruntime
    assert main(["export", "--ear", "shipped", "--input", "samples", "--out", str(tmp_path/"e.onnx")]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path/"e.onnx"))
    heard = listen_to(load_audio_classifier(find_ear("shipped")), log_mel(waves))
    for name, theirs in zip(heard._fields, session.run(None, dict(samples=waves)), strict=True):
        assert np.abs(getattr(heard, name).numpy() - theirs).max() < 0.01, name
    with pytest.raises(CarganError, match="not one of ours"): OnnxModel(tmp_path/"e.onnx")


def test_a_method_of_somebody_else(toy, method_run, tmp_path):
    agree(load_run(method_run(toy))[0], tmp_path/"t.onnx", flat=1e-5)


def test_run_of_the_version_before(tmp_path, capfd):
    assert main(["export", "--run", str(ROOT/"tests"/"old_run"/"run"), "--out", str(tmp_path/"c.onnx")]) == 0
    file = OnnxModel(tmp_path/"c.onnx")
    assert (list(file.shapes), file.stages, file.facts["method"]) == (["lms_db", "label"], ("coarse", "fine"), "cargan")


def test_a_label_that_nobody_asked_for(toy, method_run, tmp_path):
    net = FromDecibels(load_run(method_run(toy))[0])
    write_onnx(tmp_path/"t.onnx", net)
    with pytest.raises(CarganError, match="takes no label"): OnnxModel(tmp_path/"t.onnx")(*example(net, 3), torch.eye(13)[:3])


def test_command_on_a_trained_run(tiny_run, tmp_path, capfd):
    assert main(["export", "--run", str(tiny_run), "--out", str(tmp_path/"new"/"c.onnx")]) == 0
    out, err = capfd.readouterr()
    assert float(out.splitlines()[-2].split()[-1]) < 1e-4 and out.splitlines()[-1] == f"export: {tmp_path/'new'/'c.onnx'}" and err == ""
    assert [p.name for p in (tmp_path/"new").iterdir()] == ["c.onnx"]


def test_command_with_samples(tiny_run, waves, tmp_path, capfd):
    assert main(["export", "--run", str(tiny_run), "--out", str(tmp_path/"s.onnx"), "--input", "samples"]) == 0
    assert float(capfd.readouterr().out.splitlines()[-2].split()[-1]) < 1e-4
    file = OnnxModel(tmp_path/"s.onnx")
    assert file.outputs == ("coarse", "fine", "instrument", "note", "loudness") and file.facts["method"] == "cargan"
    with pytest.raises(CarganError, match="samples of B x 22050"): file(waves[:, :22000])
    with pytest.raises(CarganError, match="must be floats"): file((waves * 32767).astype(np.int16))
    with pytest.raises(CarganError, match="finite"): file(waves + np.inf)
    assert file(waves[:1].astype(np.float64))[1].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("options, says", [(["--input", "mp3"], "mp3"), (["--input", "samples", "--ear", "no-such-ear"], "no-such-ear")])
def test_bad_options(options, says, tiny_run, tmp_path, capfd):
    run = [] if "--ear" in options else ["--run", str(tiny_run)]
    assert main(["export", *run, "--out", str(tmp_path/"s.onnx"), *options]) == 2
    assert says in capfd.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_run_without_its_ear(tiny_run, tmp_path, capfd):
    shutil.copytree(tiny_run, tmp_path/"run")
    (tmp_path/"run"/"audio_classifier.safetensors").unlink()
    assert main(["export", "--run", str(tmp_path/"run"), "--out", str(tmp_path/"s.onnx"), "--input", "samples"]) == 2
    assert "audio_classifier.safetensors" in capfd.readouterr().err and not (tmp_path/"s.onnx").exists()


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(self, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", full)
    with pytest.raises(CarganError, match="No space left"): write_onnx(tmp_path/"c.onnx", FromDecibels(toy_cascade(attention="none", stages=1)))
    assert list(tmp_path.iterdir()) == []


def test_too_large_for_a_file(tmp_path):
    with torch.device("meta"): model = CARGAN(CARGANConfig(base=256), nn.Linear(1, 1))
    with pytest.raises(CarganError, match="at most 2"): write_onnx(tmp_path/"c.onnx", FromDecibels(model))

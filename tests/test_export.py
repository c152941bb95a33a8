"Every kind of run that can be loaded leaves PyTorch with its pictures unchanged."
import numpy as np, pytest, torch
from torch import nn

from cargan.looking import ClassifierConfig, ImageClassifier
from cargan.cli import main
from cargan.core import CarganError, seed_everything
from cargan.export import FromDecibels, OnnxModel, example, export_program, facts, write_onnx
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
    write_onnx(path, model, method="some")
    net, file = FromDecibels(model), OnnxModel(path, threads=1)
    graph, inputs = export_program(model).module(), example(n=3)[:len(net.inputs)]
    assert (tuple(file.shapes), file.stages) == (net.inputs, model.stages)
    for b in (1, 3):
        some = [x[:b] for x in inputs]
        with torch.no_grad(): ours, exported = net(*some), graph(*some)
        assert max(x.std() for x in ours) > flat
        for a, e, o in zip(ours, exported, file(*some), strict=True):
            assert (a - e).abs().max() < 1e-4 and np.abs(a.numpy() - o).max() < 1e-4
    assert (dict(facts(model)) | {"method": "some"}).items() <= file.facts.items()
    assert ("label" in file.facts) == (model.label == "wants")


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant, tmp_path): agree(toy_cascade(**VARIANTS[variant]), tmp_path/"c.onnx")


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method, method_run, tmp_path):
    agree(load_run(method_run(method))[0], tmp_path/"m.onnx", flat=1e-5)


def test_a_method_of_somebody_else(toy, method_run, tmp_path):
    agree(load_run(method_run(toy))[0], tmp_path/"t.onnx", flat=1e-5)


def test_run_of_the_version_before(tmp_path, capfd):
    assert main(["export", "--run", str(ROOT/"tests"/"old_run"/"run"), "--out", str(tmp_path/"c.onnx")]) == 0
    file = OnnxModel(tmp_path/"c.onnx")
    assert (list(file.shapes), file.stages, file.facts["method"]) == (["lms_db", "label"], ("coarse", "fine"), "cargan")


def test_a_label_that_nobody_asked_for(toy, method_run, tmp_path):
    write_onnx(tmp_path/"t.onnx", load_run(method_run(toy))[0])
    lms_db, label = example(n=3)
    with pytest.raises(CarganError, match="takes no label"): OnnxModel(tmp_path/"t.onnx")(lms_db, label)


def test_command_on_a_trained_run(tiny_run, tmp_path, capfd):
    assert main(["export", "--run", str(tiny_run), "--out", str(tmp_path/"new"/"c.onnx")]) == 0
    out, err = capfd.readouterr()
    assert float(out.splitlines()[-2].split()[-1]) < 1e-4 and out.splitlines()[-1] == f"export: {tmp_path/'new'/'c.onnx'}" and err == ""
    assert [p.name for p in (tmp_path/"new").iterdir()] == ["c.onnx"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(self, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", full)
    with pytest.raises(CarganError, match="No space left"): write_onnx(tmp_path/"c.onnx", toy_cascade(attention="none", stages=1))
    assert list(tmp_path.iterdir()) == []


def test_too_large_for_a_file(tmp_path):
    with torch.device("meta"): model = CARGAN(CARGANConfig(base=256), nn.Linear(1, 1))
    with pytest.raises(CarganError, match="at most 2"): write_onnx(tmp_path/"c.onnx", model)

"Every kind of run that can be loaded leaves PyTorch with its pictures unchanged."
import numpy as np, pytest, torch
from torch import nn

from cargan.classifier import ClassifierConfig, ImageClassifier
from cargan.cli import main
from cargan.core import CarganError, seed_everything
from cargan.export import FromDecibels, OnnxCascade, example, export_program, facts, write_onnx
from cargan.residue import CARGAN, CARGANConfig

VARIANTS = {  # every value of every field that changes the graph, at least once
    "the paper": dict(size=64, classifier="compact"),
    "released": dict(lms="jet", attention="released", g2_input="audio+residue", dropout=0.5, size=64),
    "label, no attention": dict(residue="label", attention="none", classifier="resnet50"),
    "no residue": dict(residue="zero", g2_input="audio+residue", attention="none"),
    "one stage": dict(stages=1, attention="released")}


def toy(classifier="small", **kwargs) -> CARGAN:
    seed_everything(0)
    cfg = CARGANConfig(**dict(size=32, base=4, d_base=4, init_std=0.1) | kwargs)
    model = CARGAN(cfg, ImageClassifier(ClassifierConfig(arch=classifier, size=cfg.size, pretrained="none")))
    for m in model.modules():
        if hasattr(m, "gamma"): nn.init.constant_(m.gamma, 0.5)
    return model


def agree(model, path):
    "PyTorch, the graph and the file give the same pictures, whatever the batch; to 1e-4 on [-1, 1]."
    write_onnx(path, model)
    net, graph, cascade, inputs = FromDecibels(model), export_program(model).module(), OnnxCascade(path, threads=1), example(n=3)
    for b in (1, 3):
        some = [x[:b] for x in inputs]
        with torch.no_grad(): ours, exported = net(*some), graph(*some)
        assert max(x.std() for x in ours) > 1e-3
        for a, e, o in zip(ours, exported, cascade(*some)):
            assert (a - e).abs().max() < 1e-4 and np.abs(a.numpy() - o).max() < 1e-4
    assert dict(facts(model.cfg)).items() <= cascade.facts.items()


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant, tmp_path): agree(toy(**VARIANTS[variant]), tmp_path/"c.onnx")


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
    with pytest.raises(CarganError, match="No space left"): write_onnx(tmp_path/"c.onnx", toy(attention="none", stages=1))
    assert list(tmp_path.iterdir()) == []


def test_too_large_for_a_file(tmp_path):
    with torch.device("meta"): model = CARGAN(CARGANConfig(base=256), nn.Linear(1, 1))
    with pytest.raises(CarganError, match="at most 2"): write_onnx(tmp_path/"c.onnx", model)

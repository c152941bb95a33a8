"The step that trains agrees with a plain reading of the paper: same weights, same pairs, same losses, same gradients."
import sys
from dataclasses import replace

import pytest
import torch

from cargan.cascade import PRESETS, update_D, update_G
from cargan.core import seed_everything
from cargan.looking import ClassifierConfig, ImageClassifier, fold_batch_norms
from cargan.losses import discriminator_losses, generator_losses
from cargan.residue import CARGAN, CARGANConfig
from cargan.training import make_accelerator, make_players
from conftest import ROOT

sys.path.insert(0, str(ROOT/"bench"))
from reference import Reference
from released import Released, generator


def players(cfg, C): return make_players(cfg, lambda: CARGAN(cfg.model, fold_batch_norms(C)), make_accelerator(cfg))


def largest_difference(ours, theirs) -> float:
    "Of all gradients, relative to the largest entry of each network's."
    pairs = [(a.grad, dict(theirs.named_parameters())[n].grad) for n, a in ours.named_parameters()]
    top = max(b.abs().max() for _, b in pairs)
    return max(((a - b).abs().max() / top).item() for a, b in pairs)


@pytest.mark.parametrize("attention", ["sagan", "released"])
def test_losses_and_gradients_agree(attention):
    """Base 32, so that the bottom of the U is computed as a matrix product; γ is set to 0.5, so that attention counts. In double precision:
    batch norm over a handful of positions magnifies the rounding of float32 in the gradients of G1 (to 2e-3 of the largest), not errors alone."""
    cfg = replace(PRESETS["lab"], model=CARGANConfig(size=32, base=32, d_base=8, attention=attention), device="cpu")
    seed_everything(0)
    C = ImageClassifier(ClassifierConfig(arch="small"))
    p, ref = players(cfg, C), Reference(cfg.model, C)
    for net in (p.model, C, p.rivals["D"], ref.G1, ref.G2, ref.D): net.double()
    nets = dict(G1=(p.model.G1, ref.G1), G2=(p.model.G2, ref.G2), D=(p.rivals["D"], ref.D))
    for ours, theirs in nets.values():
        for name, q in ours.named_parameters():
            if name.endswith("gamma"): q.data.fill_(0.5)
        theirs.load_state_dict(ours.state_dict())
    batch = dict(mel=torch.rand(4, 1, 32, 32).double() * 2 - 1, image=torch.rand(4, 3, 32, 32).double() * 2 - 1, label=torch.tensor([0, 3, 3, 12]))
    out = p.model(batch["mel"], batch["label"])
    loss_G = generator_losses(p.rivals["D"], p.model.C, out, batch, cfg.model)["G"]
    expected_G, pictures = ref.losses_G(batch)
    torch.testing.assert_close(loss_G.double(), expected_G, atol=0, rtol=1e-6)
    for loss in (loss_G, expected_G): loss.backward()
    assert largest_difference(*nets["G1"]) < 1e-5 and largest_difference(*nets["G2"]) < 1e-5
    for net in nets["D"]: net.zero_grad()
    loss_D, expected_D = discriminator_losses(p.rivals["D"], out, batch, cfg.model)["D"], ref.losses_D(batch, pictures)
    torch.testing.assert_close(loss_D.double(), expected_D, atol=0, rtol=1e-6)
    for loss in (loss_D, expected_D): loss.backward()
    assert largest_difference(*nets["D"]) < 1e-5


def test_a_whole_step_agrees():
    "Generators first, then D on the pictures from before: the losses of two steps, after which all weights have moved."
    cfg = replace(PRESETS["lab"], model=CARGANConfig(size=32, base=8, d_base=8), device="cpu", lr=1e-4)
    seed_everything(0)
    C = ImageClassifier(ClassifierConfig(arch="small"))
    p, ref = players(cfg, C), Reference(cfg.model, C, lr=cfg.lr)
    for ours, theirs in ((p.model.G1, ref.G1), (p.model.G2, ref.G2), (p.rivals["D"], ref.D)): theirs.load_state_dict(ours.state_dict())
    for net in (p.model, C, p.rivals["D"], ref.G1, ref.G2, ref.D): net.double()
    batch = dict(mel=torch.rand(4, 1, 32, 32).double() * 2 - 1, image=torch.rand(4, 3, 32, 32).double() * 2 - 1, label=torch.tensor([0, 3, 3, 12]))
    for _ in range(2):
        out, losses = update_G(p, batch); losses |= update_D(p, batch, out)
        for ours, theirs in zip((losses["G"], losses["D"]), ref.step(batch)): torch.testing.assert_close(ours.double(), theirs, atol=0, rtol=1e-5)


def test_the_released_step_trains():
    "pix2pix's U-Net of 128 px (41.8 million weights without label, second input and attention), and a step that moves every network but C."
    plain = sum(q.numel() for n, q in generator(CARGANConfig(size=128), 3).named_parameters() if not any(a in n for a in ("query", "key", "value")))
    assert plain == 41_828_995
    seed_everything(0)
    C = ImageClassifier(ClassifierConfig(arch="small"))
    p, frozen = Released(CARGANConfig(size=32, base=8, d_base=2), C), [q.clone() for q in C.state_dict().values()]
    nets = dict(G1=p.G1, G2=p.G2, D=p.D)
    before = {k: [q.clone() for q in net.parameters()] for k, net in nets.items()}
    batch = dict(mel=torch.rand(4, 1, 32, 32) * 2 - 1, image=torch.rand(4, 3, 32, 32) * 2 - 1, label=torch.tensor([0, 3, 3, 12]))
    losses = [p.step(batch)[0].item() for _ in range(5)]
    assert losses[-1] < losses[0] and all(torch.equal(a, b) for a, b in zip(frozen, C.state_dict().values()))
    for k, net in nets.items(): assert not any(torch.equal(a, b) for a, b in zip(before[k], net.parameters())), k

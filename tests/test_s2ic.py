"S2IC: what its losses, its discriminator and its frozen encoder must be, whatever the notebook shows."
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT

from cargan.bundle import open_bundle
from cargan.core import CarganError, seed_everything
from cargan.data import PairDataset
from cargan.looking import ClassifierConfig, ImageClassifier, save_classifier
from cargan.methods import Pairs, Players, find_method
from cargan.s2ic import (METHOD, PRESETS, S2IC, VARIANTS, Discriminator, EncoderConfig, S2ICConfig, S2ICLoss, SoundEncoder, check, discriminator_losses,
                         generator_losses, load_encoder, make_model, make_parts, make_rivals, step, train_encoder, update_D, update_G)
from cargan.training import epoch_pairs

TINY = replace(PRESETS["lab"], model=S2ICConfig(size=32, base=4, d_base=4), encoder=EncoderConfig(base=4, epochs=2, batch_size=4))
KINDS = {"S2IC": lambda cfg: cfg} | VARIANTS


@pytest.fixture(scope="module")
def pairs():
    "Twenty-six pairs of 13 instruments."
    bundle = open_bundle(ROOT/"tests"/"old_run"/"pairs.npz")
    return Pairs(bundle, np.flatnonzero(bundle.split == "train"), np.flatnonzero(bundle.split == "validation"))


def players(cfg):
    seed_everything(0)
    model, rivals = S2IC(cfg.model, SoundEncoder(cfg.encoder)).train(), make_rivals(cfg)
    adam = lambda nets: torch.optim.Adam([q for net in nets for q in net.parameters()], lr=1e-3)
    hands = SimpleNamespace(backward=lambda loss: loss.backward(), unwrap_model=lambda net: net, autocast=nullcontext)
    sides = dict(G=model.networks.values(), D=rivals.values())
    return Players(cfg, hands, model, rivals, {side: adam(nets) for side, nets in sides.items() if nets})


def random_batch(n=6, size=32, z=10):
    g = torch.Generator().manual_seed(1)
    draw = lambda channels: torch.rand(n, channels, size, size, generator=g) * 2 - 1
    return dict(mel=draw(1), image=draw(3), wrong_image=draw(3), noise=torch.randn(n, z, generator=g))


@pytest.mark.parametrize("wrong", [0.5, 0.2, 0.])
def test_losses_by_hand(wrong):
    "The formula of the paper, with sigmoids and logarithms written out in double precision."
    scores = torch.randn(3, 7, dtype=torch.float64)
    order = iter(scores)
    batch = dict(image=torch.zeros(7, 3, 4, 4), wrong_image=torch.ones(7, 3, 4, 4))
    asked = [0, 1, 2] if wrong else [0, 2]
    answers = iter(scores[asked])
    losses = discriminator_losses(lambda image, phi: next(answers), batch, torch.rand(7, 3, 4, 4), torch.zeros(7, 64), S2ICLoss(wrong=wrong))
    r, w, f = scores.float().sigmoid()
    by_hand = -(r.log() + wrong * (1 - w).log() + (1 - wrong) * (1 - f).log()).mean()
    assert torch.isclose(losses["D"], by_hand, atol=1e-6)
    assert ("d_wrong" in losses) == bool(wrong)
    g = generator_losses(lambda image, phi: next(order), batch, torch.rand(7, 3, 4, 4), torch.zeros(7, 64))
    assert torch.isclose(g["G"], -r.log().mean(), atol=1e-6) and g["G"] is not g["l1_fine"]


def test_the_auto_encoder_never_asks_D():
    def D(*given): raise AssertionError("asked")
    drawn, batch = torch.rand(2, 3, 32, 32), dict(image=torch.rand(2, 3, 32, 32))
    losses = generator_losses(D, batch, drawn, torch.zeros(2, 64), S2ICLoss(objective="mse"))
    assert torch.isclose(losses["G"], (drawn - batch["image"]).square().mean())
    assert make_rivals(VARIANTS["autoencoder"](TINY)) == {}


def test_wrong_pairs_come_from_another_instrument(pairs):
    "Batches as the training loop makes them: D is given their wrong pictures together with the right sound."
    idx, dataset = pairs.train_idx, PairDataset(pairs.bundle, 32)
    for n in range(10):
        batch = epoch_pairs(TINY, METHOD, dataset, idx, {}, n).__getitems__(idx)
        assert (batch["wrong_label"] != batch["label"]).all() and batch["noise"].shape == (len(idx), 10)
    p, seen = players(TINY), []
    p.rivals["D"].register_forward_pre_hook(lambda net, given: seen.append(given))
    drawn, phi, _ = update_G(p, batch)
    update_D(p, batch, drawn, phi)
    assert [torch.equal(image, x) for (image, _), x in zip(seen, (drawn, batch["image"], batch["wrong_image"], drawn))] == [True] * 4
    assert [heard.requires_grad for _, heard in seen] == [True, False, False, False]
    assert all(torch.equal(heard, phi) for _, heard in seen)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_every_size(size):
    cfg = replace(TINY, model=replace(TINY.model, size=size, base=2, d_base=2))
    p, batch = players(cfg), random_batch(2, size)
    assert all(v.isfinite() for v in step(p, batch).values())
    with torch.no_grad(): drawn = p.model.eval().draw(batch["mel"])
    assert list(drawn) == ["fine"] and drawn["fine"].shape == (2, 3, size, size) and drawn["fine"].abs().max() <= 1
    assert p.rivals["D"](batch["image"], torch.zeros(2, 64)).shape == (2,)


def test_the_encoder_looks_at_64_pixels():
    "A sound shown larger is averaged to the same picture."
    encoder, mel = SoundEncoder(EncoderConfig(base=2)).eval(), torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        for size in (128, 256): assert torch.allclose(encoder.features(mel.repeat_interleave(size // 64, 2).repeat_interleave(size // 64, 3)), encoder.features(mel), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_every_parameter(kind):
    "Of phi, G and D; and none the encoder, which stays as it is, with the statistics of its batch norms."
    cfg = KINDS[kind](TINY)
    p = players(cfg)
    for opt in p.optimisers.values(): opt.zero_grad = lambda set_to_none=True: None
    before = {k: v.clone() for k, v in p.model.encoder.state_dict().items()}
    losses = step(p, random_batch())
    assert set(p.networks) == ({"phi", "G"} if kind == "autoencoder" else {"phi", "G", "D"})
    assert [f"{n}.{k}" for n, net in p.networks.items() for k, q in net.named_parameters() if q.grad is None or not q.grad.any()] == []
    assert all(q.grad is None and not q.requires_grad for q in p.model.encoder.parameters())
    p.model.train()
    for _ in range(2): step(p, random_batch())
    assert all(torch.equal(v, before[k]) for k, v in p.model.encoder.state_dict().items())
    assert "G" in losses and ("D" in losses) == (kind != "autoencoder")


def test_D_weighs_picture_and_sound_together():
    "Not a score of the picture plus a score of the sound: swapping the sounds of two pairs changes the sum."
    seed_everything(0)
    D = Discriminator(S2ICConfig(32, d_base=8, init_std=0.1)).eval()
    (a, b), (x, y) = torch.rand(2, 1, 3, 32, 32) * 2 - 1, torch.randn(2, 1, 64)
    with torch.no_grad(): assert abs(D(a, x) + D(b, y) - D(a, y) - D(b, x)) > 1e-4


def test_drawing_is_a_function_of_the_sound():
    "z = 0, no label, and other sounds in the batch make no difference."
    model, mel = S2IC(TINY.model, SoundEncoder(TINY.encoder)).eval(), random_batch()["mel"]
    with torch.no_grad():
        together, alone = model.draw(mel, torch.arange(6))["fine"], torch.cat([model.draw(m[None])["fine"] for m in mel])
        assert torch.equal(together, model.draw(mel)["fine"]) and torch.allclose(together, alone, atol=1e-5)
    assert (model.label, model.stages, model.lms, model.size) == ("none", ("fine",), "db", 32)


def test_the_encoder_is_a_part(pairs, tmp_path):
    "Seeded, without a trace in the caller's random numbers, kept with its report; its key holds what decides it, and the width of G does not."
    asked = []
    def keep(name, settings, make): asked.append((name, settings)); make(tmp_path/f"{name}.safetensors")
    before = torch.get_rng_state()
    make_parts(TINY, pairs, keep)
    assert torch.equal(before, torch.get_rng_state())
    model, again = make_model(TINY, tmp_path), train_encoder(TINY.encoder, 32, pairs, progress=False)[0]
    assert all(torch.equal(a, b) for a, b in zip(model.encoder.state_dict().values(), again.state_dict().values()))
    assert 0 <= model.encoder.report["accuracy"] <= 1 and model.encoder.report["n_train"] == len(pairs.train_idx)
    for change in (dict(model=replace(TINY.model, base=8)), dict(model=replace(TINY.model, size=64)), dict(encoder=replace(TINY.encoder, seed=1))):
        make_parts(replace(TINY, **change), pairs, lambda name, settings, make: asked.append((name, settings)))
    assert [a == asked[0] for a in asked[1:]] == [True, False, False]


def test_another_file_is_not_an_encoder(tmp_path):
    save_classifier(tmp_path/"c.safetensors", ImageClassifier(ClassifierConfig()))
    with pytest.raises(CarganError, match="holds ImageClassifier, not SoundEncoder"): load_encoder(tmp_path/"c.safetensors")


@pytest.mark.parametrize("bad, words", [
    (lambda: replace(TINY.model, size=100), "power of two"), (lambda: replace(TINY.model, size=16), "at least 32"),
    (lambda: replace(TINY.model, base=0), "base is 0"), (lambda: replace(TINY.model, d_base=-1), "d_base is -1"), (lambda: replace(TINY.model, phi=0), "phi is 0"),
    (lambda: replace(TINY.model, z=0), "z is 0"), (lambda: replace(TINY.model, init_std=float("nan")), "init_std is nan"),
    (lambda: check(replace(TINY, loss=S2ICLoss(wrong=1.))), "wrong=1.0"), (lambda: check(replace(TINY, loss=S2ICLoss(wrong=float("nan")))), "wrong=nan"),
    (lambda: check(replace(TINY, loss=S2ICLoss(objective="l1"))), "choose gan or mse"), (lambda: check(replace(TINY, encoder=EncoderConfig(base=0))), "encoder.base=0"),
    (lambda: check(replace(TINY, encoder=EncoderConfig(batch_size=1))), "encoder.batch_size=1"), (lambda: check(replace(TINY, encoder=EncoderConfig(lr=float("nan")))), "encoder.lr=nan"),
    (lambda: check(replace(TINY, encoder=EncoderConfig(n_classes=4))), "there are 13 instruments")])
def test_bad_options_are_refused(bad, words):
    with pytest.raises(CarganError, match=words): bad()


@pytest.mark.parametrize("option, words", [(["--size", "100"], "power of two"), (["--wrong", "1.5"], "wrong=1.5"), (["--encoder.epochs", "0"], "encoder.epochs=0")])
def test_the_command_says_it_in_one_line(option, words, tmp_path, capsys):
    from cargan.cli import main
    data = ROOT/"tests"/"old_run"/"pairs.npz"
    assert main(["train", "--method", "s2ic", "--data", str(data), "--out", str(tmp_path/"run"), *option]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said and not (tmp_path/"run").exists()


def test_the_table_knows_it():
    assert find_method("s2ic") is METHOD and set(METHOD.presets) == {"lab", "paper"} and set(METHOD.variants) == {"no-wrong", "autoencoder"}
    for cfg in (*PRESETS.values(), *(change(PRESETS["lab"]) for change in VARIANTS.values())): check(cfg)

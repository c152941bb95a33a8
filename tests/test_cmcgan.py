"CMCGAN: its losses in numbers, its networks at every size, who learns from what; and `cargan sound`, which makes pictures audible."
import json, math, re, shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pytest, soundfile, torch
from PIL import Image

from cargan import cmcgan
from cargan.cli import main
from cargan.cmcgan import (CMCGAN, CMCGANConfig, CMCGANLoss, CMCGANTrain, JointDiscriminator, METHOD, discriminator_losses, first_hop, generator_losses,
                           numbers, second_hop, update_D, update_G)
from cargan.core import CarganError, seed_everything
from cargan.methods import Players, find_method
from conftest import ANY, ROOT

TINY = CMCGANTrain(model=CMCGANConfig(size=32, base=4, d_base=4, feature=8, z=3), lr=1e-3)


def random_batch(size=32, n=4, noise=0, seed=0) -> dict:
    "Pairs, wrong pairs and noise, all random."
    g = torch.Generator().manual_seed(seed)
    picture = lambda channels: torch.rand(n, channels, size, size, generator=g) * 2 - 1
    return dict(mel=picture(1), image=picture(3), wrong_mel=picture(1), wrong_image=picture(3), label=torch.arange(n), noise=torch.randn(n, noise, generator=g))


def players(cfg=TINY) -> Players:
    "Networks and optimisers on the CPU, without accelerate."
    seed_everything(cfg.seed)
    model, D = CMCGAN(cfg.model), JointDiscriminator(cfg.model)
    adam = lambda net, lr: torch.optim.Adam(net.parameters(), lr=lr, betas=(cfg.beta1, cfg.beta2))
    hands = SimpleNamespace(backward=lambda loss: loss.backward(), unwrap_model=lambda net: net, autocast=nullcontext)
    return Players(cfg, hands, model, dict(D=D), dict(G=adam(model, cfg.lr), D=adam(D, cfg.lr_d)))


def keep_gradients(p: Players) -> Players:
    "The same players, whose optimisers neither move a weight nor forget a gradient."
    for opt in p.optimisers.values(): opt.step, opt.zero_grad = (lambda *a, **k: None), (lambda *a, **k: None)
    return p


def silent(net) -> list:
    "The names of parameters that a loss did not reach."
    return [name for name, q in net.named_parameters() if q.grad is None or not q.grad.any()]


# ---- networks

@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_shapes(size):
    cfg = CMCGANConfig(size=size, base=2, d_base=2, feature=5, z=3)
    model, D, batch = CMCGAN(cfg).eval(), JointDiscriminator(cfg).eval(), random_batch(size, 2)
    with torch.no_grad():
        assert model.EA(batch["mel"]).shape == model.EV(batch["image"]).shape == (2, 5)
        picture, sound = model.draw(batch["mel"]), model.sound(batch["image"])
        assert (list(picture), picture["fine"].shape, sound.shape) == (["fine"], (2, 3, size, size), (2, 1, size, size))
        assert max(picture["fine"].abs().max(), sound.abs().max()) <= 1
        assert D(picture["fine"], sound).shape == (2,)
        assert model.EA.convs(batch["mel"]).shape[2:] == (4, 4)


def test_what_the_house_asks_of_a_model():
    model = CMCGAN(TINY.model)
    assert (model.size, model.label, model.stages, model.lms) == (32, "none", ("fine",), "db")
    assert sum(len(list(net.parameters())) for net in model.networks.values()) == len(list(model.parameters()))
    assert find_method("cmcgan") is METHOD and METHOD.config.method == "cmcgan" and set(METHOD.presets) >= {"lab", "paper"}


def test_drawing_is_deterministic_and_needs_no_label():
    model, batch = CMCGAN(TINY.model).eval(), random_batch()
    with torch.no_grad():
        first, again, told = (model.draw(batch["mel"], label)["fine"] for label in (None, None, torch.arange(4)))
        assert torch.equal(first, again) and torch.equal(first, told)
        one = model.draw(batch["mel"][:1])["fine"]
    assert torch.allclose(one, first[:1], atol=1e-6)  # a picture doesn't depend on its neighbours


def test_the_paths_of_both_hops():
    "Each of the eight, put together by hand."
    model, batch, z = CMCGAN(TINY.model).eval(), random_batch(), torch.randn(4, 8, 3)
    with torch.no_grad():
        out = first_hop(model, batch["mel"], batch["image"], z[:, :4])
        out |= second_hop(model, out, z[:, 4:])
        E, D = dict(A=model.EA, V=model.EV), dict(A=model.DA, V=model.DV)
        start = dict(A=batch["mel"], V=batch["image"])
        for i, (x, y) in enumerate(("AV", "VV", "VA", "AA")):
            one = D[y](torch.cat([E[x](start[x]), z[:, i]], 1))
            assert torch.allclose(out[x + y], one, atol=1e-5)
        for i, name in enumerate(("AVA", "VVA", "VAV", "AAV")):
            two = D[name[2]](torch.cat([E[name[1]](out[name[:2]]), z[:, 4 + i]], 1))
            assert torch.allclose(out[name], two, atol=1e-5)


@pytest.mark.parametrize("decoder, ends", [("DV", {"AV", "VV", "VAV", "AAV"}), ("DA", {"VA", "AA", "AVA", "VVA"})])
def test_decoders_of_one_kind_share_their_weights(decoder, ends):
    "Every path that ends in one kind, in either hop, sends a gradient into the one decoder of that kind."
    for name in ends:
        p, batch, z = players(), random_batch(), torch.randn(4, 8, 3)
        out = first_hop(p.model, batch["mel"], batch["image"], z[:, :4])
        out |= second_hop(p.model, out, z[:, 4:])
        out[name].square().sum().backward()
        assert silent(getattr(p.model, decoder)) == []


# ---- losses

def log_sigmoid(x): return math.log(1 / (1 + math.exp(-x)))


def test_losses_by_hand():
    "Every pair gets a logit of its own; the formulas are written out with logarithms."
    pairs = {(1, 1): 1.5, (1, 2): -0.5, (2, 1): 0.3, (1, 3): -2.0, (3, 1): 0.8}  # 1 real, 2 wrong, 3 fake: (picture, sound)
    flat = lambda channels, level: torch.full((2, channels, 4, 4), level / 10)
    def D(image, mel): return torch.full((2,), pairs[tuple(round(10 * x.mean().item()) for x in (image, mel))])
    batch = dict(image=flat(3, 1), mel=flat(1, 1), wrong_image=flat(3, 2), wrong_mel=flat(1, 2))
    yes, no = (lambda *k: log_sigmoid(pairs[k])), (lambda *k: log_sigmoid(-pairs[k]))
    L_Dw = yes(1, 1) + (no(1, 2) + no(2, 1)) / 2
    L_Df = yes(1, 1) + (no(1, 3) + no(3, 1)) / 2
    d = discriminator_losses(D, batch, flat(3, 3), flat(1, 3))
    assert d["D"].item() == pytest.approx(-(L_Dw + L_Df), abs=1e-5)
    assert discriminator_losses(D, batch, flat(3, 3), flat(1, 3), CMCGANLoss(lambda_wrong=0))["D"].item() == pytest.approx(-L_Df, abs=1e-5)
    out = dict(AV=flat(3, 3), VA=flat(1, 3), AVA=flat(1, 2), VVA=flat(1, 4), VAV=flat(3, -3), AAV=flat(3, 1))
    g = generator_losses(D, out, batch, CMCGANLoss(lambda_gan=2., lambda_cycle=7.))
    assert g["G"].item() == pytest.approx(-2 * (yes(1, 3) + yes(3, 1)) + 7 * (0.1 + 0.3 + 0.4 + 0), abs=1e-5)
    assert {k: round(v.item(), 4) for k, v in g.items() if k.startswith("l1")} == dict(l1_AVA=.1, l1_VVA=.3, l1_VAV=.4, l1_AAV=0)


def test_losses_are_finite_for_a_discriminator_that_is_sure():
    batch, sure = random_batch(), lambda image, mel: torch.full((4,), 300.)
    d = discriminator_losses(sure, batch, batch["image"], batch["mel"])
    assert all(v.isfinite() for v in d.values())


# ---- one step

def test_every_update_reaches_all_of_its_own_and_nothing_else():
    p, batch = keep_gradients(players()), random_batch(noise=numbers(TINY))
    z = batch["noise"].unflatten(1, (-1, 3))
    update_D(p, batch, z[:, :4])
    assert silent(p.rivals["D"]) == [] and all(q.grad is None for q in p.model.parameters())
    p = keep_gradients(players())
    update_G(p, batch, z[:, 4:12])
    assert all(silent(net) == [] for net in p.model.networks.values()) and all(q.grad is None for q in p.rivals["D"].parameters())
    assert all(q.requires_grad for q in p.rivals["D"].parameters())


@pytest.mark.parametrize("K", [1, 3])
def test_a_step_is_one_update_of_D_and_K_of_G(K, monkeypatch):
    "Each with numbers of its own, and all of them used."
    cfg, used = replace(TINY, g_steps=K), []
    for name in ("update_D", "update_G"):
        def spy(p, batch, z, name=name, do=getattr(cmcgan, name)): used.append((name, z)); return do(p, batch, z)
        monkeypatch.setattr(cmcgan, name, spy)
    batch = random_batch(noise=numbers(cfg))
    losses = METHOD.step(players(cfg), batch)
    assert [name for name, _ in used] == ["update_D"] + K * ["update_G"]
    assert torch.equal(torch.cat([z for _, z in used], 1).flatten(1), batch["noise"])
    assert {"G", "D"} <= losses.keys() and all(v.ndim == 0 and v.isfinite() for v in losses.values())


def test_a_step_in_reduced_precision():
    "Losses are computed in float32, and are close to those of full precision."
    losses = []
    for context in (nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)):
        p = players()
        p.accelerator.autocast = context
        losses.append(METHOD.step(p, random_batch(noise=numbers(TINY))))
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses[1].values())
    assert all(abs(losses[0][k] - losses[1][k]) < 0.05 * losses[0][k].abs() + 0.02 for k in losses[0])


def test_a_step_draws_nothing_from_the_global_random_state():
    one, two = (players() for _ in range(2))
    batch = random_batch(noise=numbers(TINY))
    torch.manual_seed(1); a = METHOD.step(one, batch)
    torch.manual_seed(2); b = METHOD.step(two, batch)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_without_wrong_pairs_they_don_t_matter():
    cfg = METHOD.variants["no-wrong"](TINY)
    batch = random_batch(noise=numbers(cfg))
    other = batch | {k: random_batch(seed=5)[k] for k in ("wrong_mel", "wrong_image")}
    after = []
    for b in (batch, other):
        p = players(cfg)
        for m in p.rivals["D"].modules():
            if isinstance(m, torch.nn.BatchNorm2d): m.eval()
        METHOD.step(p, b)
        after.append([q.detach().clone() for q in p.rivals["D"].parameters()])
    assert all(torch.equal(x, y) for x, y in zip(*after))


def test_wrong_pairs_are_of_another_instrument(tiny_data):
    "In the batches that the training loop gives to `step`, over several epochs."
    from itertools import islice
    from cargan.data import PairDataset
    from cargan.training import batches, make_accelerator, open_pairs
    cfg = replace(TINY, data=tiny_data/"data.npz", batch_size=13, device="cpu")
    pairs = open_pairs(cfg, "cpu")
    stream = batches(cfg, METHOD, PairDataset(pairs.bundle, 32), pairs.train_idx, {}, make_accelerator(cfg), 0)
    some, partners = list(islice(stream, 12)), []
    for batch in some:
        assert (batch["wrong_label"] != batch["label"]).all()
        assert batch["noise"].shape == (13, numbers(cfg)) and batch["wrong_image"].shape == batch["image"].shape
        partners += list(zip(batch["label"].tolist(), batch["wrong_label"].tolist()))
    assert len(set(partners)) > 60  # many kinds of wrong pairs, not one partner for each instrument


# ---- bad options

@pytest.mark.parametrize("options, says", [(["--g-steps", "0"], "g_steps=0"), (["--g-steps", "2", "--accumulate", "2"], "set one of them to 1"), (["--z", "0"], "z is 0"),
                                           (["--feature", "-1"], "feature is -1"), (["--size", "48"], "power of two"), (["--loss.lambda-cycle", "nan"], "lambda_cycle=nan"),
                                           (["--loss.lambda-wrong", "-1"], "lambda_wrong=-1"), (["--base", "0"], "base is 0"), (["--init-std", "0"], "init_std is 0")], ids=" ".join)
def test_bad_options(options, says, tiny_data, tmp_path, capfd):
    assert main(["train", "--method", "cmcgan", "--data", f"{tiny_data}/data.npz", "--out", str(tmp_path/"run"), *ANY, *options]) == 2
    err = capfd.readouterr().err
    assert says in err and len(err.splitlines()) == 1
    assert not (tmp_path/"run").exists()


# ---- sounds from pictures

@pytest.fixture
def picture(tmp_path):
    "A function that writes a random picture."
    def write(name: str, size=(50, 40), **options) -> str:
        path = tmp_path/"in"/name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (*size, 3), np.uint8)).save(path, **options)
        return str(path)
    return write


def test_sound_writes_a_wav_for_each_picture(method_run, picture, tmp_path, capfd):
    files = [picture("a/violin.png"), picture("b/violin.jpg"), picture("tuba.png", (32, 32))]
    argv = ["sound", "--run", str(method_run("cmcgan")), "--out", str(tmp_path/"out"), *files]
    assert main(argv) == 0
    entries, said = json.loads((tmp_path/"out"/"sound.json").read_text()), capfd.readouterr()
    assert [e["input"] for e in entries] == files and all(f in said.out for f in files) and said.err == ""
    assert [e["file"] for e in entries] == ["violin.wav", "violin_2.wav", "tuba.wav"]
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == ["sound.json", "tuba.wav", "violin.wav", "violin_2.wav"]
    for e in entries:
        wave, rate = soundfile.read(tmp_path/"out"/e["file"])
        assert (wave.shape, rate) == ((22050,), 44100) and 0 < np.abs(wave).max() <= 1
        assert 0 < e["probability"] <= 1 and (e["label"] is not None) == e["heard"]
    before = {p.name: p.read_bytes() for p in (tmp_path/"out").iterdir()}
    assert main(argv) == 0
    assert {p.name: p.read_bytes() for p in (tmp_path/"out").iterdir()} == before  # the same sounds again


BAD = {
    "no picture": lambda s: [],
    "missing picture": lambda s: [s.tmp/"no.png"],
    "a folder": lambda s: [s.tmp],
    "empty picture": lambda s: [s.write("a.png", b"")],
    "text for a picture": lambda s: [s.write("a.png", b"this is no picture" * 20)],
    "the second of two is bad": lambda s: [s.good, s.write("a.jpg", Path(s.good).read_bytes()[:200])],
    "unknown device": lambda s: [s.good, "--device", "abacus"],
    "unknown fit": lambda s: [s.good, "--fit", "stretch"],
    "missing run": lambda s: [s.good, "--run", s.tmp/"nowhere"],
    "a run that only draws": lambda s: [s.good, "--run", ROOT/"tests"/"old_run"/"run"],
    "a file in the way": lambda s: [s.good, "--out", s.write("file", b"a file")/"out"],
    "a folder where a sound belongs": lambda s: [s.good, "--out", s.write("mine/good.wav/letter.txt", b"dear").parent.parent],
    "no ear": lambda s: [s.good, "--run", s.without("audio_classifier.safetensors")],
    "no checkpoint": lambda s: [s.good, "--run", s.without("checkpoints")],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sound_commands(case, method_run, picture, tmp_path, capfd):
    "One line, exit code 2, and nothing written."
    def write(name, content):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_bytes(content)
        return tmp_path/name
    def without(name):
        run = shutil.copytree(method_run("cmcgan"), tmp_path/"run")
        shutil.rmtree(run/name) if (run/name).is_dir() else (run/name).unlink()
        return run
    scene = SimpleNamespace(tmp=tmp_path, good=picture("good.png"), write=write, without=without)
    words = [str(w) for w in BAD[case](scene)]
    argv = ["sound", *words]
    if "--run" not in words: argv += ["--run", str(method_run("cmcgan"))]
    if "--out" not in words: argv += ["--out", str(tmp_path/"out")]
    before = sorted(map(str, tmp_path.rglob("*")))
    assert main(argv) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1 and err.startswith("cargan sound: ") and "Traceback" not in err
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_the_command_knows_no_method():
    assert not re.search("cmcgan|s2ic|find_method|METHODS", (ROOT/"cargan"/"sonify.py").read_text(), re.I)


def test_loud_pictures_stay_within_a_file():
    from cargan.sonify import listen
    ear = lambda lms_db: torch.zeros(len(lms_db), 14)
    class Ear(torch.nn.Module):
        def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.zeros(1))
        def forward(self, lms_db): return dict(instrument=self.w + ear(lms_db))
    wave = np.sin(np.arange(22050) / 10)
    assert np.abs(listen(Ear(), 5 * wave).wave).max() == pytest.approx(1, abs=1e-4)
    assert np.allclose(listen(Ear(), 0.1 * wave).wave, 0.1 * wave, atol=1e-6)


def test_a_network_s_picture_becomes_a_sound_again():
    "Real sounds, as pictures of each size, and back: at most so many dB are lost."
    from cargan.bundle import open_bundle
    from cargan.lms import input_to_lms, lms_to_input
    lms_db = torch.tensor(np.array(open_bundle(ROOT/"tests"/"old_run"/"pairs.npz").lms_db)).float().clamp(-100, 50)
    lost = {size: (input_to_lms(lms_to_input(lms_db, size)) - lms_db).abs().mean().item() for size in (32, 64, 128, 256)}
    assert lost[32] < 7 and lost[64] < 5 and lost[128] < 0.5 and lost[256] < 1.5
    with pytest.raises(CarganError, match="B x 1 x size x size"): input_to_lms(torch.zeros(3, 64, 64))

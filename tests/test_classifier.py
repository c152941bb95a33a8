"What the classifier notebook's reader need not see: determinism across threads, wrong files, unknown noises, real pictures."
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cargan import disguise, hearing, looking
from cargan.core import INSTRUMENTS, CarganError, save_weights
from cargan.lms import log_mel


def stripes(n=78, size=32, seed=0):
    "Thirteen kinds of picture and of spectrogram, told apart by the place of a bright band."
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 13
    image = rng.integers(0, 60, (n, size, size, 3)).astype(np.uint8)
    lms = rng.normal(-60, 3, (n, 128, 44))
    for i, k in enumerate(label):
        image[i, 2 * k + 3:2 * k + 6, :, k % 3] = 250
        lms[i, 9 * k + 4:9 * k + 8] += 50
    return SimpleNamespace(image=image, label=label.astype(np.int64), lms_db=lms.astype(np.float16), instruments=np.array(INSTRUMENTS), factors={})


DATA, TRAIN, VALID = stripes(), np.arange(52), np.arange(52, 78)
QUICK = looking.ClassifierConfig(size=32, epochs=1, batch_size=26)


@pytest.mark.parametrize("arch", ["small", "compact"])
@pytest.mark.parametrize("size", [32, 48, 64, 256])
def test_any_size_and_gradient_to_every_pixel(arch, size):
    C = looking.freeze(looking.ImageClassifier(looking.ClassifierConfig(arch=arch)))
    x = torch.rand(1, 3, size, size, requires_grad=True)
    torch.nn.functional.cross_entropy(C(x), torch.tensor([3])).backward()
    assert (x.grad != 0).float().mean() > 0.99
    assert all(p.grad is None for p in C.parameters())


def test_overfits_stripes():
    _, report = looking.train_classifier(replace(QUICK, epochs=30, shift=0., jitter=0.1), DATA, TRAIN, VALID, progress=False)
    assert report["accuracy"] > 0.8
    assert np.sum(report["confusion"]) == len(VALID) and report["classes"] == list(INSTRUMENTS)


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_same_seed_same_weights(kind):
    def train(seed):
        torch.manual_seed(np.random.randint(1000))  # the caller's state must not matter
        if kind == "image": return looking.train_classifier(replace(QUICK, seed=seed), DATA, TRAIN, VALID, progress=False)[0]
        return hearing.train_audio_classifier(hearing.AudioClassifierConfig(epochs=1, batch_size=26, seed=seed), DATA, TRAIN, VALID, progress=False)[0]
    a, b, other = (list(train(seed).state_dict().values()) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert not all(torch.equal(x, y) for x, y in zip(a, other))


def test_the_callers_random_numbers_are_untouched():
    torch.manual_seed(2)
    before = torch.get_rng_state()
    looking.train_classifier(QUICK, DATA, TRAIN, VALID, progress=False)
    hearing.train_audio_classifier(hearing.AudioClassifierConfig(epochs=1, batch_size=26), DATA, TRAIN, VALID, progress=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_validation_pairs():
    for train, cfg in ((looking.train_classifier, QUICK), (hearing.train_audio_classifier, hearing.AudioClassifierConfig(epochs=1, batch_size=26))):
        model, report = train(cfg, DATA, TRAIN, np.arange(0), progress=False)
        assert report["n"] == 0 and not model.training


def test_pair_dataset_is_accepted():
    _, report = looking.train_classifier(QUICK, SimpleNamespace(bundle=DATA), TRAIN, VALID, progress=False)
    assert report["n_train"] == len(TRAIN)


def test_resnet_without_network_warns_and_trains(monkeypatch):
    def refused(*args, **kw): raise OSError("no route to host")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refused)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refused)
    with pytest.warns(UserWarning, match="less accurate"):
        _, report = looking.train_classifier(replace(QUICK, arch="resnet50"), DATA, TRAIN[:4], VALID[:2], progress=False)
    assert report["imagenet"] is False


def test_wrong_files(tmp_path):
    C, ear, path = looking.ImageClassifier(QUICK), hearing.AudioClassifier(), tmp_path/"w.safetensors"
    looking.save_classifier(path, ear)
    with pytest.raises(CarganError, match="AudioClassifier"): looking.load_classifier(path)
    looking.save_classifier(path, C)
    with pytest.raises(CarganError, match="ImageClassifier"): hearing.load_audio_classifier(path)
    save_weights(path, C.state_dict(), kind="ImageClassifier", config={**asdict(QUICK), "colour": 3})
    with pytest.raises(CarganError, match="train it again"): looking.load_classifier(path)
    save_weights(path, C.state_dict(), kind="ImageClassifier", config={**asdict(QUICK), "arch": "vgg"})
    with pytest.raises(CarganError, match="unknown"): looking.load_classifier(path)
    save_weights(path, C.state_dict())
    with pytest.raises(CarganError): looking.load_classifier(path)
    with pytest.raises(CarganError, match="does not exist"): looking.load_classifier(tmp_path/"no.safetensors")
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(CarganError, match="damaged"): looking.load_classifier(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04K\x01."])
def test_wrong_resnet_file(tmp_path, content):
    (tmp_path/"r.pth").write_bytes(content)
    with pytest.raises(CarganError): looking.imagenet_weights(looking.resnet50_net(13), str(tmp_path/"r.pth"))


def test_bad_configuration_and_labels():
    for bad in (dict(arch="vgg"), dict(epochs=0), dict(size=8), dict(lr=-1)):
        with pytest.raises(CarganError): looking.ClassifierConfig(**bad)
    for bad in (dict(nothing=1.5), dict(width=0)):
        with pytest.raises(CarganError): hearing.AudioClassifierConfig(**bad)
    with pytest.raises(CarganError, match="set n_classes"): looking.train_classifier(replace(QUICK, n_classes=5), DATA, TRAIN, VALID, progress=False)
    with pytest.raises(CarganError, match="too few"): looking.train_classifier(QUICK, DATA, TRAIN[:1], VALID, progress=False)


@pytest.fixture(scope="module")
def ear():
    "A small audio classifier that has heard some rendered recordings."
    from cargan.sound import render_recording
    heard, label = [], []
    for k, name in enumerate(INSTRUMENTS):
        for take in range(3):
            wave, _ = render_recording(name, take, take)
            heard.append(log_mel(wave[:6 * 22050].reshape(6, -1)).numpy()); label += [k] * 6
    data = SimpleNamespace(lms_db=np.concatenate(heard), label=np.array(label), factors={})
    cfg = hearing.AudioClassifierConfig(epochs=30, batch_size=32)
    return hearing.train_audio_classifier(cfg, data, np.arange(len(label)), np.arange(0), progress=False)[0]


def fan(rng, n):  # a band of noise that beats slowly, over rumble
    t = np.arange(22050) / 44100
    return np.stack([disguise._coloured(22050, -0.8, rng) * (1 + 0.4 * np.sin(2 * np.pi * rng.uniform(2, 8) * t)) for _ in range(n)])


def band(rng, n):  # noise around one frequency, an octave or more wide
    f = np.maximum(np.fft.rfftfreq(22050, 1 / 44100), 1)
    X = np.fft.rfft(rng.standard_normal((n, 22050))) * np.exp(-0.5 * (np.log2(f / rng.uniform(300, 3000, (n, 1))) / 0.8) ** 2)
    x = np.fft.irfft(X, 22050)
    return x / x.std(1, keepdims=True)


@pytest.mark.parametrize("kind", ["silence", "white", "pink", "blue", "violet", "fan", "band"])
@pytest.mark.parametrize("dbfs", [-60, -30, -10])
def test_noise_is_nothing(ear, kind, dbfs):
    rng = np.random.default_rng(5)
    if kind == "silence": x = np.zeros((8, 22050))
    elif kind in ("fan", "band"): x = dict(fan=fan, band=band)[kind](rng, 8)
    else: x = np.stack([disguise._coloured(22050, dict(white=0, pink=-0.5, blue=0.5, violet=1)[kind], rng) for _ in range(8)])
    _, p = hearing.predict_label(ear, log_mel((10 ** (dbfs / 20) * x).astype(np.float32)))
    assert (p.argmax(-1) == p.shape[-1] - 1).float().mean() > 0.5  # what generation goes by: "nothing" before every instrument


@pytest.mark.parametrize("gain", [-20, -10, 6])
def test_level_does_not_matter(ear, gain):
    lms = torch.randn(4, 128, 44) * 5 + torch.linspace(20, -30, 128)[:, None]
    assert torch.allclose(hearing.predict_label(ear, lms + gain)[1], hearing.predict_label(ear, lms)[1], atol=1e-3)


def test_real_pictures(real_data):
    "The small classifier learns the real frames."
    z = np.load(real_data/"suburmp_real"/"pairs.npz", allow_pickle=False)
    data = SimpleNamespace(image=z["image"], label=z["label"], instruments=z["instruments"])
    order = np.random.default_rng(0).permutation(len(z["label"]))
    _, report = looking.train_classifier(looking.ClassifierConfig(size=32, epochs=6), data, order[120:], order[:120], progress=False)
    assert report["accuracy"] > 0.8

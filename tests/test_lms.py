"The log-mel spectrogram and the sound reader: properties, agreement with librosa on real recordings, and every way a file can be bad."
import math, subprocess, sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from cargan.audio import load_audio
from cargan.core import CarganError
from cargan.lms import (LMSConfig, cut_windows, denormalize_lms, griffin_lim, jet_to_values, lms_to_input, lms_to_jet, log_mel,
                        mel_bank, normalize_lms)

CFG = LMSConfig()
quick = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "Small tensors gain nothing from threads, and lose much when several test processes share the cores."
    n = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def chord(seconds=0.5, rate=44100, hz=440., partials=6):
    t = np.arange(round(seconds * rate)) / rate
    return (0.3 * sum(np.sin(2 * np.pi * hz * k * t) / k ** 1.5 for k in range(1, partials + 1))).astype(np.float32)

def noise(seed, *shape, level=0.1): return (np.random.default_rng(seed).standard_normal(shape) * level).astype(np.float32)

def by_librosa(wave, cfg=CFG, **kwargs):
    import librosa
    kwargs = dict(htk=True, norm=None) | kwargs
    S = librosa.feature.melspectrogram(y=wave, sr=cfg.sample_rate, n_fft=cfg.n_fft, hop_length=cfg.hop, n_mels=cfg.n_mels, fmin=cfg.f_min,
                                       fmax=cfg.f_max, pad_mode="reflect", **kwargs)
    return librosa.power_to_db(S, amin=cfg.amin, top_db=None)

def pitch(wave, rate=44100):
    power = abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 19))
    return power.argmax() * rate / (1 << 19)


# ---------------------------------------------------------------- log_mel
@quick
@given(st.integers(0, 10 ** 6), st.lists(st.integers(1, 3), max_size=3))
def test_batch_is_the_loop(seed, lead):
    x = noise(seed, *lead, 22050)
    got = log_mel(x)
    assert got.shape == (*lead, 128, 44) and got.dtype == torch.float32
    want = torch.stack([log_mel(w) for w in x.reshape(-1, 22050)]).reshape(got.shape)
    torch.testing.assert_close(got, want, atol=2e-3, rtol=0)

def test_batch_larger_than_one_slice_and_empty():
    x = noise(0, 70, 22050)
    torch.testing.assert_close(log_mel(x)[[0, 35, 69]], log_mel(x[[0, 35, 69]]), atol=2e-3, rtol=0)
    assert log_mel(np.zeros((0, 22050), np.float32)).shape == (0, 128, 44)

@quick
@given(st.integers(0, 10 ** 6), st.floats(1e-3, 4.))
def test_level_shifts_in_decibels(seed, gain):
    x = noise(seed, 22050)
    a, b = log_mel(x), log_mel(x * np.float32(gain))
    heard = (a > -90) & (b > -90)
    torch.testing.assert_close((b - a)[heard], torch.full_like(a, 20 * math.log10(gain))[heard], atol=1e-2, rtol=0)

def test_twice_the_amplitude_is_six_decibels():
    x = chord()
    shift = (log_mel(2 * x) - log_mel(x))[log_mel(x) > -80]
    assert abs(shift - 6.0206).max() < 0.01

@quick
@given(st.integers(1025, 60000), st.sampled_from([0., 1e-20, 1e-6, 1., 1e6]), st.integers(0, 99))
def test_finite_and_sized_for_any_length_and_level(n, level, seed):
    got = log_mel(noise(seed, n, level=level))
    assert got.shape == (128, n // 512 + 1) and got.isfinite().all() and got.min() >= -100 - 1e-4

@quick
@given(st.sampled_from([8000, 16000, 22050, 44100, 48000]), st.sampled_from([256, 512, 1000, 2048]), st.integers(1, 4), st.integers(8, 160), st.booleans(),
       st.booleans(), st.integers(0, 99))
@pytest.mark.filterwarnings("ignore:Empty filters")
def test_any_recipe_agrees_with_librosa(rate, n_fft, overlap, n_mels, htk, norm, seed):
    cfg = LMSConfig(sample_rate=rate, n_fft=n_fft, hop=n_fft // overlap, n_mels=n_mels, f_min=30., f_max=min(8000., rate / 2), htk=htk, norm=norm)
    x = noise(seed, cfg.samples)
    want = by_librosa(x, cfg, htk=htk, norm="slaney" if norm else None)
    assert want.shape == (n_mels, cfg.frames)
    assert abs(log_mel(x, cfg).numpy() - want)[want > -80].max() < 0.05

def test_silence_is_the_floor_and_can_be_told_from_sound():
    assert (log_mel(np.zeros(22050, np.float32)) == -100).all()
    assert log_mel(noise(0, 22050, level=1e-4)).min() > -100

def test_read_only_arrays_pass_silently(recwarn):
    x = chord(); x.flags.writeable = False
    log_mel(x), lms_to_input(np.broadcast_to(np.float32(0), (1, 128, 44)), 64)
    assert not recwarn.list and cut_windows(x).flags.writeable

def test_gradient_is_right_and_finite_even_for_silence():
    cfg = LMSConfig(sample_rate=1000, n_fft=32, hop=16, n_mels=4, f_max=500., seconds=0.05)
    x = torch.randn(2, cfg.samples, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: log_mel(w, cfg), x, atol=1e-4)
    x = torch.zeros(22050, requires_grad=True)
    log_mel(x).sum().backward()
    assert x.grad.isfinite().all()

def test_bank_is_shared_and_survives_inference_mode():
    mel_bank.cache_clear()
    with torch.inference_mode(): log_mel(torch.zeros(22050))
    x = torch.randn(22050, requires_grad=True)
    log_mel(x).mean().backward()
    assert x.grad.abs().sum() > 0 and mel_bank.cache_info().misses == 1

def test_autocast_and_double_precision():
    x = torch.tensor(chord())
    with torch.autocast("cpu", dtype=torch.bfloat16): half = log_mel(x)
    torch.testing.assert_close(half, log_mel(x))
    assert log_mel(x.double()).dtype == torch.float64
    assert abs(log_mel(x.double()) - log_mel(x))[log_mel(x) > -60].max() < 0.05  # rounding shows 110 dB below the loudest partial

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_agrees_with_cpu():
    x = torch.tensor(np.stack([chord(), noise(0, 22050)]))
    a, b = log_mel(x), log_mel(x.cuda()).cpu()
    assert abs(a - b)[a > -80].max() < 0.05

@pytest.mark.parametrize("wave,why", [(np.zeros(1024, np.float32), "too short"), (np.zeros(0, np.float32), "too short"), (np.float32(1), "too short"),
                                      (np.zeros(22050, np.int16), "divide"), (torch.zeros(22050, dtype=torch.complex64), "expected floats")])
def test_bad_waves(wave, why):
    with pytest.raises(CarganError, match=why): log_mel(wave)

@pytest.mark.parametrize("change", [dict(hop=0), dict(hop=4096), dict(n_fft=0), dict(n_mels=0), dict(f_max=30000.), dict(f_min=9000.), dict(f_min=-1.),
                                    dict(amin=0.), dict(db_min=60.), dict(seconds=0.), dict(seconds=float("nan")), dict(sample_rate=-1), dict(f_max=float("nan"))])
def test_bad_recipes(change):
    with pytest.raises(CarganError): replace(CFG, **change)


# ---------------------------------------------------------------- real sounds
def real_notes(real_data, n):
    files = sorted(f for f in (real_data/"real_notes").glob("*/*") if f.suffix.lower() in (".wav", ".flac", ".ogg", ".mp3"))
    if not files: pytest.skip("no real recordings beside the project")
    return files[::max(1, len(files) // n)]

def test_real_recordings_agree_with_librosa(real_data):
    worst, checked = 0., 0
    for path in real_notes(real_data, 40):
        x = cut_windows(load_audio(path)[:44100 * 2])
        got = log_mel(x).numpy()
        want = np.stack([by_librosa(w) for w in x])
        worst, checked = max(worst, abs(got - want)[want > -80].max(initial=0)), checked + (want > -80).sum()
    assert checked > 100_000 and worst < 0.05, worst

def test_released_chunks_give_the_published_spectrograms(real_data):
    # S2IC's files: librosa's defaults at 22,050 Hz. The uppermost bands lie in the resampler's own slope, which was another resampler's then.
    cfg = LMSConfig(sample_rate=22050, f_max=11025., htk=False, norm=True)
    files = sorted((real_data/"suburmp_chunks"/"lms").rglob("*.npz"))
    if not files: pytest.skip("no released chunks beside the project")
    for path in files:
        want = np.load(path)["arr_0"]
        wave = real_data/"suburmp_chunks"/"chunk"/path.parent.relative_to(real_data/"suburmp_chunks"/"lms")/f"{path.stem}.wav"
        got = log_mel(load_audio(wave, 22050), cfg).numpy()
        assert got.shape == want.shape == (128, 22)
        assert np.median(abs(got - want)) < 1e-3 and abs(got - want)[:120].max() < 0.05


# ---------------------------------------------------------------- windows, network input, jet, and back
@quick
@given(st.integers(1, 200_000), st.sampled_from([None, 0.1, 0.25, 0.5, 0.8]))
def test_windows_cover_the_sound(n, hop):
    wave = np.arange(1, n + 1, dtype=np.float32)
    cut, step = cut_windows(wave, hop_seconds=hop), round((hop or 0.5) * 44100)
    assert cut.ndim == 2 and cut.shape[1] == 22050 and len(cut) >= 1 and cut.flags.c_contiguous
    for i, w in enumerate(cut):
        own = wave[i * step:i * step + 22050]
        assert len(own) >= 11025 or len(cut) == 1
        np.testing.assert_array_equal(w, np.pad(own, (0, 22050 - len(own))))
    if n >= 22050: assert n - ((len(cut) - 1) * step + 22050) < max(11025, step - 11025)

@pytest.mark.parametrize("wave,hop", [(np.zeros((2, 9)), None), (np.zeros(0), None), (np.zeros(9), 0.), (np.zeros(9), -1.)])
def test_bad_windows(wave, hop):
    with pytest.raises(CarganError): cut_windows(wave, hop_seconds=hop)

@quick
@given(st.integers(0, 999), st.sampled_from([32, 64, 128, 256]), st.sampled_from([np.float16, np.float32, np.float64]))
def test_network_input(seed, size, dtype):
    x = (np.random.default_rng(seed).uniform(-120, 60, (2, 128, 44))).astype(dtype)
    y = lms_to_input(x, size)
    assert y.shape == (2, 1, size, size) and y.min() >= -1 and y.max() <= 1
    torch.testing.assert_close(denormalize_lms(normalize_lms(x)).double(), torch.tensor(x).double().clamp(-100, 50), atol=1e-3, rtol=0)

@quick
@given(st.integers(0, 999), st.sampled_from([64, 128]))
def test_jet_inverts(seed, size):
    x = torch.tensor(np.random.default_rng(seed).uniform(-90, 30, (1, 128, 44)), dtype=torch.float32)
    rgb = ((lms_to_jet(x, size)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    back = jet_to_values(rgb)
    plain = lms_to_input(x, size, LMSConfig(db_min=-90, db_max=30))[0, 0].T
    want = (plain - plain.min()) / (plain.max() - plain.min())
    assert abs(back - want.numpy()).max() < 0.012 and back.dtype == np.float32

def test_jet_orientation_and_silence():
    x = torch.full((1, 128, 44), -60.); x[0, 10, :22] = 30.
    value = jet_to_values(((lms_to_jet(x, 128)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    assert value[20, 10] > 0.9 and value[100, 10] < 0.1 and value[20, 100] < 0.1  # frequency to the right, time downwards
    assert lms_to_jet(torch.full((1, 128, 44), -100.), 64).isfinite().all()

def test_bad_pictures():
    with pytest.raises(CarganError): jet_to_values(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(CarganError): jet_to_values(np.zeros((4, 4), np.uint8))
    with pytest.raises(CarganError): lms_to_input(torch.zeros(128, 44), 64)

def test_jet_survives_jpeg():
    import io
    from PIL import Image
    smooth = torch.nn.functional.interpolate(torch.randn(1, 1, 8, 4, generator=torch.Generator().manual_seed(0)), (128, 44), mode="bilinear")[0] * 20
    rgb = ((lms_to_jet(smooth, 256)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    f = io.BytesIO(); Image.fromarray(rgb).save(f, "JPEG", quality=95)
    assert abs(jet_to_values(np.asarray(Image.open(f))) - jet_to_values(rgb)).mean() < 0.02

def test_griffin_lim_keeps_pitch_and_spectrum():
    x = chord(hz=330.)
    y = griffin_lim(log_mel(x))
    assert y.shape == x.shape and y.dtype == np.float32 and np.array_equal(y, griffin_lim(log_mel(x)))
    assert abs(1200 * math.log2(pitch(y) / 330)) < 50
    heard = log_mel(x) > -20
    assert (log_mel(y) - log_mel(x)).abs()[heard].median() < 2
    assert abs(griffin_lim(torch.full((128, 44), -100.))).max() < 1e-3  # silence stays silent

def test_importing_is_light(root):
    "`librosa` takes seconds to import, and only notebooks and tests need it."
    code = "import sys, cargan.lms as l, numpy as np; l.log_mel(np.zeros(22050, 'f')); sys.exit('librosa' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0

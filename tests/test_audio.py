"Sound files as people have them: every format, every mix of channels, every way a file can be broken, and an hour in pieces."
import io, math, os, struct, warnings
from dataclasses import replace

import av
import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import HealthCheck, given, settings, strategies as st

from cargan import audio
from cargan.audio import load_audio, open_sound, stream, to_mono
from cargan.core import CarganError
from cargan.lms import LMSConfig, cut_windows, log_mel, stream_windows

quick = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
many = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FORMATS = dict(wav=1e-3, flac=1e-3, ogg=0.1, mp3=0.1)  # error allowed, relative to the signal
CODED = {"a.m4a": ("aac", 44100), "a.aac": ("aac", 44100), "a.mp4": ("aac", 48000), "a.mov": ("aac", 44100), "a.mka": ("aac", 32000),
         "a.opus": ("libopus", 48000), "a.webm": ("libopus", 48000)}  # what libsndfile cannot read, or not in this form


def chord(seconds=0.5, rate=44100, hz=440., partials=6):
    t = np.arange(round(seconds * rate)) / rate
    return (0.3 * sum(np.sin(2 * np.pi * hz * k * t) / k ** 1.5 for k in range(1, partials + 1))).astype(np.float32)

def noise(seed, *shape, level=0.1): return (np.random.default_rng(seed).standard_normal(shape) * level).astype(np.float32)

def level(x): return 10 * np.log10(np.mean(np.square(x, dtype=np.float64)) + 1e-20)  # dB

def pitch(wave, rate=44100):
    power = abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 19))
    return power.argmax() * rate / (1 << 19)

def encode(path, codec, rate, x, picture=False, **options):
    "A sound file (or a film) as FFmpeg writes it."
    with av.open(str(path), "w", options=options) as film:
        v = film.add_stream("mpeg4", rate=5) if picture else None
        a = film.add_stream(codec, rate=rate, layout="mono")
        for k in range(round(5 * len(x) / 44100) if picture else 0):
            if k == 0: v.width = v.height = 64; v.pix_fmt = "yuv420p"
            film.mux(v.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 9 * k, np.uint8), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(soxr.resample(x, 44100, rate)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        film.mux(a.encode(frame))
        for s in (a, v) if picture else (a,): film.mux(s.encode(None))
    return path

def write(path, *columns, subtype="FLOAT"):
    sf.write(path, np.stack(columns, 1), 44100, subtype=subtype)
    return path

def note_of(path) -> str | None:
    "What is said of a file, as a note and as one warning."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        note = open_sound(path).note
    assert [str(w.message) for w in said] == ([f"sound file {path}: {note}"] if note else [])
    return note


# ---------------------------------------------------------------- formats
@pytest.mark.parametrize("ext", FORMATS)
@quick
@given(st.integers(1, 2), st.sampled_from([8000, 16000, 22050, 32000, 44100, 48000]), st.floats(0.2, 1.5), st.floats(150., 1500.))
def test_formats_rates_and_channels(tmp_path, ext, channels, rate, seconds, hz):
    x = chord(seconds, rate, hz, partials=1)
    path = tmp_path/f"a.{ext}"
    sf.write(path, np.stack([x] * channels, 1), rate)
    y = load_audio(path)
    assert note_of(path) is None
    assert y.dtype == np.float32 and y.ndim == 1 and np.isfinite(y).all()
    assert abs(len(y) - seconds * 44100) <= 4
    assert abs(1200 * math.log2(pitch(y[:int(seconds * 44100)]) / hz)) < 10  # cents
    assert abs(level(y) - level(x)) < 0.6

@pytest.mark.parametrize("ext,eps", FORMATS.items())
def test_round_trip(tmp_path, ext, eps):
    x = chord(1.)
    sf.write(tmp_path/f"a.{ext}", np.stack([x, x], 1), 44100)
    y = load_audio(tmp_path/f"a.{ext}")
    assert y.shape == x.shape
    assert np.sqrt(((x - y) ** 2).mean() / (x ** 2).mean()) < eps

@pytest.mark.parametrize("name, picture", [*((name, False) for name in CODED), ("a.mp4", True), ("a.mov", True)])
def test_what_only_ffmpeg_reads(tmp_path, name, picture):
    x = chord(2.)
    path = encode(tmp_path/name, *CODED[name], x, picture)
    y = load_audio(path)
    assert note_of(path) is None
    assert abs(len(y) - len(x)) < 0.1 * 44100
    assert abs(1200 * math.log2(pitch(y) / 440)) < 5 and abs(level(y[4410:-8820]) - level(x[4410:-8820])) < 0.3

def test_the_name_of_a_file_says_nothing(tmp_path):
    encode(tmp_path/"a.m4a", "aac", 44100, chord(1.)).rename(tmp_path/"a.wav")
    assert len(load_audio(tmp_path/"a.wav")) > 44000
    sf.write(tmp_path/"b.wav", chord(1.), 44100); (tmp_path/"b.wav").rename(tmp_path/"concat:b")
    assert len(load_audio(tmp_path/"concat:b")) == 44100

def test_a_film_without_sound(tmp_path):
    with av.open(str(tmp_path/"a.mp4"), "w") as film:
        v = film.add_stream("mpeg4", rate=5); v.width = v.height = 64; v.pix_fmt = "yuv420p"
        for _ in range(5): film.mux(v.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        film.mux(v.encode(None))
    with pytest.raises(CarganError, match="a.mp4 has no sound"): load_audio(tmp_path/"a.mp4")

@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile secret.wav\n",
                                  "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"])
def test_a_play_list_leads_nowhere(tmp_path, text):
    sf.write(tmp_path/"secret.wav", chord(1.), 44100)
    for name in ("a.m3u8", "a.mp3", "a.ffconcat"):
        (tmp_path/name).write_text(text)
        with pytest.raises(CarganError, match="cannot read"): load_audio(tmp_path/name)


# ---------------------------------------------------------------- channels, offsets, full scale
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_sample_formats(tmp_path, subtype, channels):
    x = chord()
    y = load_audio(write(tmp_path/"a.wav", *[x] * channels, subtype=subtype))
    assert y.shape == x.shape and abs(x - y).max() < 0.05

LAYOUTS = {"stereo": lambda x: [x, x], "one wire turned": lambda x: [x, -x], "left": lambda x: [x, 0 * x], "right": lambda x: [0 * x, x],
           "centre of 5.1": lambda x: [0 * x, 0 * x, x, 0 * x, 0 * x, 0 * x], "six times": lambda x: [x] * 6, "three turned": lambda x: [x, -x, x, -x, -x, x]}

@pytest.mark.parametrize("how", LAYOUTS)
def test_one_sound_in_any_channels_keeps_its_level(tmp_path, how):
    x = chord()
    y, mono = load_audio(write(tmp_path/"a.wav", *LAYOUTS[how](x))), load_audio(write(tmp_path/"m.wav", x))
    np.testing.assert_allclose(abs(y), abs(mono), atol=1e-7)
    np.testing.assert_allclose(to_mono(np.stack(LAYOUTS[how](x)), 44100), y, atol=1e-7)
    if how == "stereo": np.testing.assert_array_equal(y, mono)

@quick
@given(st.integers(0, 999), st.integers(1, 8), st.floats(0, 1), st.floats(0, 1))
def test_no_mix_cancels_the_loudest(seed, channels, shared, silent):
    rng = np.random.default_rng(seed)
    x = (shared * rng.normal(size=(1, 9000)) * rng.choice([-1, 1], (channels, 1)) + rng.normal(size=(channels, 9000))) * rng.uniform(0, .05, (channels, 1))
    x = (x * (rng.random((channels, 1)) >= silent)).astype(np.float32)
    y = to_mono(x, 44100)
    assert abs(level(y) - max(map(level, x))) < 0.01

def test_both_players_are_heard(tmp_path):
    a, b = chord(), chord(hz=610.) * 0.5
    y = load_audio(write(tmp_path/"a.wav", a, b))
    assert np.corrcoef(y, a)[0, 1] > 0.8 and np.corrcoef(y, b)[0, 1] > 0.3

@pytest.mark.parametrize("offset", [0.01, 0.3, -0.6])
def test_an_offset_does_not_count(tmp_path, offset):
    x = chord(2.) * 0.5
    y = load_audio(write(tmp_path/"a.wav", x + offset, x - offset / 3))
    assert abs(level(y) - level(x)) < 0.01
    mine, clean = log_mel(y), log_mel(x)
    assert abs(mine - clean)[clean > -40].max() < 0.1 and mine[clean < -40].max() < -35

def test_silence_stays_silence(tmp_path):
    "A mean that isn't there in the rests is no offset; taken away, it would fill them."
    x = np.concatenate([chord(1.).clip(0), np.zeros(44100, np.float32), chord(1.).clip(0)])
    assert abs(x.mean()) > 0.02
    np.testing.assert_array_equal(load_audio(write(tmp_path/"a.wav", x)), x)

@quick
@given(st.integers(0, 999), st.floats(0.02, 2), st.floats(30, 2000))
def test_music_has_no_offset(seed, seconds, hz):
    "However a tone is cut, its samples stay as they are."
    x = (0.3 * np.sin(2 * np.pi * hz * np.arange(round(44100 * seconds)) / 44100 + seed)).astype(np.float32)
    np.testing.assert_array_equal(to_mono(x, 44100), x)

@pytest.mark.parametrize("gain", [1.2, 20, 32768])
def test_beyond_full_scale(tmp_path, gain):
    x = chord() / abs(chord()).max()
    y = load_audio(write(tmp_path/"a.wav", gain * x))
    np.testing.assert_allclose(y, x, atol=1e-5)
    quiet = load_audio(write(tmp_path/"a.wav", 0.9 * x))
    np.testing.assert_array_equal(quiet, np.float32(0.9 * x))

def test_long_and_short_files_are_mixed_alike(tmp_path, monkeypatch):
    x = noise(0, 2, 200_000) + 0.1
    write(tmp_path/"a.wav", *x)
    once = load_audio(tmp_path/"a.wav", 16000)
    monkeypatch.setattr(audio, "KEEP", 0)
    assert open_sound(tmp_path/"a.wav").kept is None
    np.testing.assert_array_equal(load_audio(tmp_path/"a.wav", 16000), once)

def test_resampled_spectrogram_is_close(tmp_path):
    x = noise(0, 44100)
    sf.write(tmp_path/"a.wav", soxr.resample(x, 44100, 96000), 96000, subtype="FLOAT")
    a, b = log_mel(x)[:, 2:-2], log_mel(load_audio(tmp_path/"a.wav"))[:, 2:-2]
    assert abs(a - b).max() < 0.5


# ---------------------------------------------------------------- broken files
def wav(frames=30000, **kwargs):
    f = io.BytesIO()
    sf.write(f, chord(frames / 44100)[:frames], 44100, **dict(format="WAV") | kwargs)
    return bytearray(f.getvalue())

def patched(data, at, fmt, value):
    struct.pack_into(fmt, data, at, value)
    return bytes(data)

def flac_total(total, **kwargs):  # the 36-bit number of samples in a FLAC header
    data = wav(format="FLAC", **kwargs)
    data[21] = data[21] & 0xf0 | total >> 32
    return patched(data, 22, ">I", total & 0xffffffff)

BAD = {
    "empty.wav": b"", "text.wav": b"a letter, not a sound\n" * 100, "text.mp3": b"a letter, not a sound\n" * 100, "zeros.mp3": bytes(50000), "raw.raw": b"hello",
    "riff.wav": b"RIFF", "header.wav": bytes(wav()[:44]), "stub.ogg": bytes(wav(format="OGG")[:500]), "stub.mp3": bytes(wav(format="MP3")[:60]),
    "no_samples.wav": bytes(wav(0)),
    "no_rate.wav": patched(wav(), 24, "<I", 0), "absurd_rate.wav": patched(wav(), 24, "<I", 2 ** 31 - 1), "slow_rate.wav": patched(wav(), 24, "<I", 3),
    "no_channels.wav": patched(wav(), 22, "<H", 0), "many_channels.wav": patched(wav(), 22, "<H", 65535),
    "picture.wav": b"\x89PNG\r\n\x1a\n" + bytes(1000)}

@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, name, capfd):
    (tmp_path/name).write_bytes(BAD[name])
    with pytest.raises(CarganError) as e: load_audio(tmp_path/name)
    assert name in str(e.value) and "\n" not in str(e.value)
    assert capfd.readouterr().err == ""  # C libraries would write here

@pytest.mark.parametrize("value,why", [(np.nan, "not finite"), (np.inf, "not finite"), (1e30, "scale it")])
def test_bad_samples(tmp_path, value, why):
    x = chord(); x[5000] = value
    with pytest.raises(CarganError, match=why): load_audio(write(tmp_path/"a.wav", x))

def test_missing_folder_and_too_short(tmp_path):
    with pytest.raises(CarganError, match="does not exist"): load_audio(tmp_path/"a.wav")
    with pytest.raises(CarganError, match="folder"): load_audio(tmp_path)
    sf.write(tmp_path/"one.wav", np.ones(1), 192000)
    with pytest.raises(CarganError, match="one sample"): load_audio(tmp_path/"one.wav", 8000)
    with pytest.raises(CarganError, match="positive"): load_audio(tmp_path/"one.wav", 0)

def whole_files(folder):
    "Three seconds in every format, as two encoders write them."
    x = chord(3.) + noise(0, 132_300, level=0.01)
    for ext in ("wav", "flac", "ogg", "mp3", "aiff"): sf.write(folder/f"a.{ext}", x, 44100)
    for name in ("rf64", "w64", "caf", "au"): sf.write(folder/f"a.{name}", x, 44100, format=name.upper())
    encode(folder/"fast.m4a", "aac", 44100, x, movflags="faststart")
    encode(folder/"lame.mp3", "libmp3lame", 44100, x); encode(folder/"ff.flac", "flac", 44100, x); encode(folder/"a.webm", "libopus", 48000, x)
    encode(folder/"a.opus", "libopus", 48000, x); encode(folder/"a.mka", "aac", 44100, x)
    return sorted(folder.iterdir())

@pytest.mark.parametrize("keep", [0.6, 0.85])
def test_of_a_truncated_file_the_rest_is_used_and_that_is_said(tmp_path, keep):
    "One rule for every format."
    for path in whole_files(tmp_path):
        assert note_of(path) is None, path.name
        path.write_bytes(path.read_bytes()[:int(keep * path.stat().st_size)])
        note = note_of(path)
        assert note and "end is missing" in note, path.name
        with warnings.catch_warnings(action="ignore"): y = load_audio(path)
        assert 0.3 * 132_300 < len(y) < 0.95 * 132_300 and level(y) > -20, path.name

def test_an_index_that_was_at_the_end_is_lost(tmp_path):
    path = encode(tmp_path/"a.m4a", "aac", 44100, chord(3.))
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(CarganError, match="cannot read"): load_audio(path)

MORE = {"half.wav": patched(wav(), 40, "<I", 30000), "none.wav": patched(wav(), 40, "<I", 0), "half.flac": flac_total(15000)}

@pytest.mark.parametrize("name", MORE)
def test_a_header_that_announces_too_little_costs_nothing(tmp_path, name):
    (tmp_path/name).write_bytes(MORE[name])
    assert "all of it is used" in note_of(tmp_path/name)
    with warnings.catch_warnings(action="ignore"): np.testing.assert_allclose(load_audio(tmp_path/name), chord(30000 / 44100)[:30000], atol=1e-3)

LESS = {"a.wav": patched(wav(), 40, "<I", 120_000), "absurd.flac": flac_total(2 ** 36 - 1), "long.flac": flac_total(60000)}

@pytest.mark.parametrize("name", LESS)
def test_a_header_that_announces_too_much(tmp_path, name):
    (tmp_path/name).write_bytes(LESS[name])
    assert "its end is missing" in note_of(tmp_path/name)
    with warnings.catch_warnings(action="ignore"): assert load_audio(tmp_path/name).shape == (30000,)

@pytest.mark.parametrize("size", [2 ** 32 - 1, 2 ** 31 - 1])
def test_streamed_wav_is_whole(tmp_path, size):  # written to a pipe: the writer could not know the length
    (tmp_path/"a.wav").write_bytes(patched(wav(), 40, "<I", size))
    assert load_audio(tmp_path/"a.wav").shape == (30000,) and note_of(tmp_path/"a.wav") is None

def test_streamed_flac_is_whole(tmp_path):
    (tmp_path/"a.flac").write_bytes(flac_total(0))
    assert load_audio(tmp_path/"a.flac").shape == (30000,) and note_of(tmp_path/"a.flac") is None

@pytest.mark.parametrize("extra", [b"LIST" + struct.pack("<I", 20000) + bytes(20000), b"id3 " + struct.pack("<I", 7001) + b"x" * 7001 + b"\0"])
def test_what_follows_the_sound_is_no_sound(tmp_path, extra):
    (tmp_path/"a.wav").write_bytes(wav() + extra)
    assert note_of(tmp_path/"a.wav") is None and load_audio(tmp_path/"a.wav").shape == (30000,)

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "Half a second in eight formats."
    folder = tmp_path_factory.mktemp("whole")
    coded = {k: encode(folder/f"a.{k}", codec, 48000, chord()).read_bytes() for k, codec in dict(m4a="aac", webm="libopus", aac="aac").items()}
    return {k: bytes(wav(22050, format=k)) for k in ("WAV", "FLAC", "OGG", "MP3", "AIFF")} | coded

@many
@given(st.sampled_from(["WAV", "FLAC", "OGG", "MP3", "AIFF", "m4a", "webm", "aac"]), st.data())
def test_damaged_files_give_sound_or_one_sentence(tmp_path, whole, kind, data):
    b = bytearray(whole[kind])
    for _ in range(data.draw(st.integers(0, 8))):
        b[data.draw(st.integers(0, len(b) - 1) | st.integers(0, 100))] = data.draw(st.integers(0, 255))
    path = tmp_path/f"a.{kind.lower()}"
    path.write_bytes(bytes(b[:data.draw(st.integers(0, len(b)) | st.just(len(b)))]))
    with warnings.catch_warnings(action="ignore"):
        try: y = load_audio(path)
        except CarganError as e: assert "\n" not in str(e)
        else: assert y.dtype == np.float32 and y.ndim == 1 and len(y) and np.isfinite(y).all() and abs(y).max() < 20

def test_eight_channels_are_eight_and_not_nine(tmp_path):
    "FFmpeg keeps pointers to the first eight planes in a list without an end, and what stands behind it is no plane."
    x = np.stack([chord() * (k + 1) / 8 for k in range(8)])
    with av.open(str(tmp_path/"a.mka"), "w") as film:
        a = film.add_stream("flac", rate=44100, layout="7.1")
        frame = av.AudioFrame.from_ndarray((x.T.reshape(1, -1) * 2**15).clip(-2**15, 2**15 - 1).astype(np.int16), format="s16", layout="7.1")
        frame.sample_rate, frame.pts = 44100, 0
        film.mux(a.encode(frame)); film.mux(a.encode(None))
    y = load_audio(tmp_path/"a.mka")
    assert y.shape == (22050,) and np.corrcoef(y, chord())[0, 1] > 0.99

def test_decoders_write_nothing_to_stderr(tmp_path, capfd):
    from concurrent.futures import ThreadPoolExecutor
    (tmp_path/"a.mp3").write_bytes(bytes(wav(format="MP3")))
    (tmp_path/"b.mp3").write_bytes(bytes(20000))
    def read(name):
        try: return len(load_audio(tmp_path/name))
        except CarganError: return 0
    with ThreadPoolExecutor(4) as pool: assert list(pool.map(read, ["a.mp3", "b.mp3"] * 8)) == [30000, 0] * 8
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"


# ---------------------------------------------------------------- in pieces
@quick
@given(st.integers(1, 200_000), st.sampled_from([None, 4410, 11025, 22050 * 0.7, 44100 / 24, 30000]), st.integers(1, 9))
def test_pieces_give_the_same_windows(n, hop, pieces):
    wave = noise(0, n)
    at_once, streamed = (np.stack(list(stream_windows(blocks, LMSConfig(), hop))) for blocks in ([wave], np.array_split(wave, pieces)))
    np.testing.assert_array_equal(at_once, streamed)
    if hop is None or hop == round(hop): np.testing.assert_array_equal(at_once, cut_windows(wave, hop_seconds=hop and hop / 44100))
    for i, w in enumerate(at_once): np.testing.assert_array_equal(w[:len(wave) - round(i * (hop or 22050))], wave[round(i * (hop or 22050)):][:22050])

@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.m4a"])
def test_a_long_file_is_never_in_memory(tmp_path, name):
    "Two minutes come in pieces of a few seconds at most, and are decoded anew."
    x = np.tile(chord(1.), 120)
    if name == "a.m4a": encode(tmp_path/name, "aac", 44100, x)
    else: sf.write(tmp_path/name, x, 44100)
    sound = replace(open_sound(tmp_path/name), kept=None)
    sizes = [len(piece) for piece in stream(sound, 22050)]
    assert len(sizes) > 4 and abs(sum(sizes) - 120 * 22050) < 4410
    assert open_sound(tmp_path/name).kept is not None and max(sizes) <= 1 << 20

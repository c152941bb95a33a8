"Does the picture follow the sound: drawers whose faults are known, the main numbers of every method, and data that know nothing."
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from cargan.bundle import Bundle, open_bundle, save_bundle
from cargan.core import INSTRUMENTS, read_json
from cargan.data import PairDataset, split_recordings
from cargan.evaluation import MAIN, evaluate
from cargan.following import Held, alternatives, next_windows, nearer_by_pixels, score_following, sweep_factors, sweep_scores
from cargan.judging import Case, EvaluateConfig, draw_heard, draw_test_pictures, following_table, held_windows, muted, shifted
from cargan.listening import ProbeConfig, partners
from cargan.looking import ClassifierConfig
from cargan.methods import METHODS, TrainConfig
from cargan.report import following_numbers, part_following, part_listening
from cargan.scene import RANGES, Factors, draw_scene, visible_cues
from cargan.training import load_run, train
from methods import tiny

NAMES = ("cello", "trombone", "trumpet", "violin")


@pytest.fixture(scope="module")
def known():
    "160 windows of four instruments and two players each, and what a probe with a small error reads off the real pictures."
    rng = np.random.default_rng(0)
    factors = [Factors(name, who, float(rng.integers(*RANGES[name])), float(rng.random())) for name in NAMES for who in (0, 1) for _ in range(20)]
    img = torch.from_numpy(np.stack([draw_scene(f, 32) for f in factors])).movedim(-1, 1)
    cues = np.array([list(visible_cues(f).values()) for f in factors])
    read = cues + rng.normal(0, 0.05, cues.shape)
    label = np.array([INSTRUMENTS.index(f.instrument) for f in factors])
    held = Held(label, np.array([str(i // 5) for i in range(160)]), np.array([str(f.performer) for f in factors]), img, cues, np.array([f.pitch for f in factors]), read)
    return held, alternatives(held)


def score(known, rows, read=None):
    "The numbers of somebody who shows the real picture of other rows."
    held, pairs = known
    return score_following(held, held.real[rows], held.label[rows], held.read[rows] if read is None else read, pairs)


def test_real_pictures_reach_the_ceiling(known):
    held, _ = known
    numbers = score(known, np.arange(160))
    assert (numbers["follows_sound"], numbers["two_alternatives"], numbers["alternatives_pixels"], numbers["l1"]) == (1, 1, 1, 0)
    assert 0.9 < numbers["note_r2"] < 1 and 0.9 < numbers["loudness_r2"] < 1  # the probe's own error, no more
    assert all(numbers[f"{k}_low"] <= numbers[k] <= numbers[f"{k}_high"] for k in ("follows_sound", "note_r2", "loudness_r2"))
    assert numbers["semitones"] < 3 and numbers["windows_with_partner"] == numbers["n"] == 160


def test_who_does_not_hear_is_near_a_half(known):
    "Another window of the instrument and the player; and the same picture for all windows of a player."
    held, pairs = known
    group = np.array([f"{c} {w}" for c, w in zip(held.label, held.who)])
    _, number = np.unique(group, return_inverse=True)
    for rows in (partners(number, 1, same=True), np.array([np.flatnonzero(number == k)[0] for k in number])):
        numbers = score(known, rows)
        assert abs(numbers["alternatives_pixels"] - 0.5) < 0.12 and abs(numbers["alternatives_reading"] - 0.5) < 0.12
        assert numbers["two_alternatives"] == min(numbers["alternatives_pixels"], numbers["alternatives_reading"])
        assert numbers["follows_sound"] == 1 and numbers["note_r2"] <= 0 and numbers["loudness_r2"] <= 0


def test_whoever_writes_for_the_probe_is_found_out(known):
    held, pairs = known
    still = np.array([np.flatnonzero((held.label == c) & (held.who == w))[0] for c, w in zip(held.label, held.who)])
    numbers = score(known, still, held.read)
    assert numbers["note_r2"] > 0.9 and numbers["alternatives_reading"] == 1 and numbers["two_alternatives"] < 0.6


def test_the_wrong_instrument_is_counted_as_drawn(known):
    held, _ = known
    other = partners(held.label)
    numbers = score(known, other)
    assert numbers["follows_sound"] == 0 and numbers["note_r2"] < 0 and numbers["two_alternatives"] < 0.65


def test_partners_are_of_the_same_player_and_far_enough(known):
    held, pairs = known
    a, b = pairs.T
    loud = held.cues[:, 1]
    assert (held.label[a] == held.label[b]).all() and (held.who[a] == held.who[b]).all()
    assert ((abs(held.pitch[a] - held.pitch[b]) >= 2) | (abs(loud[a] - loud[b]) >= 0.2 - 1e-6)).all()
    alike = replace(held, pitch=held.pitch * 0 + 60, cues=held.cues * 0)
    assert len(alternatives(alike)) == 0 and "two_alternatives" not in score_following(alike, held.real, held.label, held.read, alternatives(alike))


def test_pixels_that_do_not_differ_do_not_count(known):
    "Noise that is in both real pictures, and a drawing that is wrong only where both are equal."
    held, pairs = known
    noisy = held.real.clone()
    noisy[:, :, :4] = 0  # a strip in which all real pictures are alike but for a JPEG's noise
    wrong = noisy.clone()
    wrong[:, :, :4] = torch.randint(0, 255, wrong[:, :, :4].shape, dtype=torch.uint8)
    noisy[:, :, :4] = torch.randint(0, 6, wrong[:, :, :4].shape, dtype=torch.uint8)
    assert nearer_by_pixels(replace(held, real=noisy), wrong, pairs).min() == 1


def test_partners_use_each_row_once():
    label = np.repeat(np.arange(13), 40)
    for same in (False, True):
        other = partners(label, 3, same)
        assert sorted(other) == list(range(520)) and ((label[other] == label) == same).all() and (other != np.arange(520)).all()
    met = {(int(a), int(b)) for a, b in zip(label, label[partners(label, 3)])}
    assert len(met) > 120  # of 156 pairs of instruments: nobody meets always the same neighbour


def test_next_windows_need_the_same_recording():
    ids = np.array(["a_500", "a_1000", "b_1500", "a_1500", "a_2500"])
    bundle = Bundle(image=np.zeros((5, 2, 2, 3), np.uint8), lms_db=np.zeros((5, 2, 2)), label=np.zeros(5, int), pair_id=ids, recording=np.array(list("aabaa")))
    assert next_windows(bundle, np.arange(5)).tolist() == [1, 3, -1, -1, -1]
    assert next_windows(bundle, np.array([0, 3])).tolist() == [-1, -1]  # windows that are not asked for are not there


def test_sweeps_move_one_thing():
    for name in INSTRUMENTS:
        for what, fields in dict(note={"pitch"}, loudness={"loudness"}, performer={"performer"}).items():
            of = [f for moved, f in sweep_factors(name) if moved == what]
            assert {k for k in vars(of[0]) if len({vars(f)[k] for f in of}) > 1} == fields
    x = np.linspace(0, 1, 8)
    assert sweep_scores(x, x, 0 * x) == pytest.approx(dict(slope=1, rank=1, leakage=0)) and sweep_scores(x, x ** 3, x)["rank"] == pytest.approx(1)
    assert sweep_scores(x, 0 * x, 0 * x)["slope"] == 0 and sweep_scores(x, x, x)["leakage"] > 0.3


# models that we know: the class is a grey level of the picture, and a level of the sound

class Painter(nn.Module):
    "Paints its label, or what it hears; a picture says which by its grey."
    lms, size, stages, networks = "raw", 32, ("fine",), {}
    def __init__(self, label):
        super().__init__()
        self.label = label
    def paint(self, c): return dict(fine=((c.float() * 20 + 5) / 127.5 - 1)[:, None, None, None].expand(-1, 3, 32, 32))
    def draw(self, mel, label): return self.paint(label.argmax(1) if self.label == "wants" else heard_in(mel[:, 0]))


class Told(NamedTuple):
    instrument: torch.Tensor
    note: torch.Tensor
    loudness: torch.Tensor
    who: torch.Tensor


class Listener(Painter):
    "The same with an ear of its own that is wrong about tubas, and a picture for what it is told."
    people = ()
    def __init__(self): super().__init__("none")
    def told(self, c): return Told(c, c * 0. + 60, c * 0. + 0.5, c * 0 - 1)
    def listen(self, lms_db): return self.told(torch.where((c := heard_in(lms_db)) == 10, 9, c))
    def imagine(self, told): return self.paint(told.instrument)
    def draw(self, mel, label): return self.imagine(self.listen(mel[:, 0]))
    def truth(self, bundle, idx): return self.told(torch.as_tensor(np.asarray(bundle.label)[idx]))


def heard_in(lms_db): return ((lms_db.mean((1, 2)) + 90) / 5).round().clamp(0, 12).long()  # silence sounds like class 0


class Ear(nn.Module):
    "Hears the level; every fifth class as the next one."
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
    def forward(self, x):
        c = heard_in(x)
        return dict(instrument=10 * nn.functional.one_hot(torch.where(c % 5 == 4, c + 1, c), 14).float())


class Judge(nn.Module):
    "Sees the grey."
    def forward(self, img): return nn.functional.one_hot((((img.mean((1, 2, 3)) + 1) * 127.5 - 5) / 20).round().clamp(0, 12).long(), 13).float()


def case_of(model, factors=()):
    label = np.repeat(np.arange(13), 9)
    lms = np.full((117, 128, 44), -90.) + 5 * label[:, None, None]
    ids = np.array([f"{INSTRUMENTS[c]}{i % 9 // 3:02d}_{500 * (i % 3 + 1)}" for i, c in enumerate(label)])
    bundle = Bundle(image=np.repeat((label * 20 + 5).astype(np.uint8), 32 * 32 * 3).reshape(117, 32, 32, 3), lms_db=lms, label=label, pair_id=ids, factors=dict(factors))
    dataset, (train_idx, idx) = PairDataset(bundle, 32, lms="raw"), split_recordings(bundle)
    ear, truth = Ear(), label[idx]
    heard = model.listen(torch.as_tensor(lms[idx])).instrument if hasattr(model, "listen") else ear(torch.as_tensor(lms[idx]))["instrument"][:, :-1].argmax(1)
    real = dict(real=torch.from_numpy(np.ascontiguousarray(bundle.image[idx])).movedim(-1, 1))
    case = Case(EvaluateConfig("run", "data"), TrainConfig(), model.eval(), dataset, train_idx, idx, truth, heard.numpy(), np.zeros(len(idx), bool), bundle.recording[idx], real,
                ear=ear, judges={"independent": Judge()})
    draw_test_pictures(case)
    return case


def top(case):
    held = held_windows(case, None)
    case.sets |= dict(mean=case.sets["real"], nearest=case.sets["real"])
    table = following_table(case, held, None)
    return table, following_numbers(case, table)


def test_whoever_copies_the_label_does_not_follow_the_swapped_sound():
    case = case_of(Painter("wants"))
    _, numbers = top(case)
    right = np.mean([c % 5 != 4 for c in range(13)])
    assert numbers["follows_sound_true_label"] == 0 and numbers["follows_sound"] == pytest.approx(right)  # as good as the ear, and no better
    table = part_listening(case).tables["share of pictures that follow the label, and the sound"]
    assert table.loc["shuffled audio", ["follows_label", "follows_audio"]].tolist() == [1, 0]


def test_whoever_hears_follows_it():
    case = case_of(Painter("ignores"))
    table, numbers = top(case)
    assert numbers["follows_sound"] == 1 and numbers["follows_sound_true_label"] is None and len(case.differ()) == 0
    assert part_listening(case).tables["share of pictures that follow the label, and the sound"].loc["shuffled audio", ["follows_label", "follows_audio"]].tolist() == [0, 1]
    assert muted(case)["share"] == pytest.approx(1 / 13) and muted(case)["share_before"] == 1
    plain = shifted(case, None)
    assert plain["follows_sound"] == 1 and plain["change"] == 0 and plain["n"] == 26  # the next window is of the same instrument


def test_a_listener_is_told_the_truth_in_one_row_and_hears_in_the_other():
    case = case_of(Listener())
    table, numbers = top(case)
    assert case.own == "predicted" and set(np.unique(case.truth[case.differ()])) == {10}
    assert table.loc["told all that is true (drawing alone)", "follows_sound"] == 1 and numbers["follows_sound"] == pytest.approx(12 / 13)
    assert numbers["follows_sound_true_label"] is None
    assert case.pixels("true").l1.max() == 0 and case.pixels("predicted").l1[case.truth == 10].min() > 0.1
    assert (draw_heard(case, torch.full((1, 128, 44), -40.), "")[0] == 185).all()  # by its own ear: 9 in place of 10


# whole evaluations

def config(run, data, **kwargs):
    judge = ClassifierConfig(arch="compact", seed=1000, epochs=1)
    return EvaluateConfig(run, data, pictures=13, listen=13, evaluator=judge, judge_steps=1, probe=ProbeConfig(epochs=1), **kwargs)


@pytest.mark.parametrize("name", METHODS)
def test_main_numbers_of_every_method(name, tiny_data, once, tmp_path):
    "They stand first, in this order; what a method cannot have is null; and they are those of the pictures as heard."
    cfg = replace(tiny(name, tmp_path, max_steps=2), data=tiny_data/"data.npz")
    model, _ = load_run(run := train(cfg))
    parts = once("parts_of_evaluations", lambda folder: None)
    m = evaluate(config(run, cfg.data, parts=parts))
    assert list(m)[:len(MAIN)] == list(read_json(run/"metrics.json"))[:len(MAIN)] == list(MAIN)
    assert m["method"] == name and m["label"] == model.label and (m["follows_sound_true_label"] is None) == (model.label != "wants")
    assert all(isinstance(m[k], float) for k in MAIN if k not in ("method", "label", "follows_sound_true_label", "n", "seconds_training"))
    assert m["n"] < len(split_recordings(open_bundle(cfg.data))[1])  # without rests
    assert m["l1_fine"] == m["l1_fine_predicted_label"] and ("l1_coarse_true_label" in m) == ("coarse" in model.stages)
    following = m["following"]["sets"]
    told = "told all that is true (drawing alone)" if hasattr(model, "imagine") else "true label told"
    assert following["as heard"]["l1"] == pytest.approx(m["l1_fine"], abs=1e-5) and following[told]["l1"] == pytest.approx(m["l1_fine_true_label"], abs=1e-5)
    assert following["as heard"]["follows_sound"] == pytest.approx(m["accuracy_predicted_label"])
    assert following["real pictures (ceiling)"]["two_alternatives"] == 1 and {"mute", "shift_250_ms", "sweep", "another_note"} <= set(m["following"])
    if model.label != "wants" and not hasattr(model, "imagine"): assert m["fd"] == m["fd_true_label"] and m["l1_fine"] == m["l1_fine_true_label"]
    assert m["fd"] == m["distances"]["fd"] and m["distances"]["features of EfficientNet-Lite0"]["real training pictures (floor)"]["n"] == 13
    assert (run/"sweep.png").exists() and (run/"following.png").exists()


def test_data_without_factors_have_no_notes(tiny_data, tmp_path, once):
    bundle = open_bundle(tiny_data/"data.npz")
    save_bundle(replace(bundle, factors={}), tmp_path/"plain.npz")
    run = train(replace(tiny("mean", tmp_path), data=tmp_path/"plain.npz"))
    m = evaluate(config(run, tmp_path/"plain.npz", parts=once("parts_of_evaluations", lambda folder: None)))
    assert [m[k] for k in ("note_r2", "loudness_r2", "two_alternatives")] == [None] * 3
    assert m["follows_sound"] is not None and m["fd"] is not None and "sweep" not in m["following"] and not (run/"sweep.png").exists()
    assert "Does the picture follow the sound?" in (run/"report.html").read_text()

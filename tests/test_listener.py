"A listener: what it is told, whom it can draw, and the folder in which it is handed on."
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cargan.bundle import open_bundle, save_bundle
from cargan.core import CarganError, load_weights
from cargan.data import PairDataset
from cargan.hearing import AudioClassifierConfig, Told
from cargan.listener import as_told, load_listener, players, save_listener
from cargan.runs import load_run
from cargan.training import set_rates, train
from conftest import SHARED
from methods import tiny, toy_bundle

REAL = SHARED/"suburmp_real/pairs.npz"


def with_factors(bundle):
    "The toy pairs, with notes, loudness, rests and two players an instrument."
    n, rng = len(bundle), np.random.default_rng(1)
    rest = (np.arange(n) % 9 == 0).astype(int)
    factors = dict(pitch=np.where(rest, np.nan, 40. + np.arange(n) % 30), loudness=np.where(rest, 0., rng.random(n)), rest=rest)
    return replace(bundle, factors=factors, performer=(np.arange(n) // 13 % 2).astype(str))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("listener")
    save_bundle(with_factors(toy_bundle(156)), folder/"pairs.npz")
    save_bundle(toy_bundle(156), folder/"bare.npz")
    return folder


@pytest.fixture(scope="module")
def run(work): return train(tiny("listener", work, out=work/"run", parts=work/"parts", max_steps=2))


def test_it_is_told_what_the_data_know(work, run):
    "Notes, loudness and players of the training pairs come from the data; rests have no note."
    bundle, told = open_bundle(work/"pairs.npz"), as_told(load_weights(run/"told.safetensors")[0]["told"])
    rest = np.asarray(bundle.factors["rest"]).astype(bool)
    assert (told.instrument.numpy() == bundle.label).all()
    assert (told.note.numpy()[~rest] == np.asarray(bundle.factors["pitch"])[~rest]).all() and (told.note.numpy()[rest] == -1).all()
    np.testing.assert_allclose(told.loudness.numpy()[~rest], np.asarray(bundle.factors["loudness"])[~rest], atol=1e-5)
    model, _ = load_run(run)
    assert len(model.people) == 26 and [model.people[int(w)] for w in told.who[:2]] == [(0, "0"), (1, "0")]


def test_it_is_told_what_is_heard_where_the_data_know_nothing(work):
    "The same pairs without factors: notes and loudness are the ear's, and groups of pictures stand for players."
    out = train(tiny("listener", work, data=work/"bare.npz", out=work/"bare", max_steps=2))
    bundle, model = open_bundle(work/"bare.npz"), load_run(out)[0]
    told = as_told(load_weights(out/"told.safetensors")[0]["told"])
    with torch.no_grad(): heard = model.listen(torch.as_tensor(np.asarray(bundle.lms_db, np.float32)))
    assert torch.equal(told.note, heard.note) and torch.allclose(told.loudness, heard.loudness, atol=1e-5)
    assert (told.instrument.numpy() == bundle.label).all()  # the name is known in any case


def test_a_loudness_that_is_missing_is_heard(work):
    "Data may know the loudness of some windows only; corrected factors are not mistaken for the old ones, though parts are shared."
    bundle = open_bundle(work/"pairs.npz")
    some = np.asarray(bundle.factors["loudness"], float).copy(); some[5:20] = np.nan
    save_bundle(replace(bundle, factors=dict(bundle.factors, loudness=some)), work/"some.npz")
    out = train(tiny("listener", work, data=work/"some.npz", out=work/"some", parts=work/"parts", max_steps=1))
    told = as_told(load_weights(out/"told.safetensors")[0]["told"])
    with torch.no_grad(): heard = load_run(out)[0].listen(torch.as_tensor(np.asarray(bundle.lms_db[5:8], np.float32)))
    assert told.loudness.isfinite().all() and torch.allclose(told.loudness[5:8], heard.loudness, atol=1e-5)


def test_taught_by_ear_alone(work):
    out = train(tiny("listener", work, out=work/"heard", parts=work/"parts", max_steps=1, taught="heard"))
    told, model = as_told(load_weights(out/"told.safetensors")[0]["told"]), load_run(out)[0]
    bundle = open_bundle(work/"pairs.npz")
    with torch.no_grad(): heard = model.listen(torch.as_tensor(np.asarray(bundle.lms_db, np.float32)))
    assert torch.equal(told.instrument, heard.instrument) and torch.equal(told.note, heard.note)


def told_of(n=4): return Told(torch.arange(n), torch.full((n,), 50.), torch.full((n,), 0.5), torch.full((n,), -1))


@pytest.mark.parametrize("told, moves", [(("instrument",), False), (("instrument", "note"), True)])
def test_what_it_is_not_told_changes_nothing(work, told, moves):
    "The last of the steps below are late ones: the eye is asked about what is told, and about nothing else."
    cfg = tiny("listener", work, parts=work/"parts", out=work/f"told{len(told)}", max_steps=4)
    model, _ = load_run(train(replace(cfg, model=replace(cfg.model, told=told))))
    with torch.no_grad(): a, b = (model.imagine(t)["fine"] for t in (told_of(), told_of()._replace(note=torch.full((4,), 62.))))
    assert torch.equal(a, b) != moves


def test_nobody_in_particular_is_the_first_player(run):
    model, _ = load_run(run)
    first = told_of()._replace(who=model.first_player[:4])
    with torch.no_grad(): assert torch.equal(model.imagine(told_of())["fine"], model.imagine(first)["fine"])


def test_without_groups_there_are_no_players(work):
    cfg = tiny("listener", work, data=work/"bare.npz", out=work/"nobody", max_steps=1)
    out = train(replace(cfg, model=replace(cfg.model, looks=0)))
    assert load_run(out)[0].people == () and not (out/"players.safetensors").exists()


def test_groups_need_enough_pictures(work):
    bundle = open_bundle(work/"bare.npz")
    one_each = replace(bundle, recording=np.arange(len(bundle)).astype(str))  # nobody is known by recordings either
    names = players(PairDataset(one_each, 32), np.arange(40), looks=3)
    assert set(names) == {"look 0"}  # three pictures of an instrument are too few for three groups


def test_an_ear_that_hears_too_little_is_refused(work):
    heads = replace(AudioClassifierConfig(), heads=("instrument",), epochs=1)
    with pytest.raises(CarganError, match="lacks loudness and note"): train(tiny("listener", work, out=work/"deaf", ear="own", audio=heads))
    with pytest.raises(CarganError, match="knows no notes"): train(tiny("listener", work, data=work/"bare.npz", out=work/"own", ear="own"))
    assert not (work/"deaf").exists() and not (work/"own").exists()


def test_step_sizes_are_a_function_of_what_is_done(work):
    p = SimpleNamespace(cfg=tiny("listener", work), done=0., optimisers=dict(G=SimpleNamespace(param_groups=[{}])))
    def rate(done):
        p.done = done; set_rates(p)
        return p.optimisers["G"].param_groups[0]["lr"] / p.cfg.lr
    rates = [rate(d) for d in (0.01, 0.25, 0.5, 0.75, 0.9999)]
    assert rates == sorted(rates, reverse=True) and rates[0] > 0.99 and abs(rates[2] - 0.505) < 1e-3 and rates[-1] < 0.011
    assert rate(0.) < 0.02  # the first steps are small


def test_handed_on_in_one_folder(run, tmp_path):
    model, _ = load_run(run)
    save_listener(tmp_path/"box", model)
    assert sorted(f.name for f in (tmp_path/"box").iterdir()) == ["config.json", "model.safetensors"]
    with torch.no_grad(): a, b = (m.imagine(told_of())["fine"] for m in (model, load_listener(tmp_path/"box")))
    assert (a - b).abs().max() < 0.02  # half precision


def change(box, what):
    config = json.loads((box/"config.json").read_text())
    what(config)
    (box/"config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("damage, says", [
    (lambda box: (box/"config.json").unlink(), "config.json"), (lambda box: (box/"model.safetensors").unlink(), "model.safetensors"),
    (lambda box: (box/"config.json").write_text("{}"), "does not describe a listener"),
    (lambda box: (box/"model.safetensors").write_bytes(b"no weights"), "model.safetensors"),
    (lambda box: (box/"config.json").write_text((box/"config.json").read_text().replace('"base": 4', '"base": 8')), "does not fit"),
    (lambda box: (box/"config.json").write_text((box/"config.json").read_text().replace('"people": [', '"people": [3, ')), "players"),
    (lambda box: (box/"config.json").write_text((box/"config.json").read_text().replace('"base"', '"bass"')), "has no bass"),
    (lambda box: (box/"config.json").write_text((box/"config.json").read_text().replace('"size": 32', '"size": 0')), "size"),
    (lambda box: change(box, lambda c: c["model"].update(told=["note"])), "instrument among them"),
    (lambda box: change(box, lambda c: c["who"].update(people=[[99, "x"]] * 26)), "players")])
def test_a_damaged_folder_is_one_sentence(run, tmp_path, damage, says):
    save_listener(tmp_path/"box", load_run(run)[0])
    damage(tmp_path/"box")
    with pytest.raises(CarganError, match=says): load_listener(tmp_path/"box")


@pytest.mark.skipif(not REAL.exists(), reason="the real pairs are not here")
def test_real_pairs_have_no_notes_and_no_names(tmp_path):
    "Half a hundred steps on real pictures: looks stand for players, the ear teaches notes, and the loss falls."
    cfg = replace(tiny("listener", tmp_path, data=REAL, max_steps=40, batch_size=16, log_every=10, lr=2e-3), ear="shipped")
    out = train(replace(cfg, model=replace(cfg.model, base=32), eye=replace(cfg.eye, epochs=2)))
    log = [json.loads(line) for line in (out/"log.jsonl").read_text().splitlines()]
    assert log[-1]["l1_fine"] < 0.8 * log[0]["l1_fine"]
    assert len(load_run(out)[0].people) > 13

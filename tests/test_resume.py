"A run that is killed at any moment and started again ends with the same weights as one that never was: CPU, bit for bit."
import json
import multiprocessing as mp
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from cargan.bundle import save_bundle
from cargan.cascade import released
from cargan.core import CarganError
from cargan.training import checkpoint_folders, load_run, train
from cargan.methods import METHODS
from methods import TRAINED, tiny, toy_bundle

KILLS = {"cargan": 20}  # as often as this; the other methods go through the same loop, and are killed three times


def stateful(name, folder, **changes):
    "A configuration in which every kind of state matters: moving average, random numbers, two optimisers."
    cfg = tiny(name, folder, max_steps=150 if name in KILLS else 60, ema=0.9, log_every=5, sample_every=40, checkpoint_every=6)
    more = dict(size=64, base=2, d_base=2, dropout=0.5) if name == "cargan" else {}
    return replace(cfg, model=replace(cfg.model, **more), **changes)


def live(cfg, stepping, saving):
    "One life of a training process. It touches `stepping` when the loop begins, and `saving` in the middle of a save if that is given."
    import cargan.training as t
    torch.set_num_threads(1)
    fit, save = t.fit, t.save_weights
    def noting_fit(*args): stepping.touch(); fit(*args)
    def slow_save(path, *args, **kwargs):
        save(path, *args, **kwargs)
        saving.touch(); time.sleep(0.3)  # long enough to be killed here, between the weights and the optimisers
    t.fit = noting_fit
    if saving: t.save_weights = slow_save
    t.train(cfg)


def wait_for(path, process, seconds=120):
    end = time.time() + seconds
    while not path.exists() and process.is_alive() and time.time() < end: time.sleep(0.002)
    return path.exists()


@pytest.fixture(scope="module")
def processes():
    ctx = mp.get_context("forkserver")
    ctx.set_forkserver_preload(["cargan.training", *{place.split(":")[0] for place in METHODS.values()}])  # import torch once, not in each of the lives
    return ctx


def state_of(run):
    folder = checkpoint_folders(run)[-1]
    return (folder/"weights.safetensors").read_bytes(), torch.load(folder/"state.pt", weights_only=True)


def equal(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("name", TRAINED)
def test_killed_and_resumed_is_bitwise_the_same(name, tmp_path, processes):
    save_bundle(toy_bundle(), tmp_path/"pairs.npz")
    wanted = KILLS.get(name, 3)
    straight, killed = (stateful(name, tmp_path, out=tmp_path/out) for out in ("straight", "killed"))
    p = processes.Process(target=live, args=(straight, tmp_path/"go", None)); p.start(); p.join()
    assert p.exitcode == 0
    rng, in_save, kills = np.random.default_rng(1), 0, 0
    for life in range(200):
        stepping, saving = tmp_path/f"step{life}", tmp_path/f"save{life}"
        aim_at_save = life % 4 == 3 or wanted == 3 and life % 2 == 1
        p = processes.Process(target=live, args=(killed, stepping, saving if aim_at_save else None)); p.start()
        if life == 0: time.sleep(rng.uniform(0.2, 1.5))  # before the loop: in the folders or in the classifiers
        elif wait_for(stepping, p):
            if aim_at_save: in_save += wait_for(saving, p)
            time.sleep(rng.uniform(0, 0.25))
        if p.is_alive(): kills += 1
        p.kill(); p.join()
        if kills >= wanted: break
        assert p.exitcode == -9, f"the run ended by itself with {p.exitcode} after {kills} kills; give it more steps"
    p = processes.Process(target=live, args=(killed, tmp_path/"end", None)); p.start(); p.join()
    assert p.exitcode == 0 and kills >= wanted and in_save >= (3 if wanted > 3 else 1)
    (weights_a, state_a), (weights_b, state_b) = state_of(straight.out), state_of(killed.out)
    assert weights_a == weights_b and equal(state_a, state_b)
    logs = [[json.loads(line) for line in (run/"log.jsonl").read_text().splitlines()] for run in (straight.out, killed.out)]
    assert [r["step"] for r in logs[1]] == sorted({r["step"] for r in logs[1]}), "a step was logged twice"
    assert [r["step"] for r in logs[0]][-1] == [r["step"] for r in logs[1]][-1]
    assert not list(killed.out.glob("checkpoints/.*")), "leftovers of interrupted saves"


def test_a_run_that_continues_another_is_refused_when_it_differs(tmp_path):
    save_bundle(toy_bundle(), tmp_path/"pairs.npz")
    cfg = tiny("cargan", tmp_path, max_steps=2)
    train(cfg)
    with pytest.raises(CarganError, match="lr was 0.0004, now 0.1"): train(replace(cfg, lr=0.1))
    with pytest.raises(CarganError, match="method was cargan, now mean"): train(tiny("mean", tmp_path))


def test_losses_that_are_not_finite_stop_the_run_with_step_and_name(tmp_path):
    save_bundle(toy_bundle(), tmp_path/"pairs.npz")
    with pytest.raises(CarganError, match=r"loss \w+ is not finite at step \d+"): train(tiny("cargan", tmp_path, lr=1e30, max_steps=50))


def test_precisions_and_accumulation_train(tmp_path):
    "bf16, accumulated batches, other first weights and the released code's variant in bf16 each take three steps and can be loaded."
    save_bundle(toy_bundle(), tmp_path/"pairs.npz")
    base = tiny("cargan", tmp_path, max_steps=3, parts=tmp_path/"parts")
    variants = dict(bf16=replace(base, precision="bf16"), accumulate=replace(base, accumulate=2), released=replace(released(base), precision="bf16"),
                    sigma=replace(base, model=replace(base.model, init_std=0.2)))
    for name, cfg in variants.items():
        model, _ = load_run(train(replace(cfg, out=tmp_path/name)))
        fine = model.draw(torch.zeros(2, model.cfg.mel_channels, 32, 32), torch.tensor([0, 1]))["fine"]
        assert fine.isfinite().all() and fine.shape == (2, 3, 32, 32), name

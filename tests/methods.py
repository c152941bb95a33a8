"What the tests of all methods share: which there are, and a tiny configuration of each."
from dataclasses import fields, is_dataclass, replace

import numpy as np

from cargan.bundle import Bundle
from cargan.core import INSTRUMENTS
from cargan.methods import METHODS, find_method

CONTROLS = ("mean", "retrieval")  # they learn nothing
TRAINED = [name for name in METHODS if name not in CONTROLS]
SMALL = dict(size=32, base=4, d_base=4)


def toy_bundle(n: int = 78, size: int = 32, instruments: int = 13, bands: bool = False) -> Bundle:
    "Random pictures and sounds, three recordings an instrument; with `bands` each instrument sounds in nine bands of its own."
    rng, label = np.random.default_rng(0), np.arange(n) % instruments
    lms = rng.normal(-40, 15, (n, 128, 44))
    if bands: lms = lms - 40 + 60 * (np.arange(128) // 9 == label[:, None])[:, :, None]
    return Bundle(image=rng.integers(0, 255, (n, size, size, 3), dtype=np.uint8), lms_db=lms.astype(np.float16), label=label,
                  pair_id=np.array([f"{INSTRUMENTS[c]}{i // (2 * instruments):02d}_{500 * (i + 1)}" for i, c in enumerate(label)]))


def shrunk(cfg, epochs: int = 1, **model):
    "The same configuration with small networks, and so many epochs for everything that is trained beforehand."
    wanted = SMALL | model
    small = replace(cfg.model, **{f.name: wanted[f.name] for f in fields(cfg.model) if f.name in wanted})
    quick = {f.name: replace(v, epochs=epochs) for f in fields(cfg) if is_dataclass(v := getattr(cfg, f.name)) and hasattr(v, "epochs")}
    return replace(cfg, model=small, device="cpu", **quick)


def tiny(name: str, folder, part_epochs: int = 1, **changes):
    "A tiny run of a method on `folder/pairs.npz`."
    cfg = shrunk(find_method(name).presets["lab"], part_epochs)
    if name == "listener": cfg = replace(cfg, loss=replace(cfg.loss, lambda_gan=0.002))  # with a D, so that all of it is tried
    cfg = replace(cfg, data=folder/"pairs.npz", out=folder/"run", batch_size=8, epochs=999, max_steps=6, ema=0., log_every=2, sample_every=99, checkpoint_every=99)
    return replace(cfg, **changes)

"Methods that learn nothing: what they remember, what they show, and their runs."
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from cargan.bundle import Bundle, save_bundle
from cargan.controls import (MEAN, RETRIEVAL, MeanConfig, MeanPicture, MeanTrain, NearestPair, RetrievalConfig, RetrievalTrain, asked_for,
                             compare_runs, mean_pictures, remember, show_methods)
from cargan.core import INSTRUMENTS, CarganError, to_uint8, write_json
from cargan.data import PairDataset, split_recordings
from cargan.hearing import AudioClassifierConfig
from cargan.training import checkpoint_folders, check_config, load_run, train

CLASSES = 11  # of 13: viola and violin are not in the data


def toy(n=55, size=32, seed=0) -> Bundle:
    "Random sounds and pictures, five windows of each instrument; the last of them is held out."
    rng, label = np.random.default_rng(seed), np.arange(n) % CLASSES
    split = np.where(np.arange(n) // CLASSES == 4, "validation", "train")
    return Bundle(image=rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), lms_db=rng.normal(-40, 15, (n, 128, 44)).astype(np.float16),
                  label=label, pair_id=np.array([f"{INSTRUMENTS[c]}{i // CLASSES:02d}_0" for i, c in enumerate(label)]), split=split)


@pytest.fixture(scope="module", params=[32, 64], ids=["own_size", "enlarged"])
def known(request):
    "(data set, training pairs, held-out pairs, a memory); pictures of 32 px, shown at 32 or 64."
    dataset = PairDataset(toy(), request.param)
    train_idx, held = split_recordings(dataset.bundle)
    return dataset, train_idx, held, remember(dataset, train_idx, 16)


def nearest(known, among): return NearestPair(RetrievalConfig(known[0].size, among), **known[3])


def test_the_mean_of_equal_pictures_is_that_picture():
    bundle = toy()
    bundle = replace(bundle, image=np.repeat(bundle.image[:1], len(bundle), 0))
    means = mean_pictures(PairDataset(bundle, 32), np.arange(len(bundle)))
    for c in [*range(CLASSES), 13]: assert (to_uint8(means[c]) == bundle.image[0]).all()
    assert not means[CLASSES:13].any()


def test_the_mean_is_of_the_training_pictures_of_the_label(known):
    dataset, train_idx, _, _ = known
    means, truth = mean_pictures(dataset, train_idx), dataset.__getitems__(train_idx)
    for c in range(CLASSES): torch.testing.assert_close(means[c], truth["image"][truth["label"] == c].mean(0))
    torch.testing.assert_close(means[13], truth["image"].mean(0))


def test_a_training_sound_returns_its_own_picture(known):
    dataset, train_idx, _, _ = known
    batch = dataset.__getitems__(train_idx)
    for among in ("label", "all"):
        drawn = nearest(known, among).draw(batch["mel"], batch["label"])["fine"]
        assert (to_uint8(drawn) == to_uint8(batch["image"])).all()
        if dataset.size == 32: assert torch.equal(drawn, batch["image"])


def test_it_is_the_nearest_sound(known):
    "Against the plain way: every distance by itself, in double precision."
    dataset, train_idx, held, _ = known
    pool = lambda mel: torch.nn.functional.avg_pool2d(mel.double(), dataset.size // 16).flatten(1)
    batch, others = dataset.__getitems__(held), dataset.__getitems__(train_idx)
    far = (pool(batch["mel"])[:, None] - pool(others["mel"])[None]).square().sum(2)
    assert torch.equal(nearest(known, "all").search(batch["mel"]), far.argmin(1))
    far[batch["label"][:, None] != others["label"]] = torch.inf
    assert torch.equal(nearest(known, "label").search(batch["mel"], batch["label"]), far.argmin(1))


def test_never_a_held_out_picture(known):
    dataset, train_idx, held, _ = known
    batch, training = dataset.__getitems__(held), {x.tobytes() for x in to_uint8(dataset.__getitems__(train_idx)["image"])}
    assert not training & {x.tobytes() for x in to_uint8(batch["image"])}
    for among in ("label", "all"):
        assert {x.tobytes() for x in to_uint8(nearest(known, among).draw(batch["mel"], batch["label"])["fine"])} <= training


def test_the_label_decides_or_counts_for_nothing(known):
    dataset, _, held, _ = known
    mel, everyone = dataset.__getitems__(held)["mel"], nearest(known, "all")
    for shift in range(CLASSES):
        label = (torch.arange(len(held)) + shift) % CLASSES
        model = nearest(known, "label")
        assert torch.equal(model.owner[model.search(mel, label)], label)
        assert torch.equal(everyone.search(mel, label), everyone.search(mel))
    assert torch.equal(nearest(known, "label").search(mel, torch.zeros(len(held), 13)), everyone.search(mel))


def test_an_instrument_without_pairs_is_grey(known):
    dataset, train_idx, held, _ = known
    mel, viola = dataset.__getitems__(held)["mel"], torch.full((len(held),), 11)
    drawn = [nearest(known, "label").draw(mel, viola), MeanPicture(MeanConfig(dataset.size), pictures=mean_pictures(dataset, train_idx)).draw(mel, viola)]
    for pictures in drawn: assert (to_uint8(pictures["fine"]) == 128).all()
    for quiet in (mel, torch.full_like(mel, -1), torch.full_like(mel, 1)): assert (nearest(known, "all").owner[nearest(known, "all").search(quiet)] < CLASSES).all()


def test_weights_as_labels():
    assert asked_for(torch.tensor([[0.2, 0.5] + [0.] * 11, [0.] * 13, [0.] * 12 + [1.]])).tolist() == [1, 13, 12]
    with pytest.raises(CarganError, match="give B integers"): asked_for(torch.zeros(2, 3, 4))


def test_everything_moves_to_a_device(known):
    for model in (nearest(known, "label").to("meta"), MeanPicture(MeanConfig(), pictures=torch.zeros(14, 3, 64, 64)).to("meta")):
        assert {b.device.type for b in model.buffers()} == {"meta"} and not list(model.parameters()) and not model.state_dict() and model.networks == {}
    mel = torch.zeros(2, 1, known[0].size, known[0].size, device="meta")
    assert nearest(known, "label").to("meta").draw(mel, torch.zeros(2, 13, device="meta"))["fine"].device.type == "meta"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A run of each control, with shared parts."
    folder = tmp_path_factory.mktemp("controls")
    save_bundle(toy(), folder/"pairs.npz")
    usual = dict(data=folder/"pairs.npz", parts=folder/"parts", batch_size=1, device="cpu", audio=AudioClassifierConfig(epochs=1))
    cfgs = dict(mean=MeanTrain(model=MeanConfig(32), **usual), retrieval=RetrievalTrain(model=RetrievalConfig(32), **usual))
    cfgs["all"] = RETRIEVAL.variants["all"](cfgs["retrieval"])
    return {name: train(replace(cfg, out=folder/name)) for name, cfg in cfgs.items()}


def test_a_run_is_its_memory_and_one_checkpoint(runs, capsys):
    dataset = PairDataset(toy(), 32)
    train_idx, held = split_recordings(dataset.bundle)
    batch, memory = dataset.__getitems__(held), remember(dataset, train_idx, 16)
    made = dict(mean=MeanPicture(MeanConfig(32), pictures=mean_pictures(dataset, train_idx)), retrieval=NearestPair(RetrievalConfig(32), **memory),
                all=NearestPair(RetrievalConfig(32, "all"), **memory))
    for name, run in runs.items():
        assert [p.name for p in checkpoint_folders(run)] == ["step_00000000"]
        model, cfg = load_run(run)
        assert torch.equal(model.draw(batch["mel"], batch["label"])["fine"], made[name].draw(batch["mel"], batch["label"])["fine"])
        assert (model.label, model.stages, model.size, model.lms) == (made[name].label, ("fine",), 32, "db")
        capsys.readouterr(); before = (run/"memory.safetensors").stat().st_mtime_ns
        train(cfg)
        assert "is finished: 0 steps" in capsys.readouterr().out and (run/"memory.safetensors").stat().st_mtime_ns == before
    assert made["mean"].label == made["retrieval"].label == "wants" and made["all"].label == "none"


def test_parts_are_shared_where_they_are_the_same(runs):
    assert len(list((runs["mean"].parent/"parts").glob("memory-*.safetensors"))) == 2  # mean's, and retrieval's for both kinds
    assert len(list((runs["mean"].parent/"parts").glob("audio_classifier-*.safetensors"))) == 1


@pytest.mark.parametrize("damage", ["missing", "cut", "another method's", "another size's"])
def test_a_bad_memory_is_refused(runs, tmp_path, damage):
    run = shutil.copytree(runs["retrieval"], tmp_path/"run")
    path = run/"memory.safetensors"
    if damage == "missing": path.unlink()
    elif damage == "cut": whole = path.read_bytes(); path.unlink(); path.write_bytes(whole[:len(whole) // 2])
    elif damage == "another method's": shutil.copy(runs["mean"]/"memory.safetensors", path)
    else:
        text = (run/"config.json").read_text(); (run/"config.json").write_text(text.replace('"size": 32', '"size": 64'))
    with pytest.raises(CarganError, match={"missing": "does not exist", "cut": "damaged"}.get(damage, "doesn't fit the run's config")): load_run(run)


@pytest.mark.parametrize("model, says", [(RetrievalConfig(size=48), "power of two"), (RetrievalConfig(size=16), "at least 32"), (RetrievalConfig(side=24), "side=24"),
                                         (RetrievalConfig(size=32, side=64), "at most the size"), (RetrievalConfig(side=0), "side=0"),
                                         (RetrievalConfig(among="both"), "choose label or all")])
def test_impossible_values(model, says):
    with pytest.raises(CarganError, match=says): check_config(RetrievalTrain(model=model))


def test_presets_and_variants_are_possible():
    for method in (MEAN, RETRIEVAL):
        assert set(method.presets) == {"lab", "paper"}
        for preset in method.presets.values():
            for change in ({"": lambda cfg: cfg} | method.variants).values(): check_config(change(preset))


@pytest.mark.parametrize("name", ["mean", "retrieval", "all"])
def test_the_graph_of_torch_export_says_the_same(runs, name):
    model, _ = load_run(runs[name])
    class Draws(torch.nn.Module):
        def __init__(self): super().__init__(); self.model = model
        def forward(self, mel, label): return self.model.draw(mel, label)["fine"]
    B, mel, label = torch.export.Dim("B", min=1), torch.rand(5, 1, 32, 32) * 2 - 1, torch.eye(13)[[0, 3, 12, 5, 1]]
    label[4] = 0
    graph = torch.export.export(Draws(), (mel[:2], label[:2]), dynamic_shapes=({0: B}, {0: B}), strict=False).module()
    for n in (1, 5): assert torch.equal(graph(mel[:n], label[:n]), model.draw(mel[:n], label[:n])["fine"])


def test_the_sheet_has_a_row_for_each_instrument_and_a_column_for_each_run(runs):
    fig = show_methods(runs, runs["mean"].parent/"pairs.npz")
    assert len(fig.axes) == CLASSES * (len(runs) + 2)
    assert [ax.get_title() for ax in fig.axes[:5]] == ["sound", "mean", "retrieval", "all", "truth"]
    assert len(show_methods({"mean": runs["mean"]}, toy(), rows=[3, 4]).axes) == 2 * 3
    with pytest.raises(CarganError, match="no held-out pairs"): show_methods(runs, replace(toy(), split=None, recording=np.array(toy().label, str)))


def test_main_numbers_of_runs(runs, tmp_path):
    assert len(compare_runs(runs)) == 0
    fd = lambda stage: {"features of EfficientNet-Lite0": {f"{stage}, predicted label": {"FD-EffNet": 7.}}}
    crossed = {"shuffled audio": dict(follows_label=1., follows_audio=0.)}
    new = dict(follows_sound=0.5, note_r2=None, l1_fine=0.2, l1_fine_predicted_label=0.2, l1_fine_true_label=0.1, fd=5., fd_true_label=4.)
    written = dict(a=dict(label="wants", n=3, listening=crossed, distances=fd("drawn")), b=dict(listening=None, distances=fd("stage II")), new=new)
    for name, values in written.items():
        (tmp_path/name).mkdir(); write_json(tmp_path/name/"metrics.json", values)
    table = compare_runs({name: tmp_path/name for name in ("a", "b", "c", "new")})
    assert list(table.index) == ["a", "b", "new"] and table.loc["a", "follows label"] == 1 and list(table["FD"]) == [7, 7, 5]
    assert table.loc["new", ["follows sound", "L1", "L1, true label", "FD, true label"]].tolist() == [0.5, 0.2, 0.1, 4.]  # as heard, unless it is said
    assert table.loc["b"].drop("FD").isna().all()

"A method that is one file and one line in the table: a layer that turns the sound into a picture. It takes no label and has one stage."
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from cargan.hearing import AudioClassifierConfig
from cargan.methods import Method, TrainConfig, descend


@dataclass(frozen=True)
class ToyConfig:
    "The layer."
    size: int = 32  # pixels
    kernel: int = 1  # pixels that are looked at, along each axis; odd


@dataclass(frozen=True)
class ToyTrain(TrainConfig):
    "A run of it."
    method: ClassVar[str] = "toy"
    model: ToyConfig = ToyConfig()  # the layer


class Toy(nn.Module):
    lms, label, stages = "db", "none", ("fine",)

    def __init__(self, cfg: ToyConfig):
        super().__init__()
        self.cfg, self.size, self.layer = cfg, cfg.size, nn.Conv2d(1, 3, cfg.kernel, padding=cfg.kernel // 2)

    @property
    def networks(self): return dict(layer=self.layer)

    def draw(self, mel, label=None): return dict(fine=self.layer(mel).tanh())


def step(p, batch):
    with p.accelerator.autocast(): loss = (p.model.draw(batch["mel"])["fine"] - batch["image"]).abs().mean()
    descend(p, loss, "G")
    return dict(G=loss)


TINY = ToyTrain(batch_size=8, audio=AudioClassifierConfig(epochs=1))
METHOD = Method(config=ToyTrain, presets=dict(lab=TINY, paper=ToyTrain()), make_model=lambda cfg, folder: Toy(cfg.model), step=step,
                variants=dict(wide=lambda cfg: replace(cfg, model=replace(cfg.model, kernel=5))))

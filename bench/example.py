"""The short recording that comes with the package: four instruments climb, half a second a note, louder with every note.

    python bench/example.py [OUT]      # default: cargan/weights/example.ogg

Tune and arrangement are the project's own. The instruments are those of the SoundFont inside pretty_midi, as in the embedded
data set; performers, room and noise are drawn from a fixed seed. Needs the extra `train`."""
import sys
from pathlib import Path

import numpy as np
import soundfile as sf

from cargan.core import atomic_path
from cargan.scene import make_performer, stable_rng
from cargan.sound import SAMPLE_RATE, Event, SoundConfig, coloured_noise, play_events, room_response, through

ROOT = Path(__file__).resolve().parent.parent
CLIMBS = dict(trombone=(46, 50, 53, 58, 62), cello=(45, 50, 54, 57, 62), trumpet=(62, 66, 69, 74, 78), clarinet=(57, 62, 66, 69, 74))  # MIDI keys
SLOT = 0.5  # seconds a note: one window


def climb(instrument: str, keys: tuple, cfg: SoundConfig, rng) -> np.ndarray:
    "One instrument climbs, from soft to loud, and ends a little before its time is over."
    events = [Event(k * SLOT, (k + 1) * SLOT, key, k * SLOT, (k + 1) * SLOT - 0.03, 0.35 + 0.12 * k) for k, key in enumerate(keys)]
    return play_events(instrument, events, make_performer(instrument, 0), rng, cfg)[:round(len(keys) * SLOT * SAMPLE_RATE)]


def example(path: Path, seed: int = 12) -> Path:
    "Write the recording as Ogg Vorbis, mono."
    rng, cfg = stable_rng("example", seed), SoundConfig(zone=0, presets=0., colour=0., detune=0.)
    x = np.concatenate([climb(name, keys, cfg, rng) for name, keys in CLIMBS.items()])
    x = through(x, response=room_response(rng, 0.4, -20.)) + 1e-4 * coloured_noise(x.shape, rng, 0.5)
    with atomic_path(path) as tmp: sf.write(tmp, 0.7 * x / abs(x).max(), SAMPLE_RATE, format="OGG", subtype="VORBIS")
    return Path(path)


if __name__ == "__main__":
    path = example(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT/"cargan"/"weights"/"example.ogg")
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")

"""How long the ear takes for a window of half a second, on one thread: the log-mel, PyTorch in batches, and its ONNX file.

    OMP_NUM_THREADS=1 python bench/hear.py [--ear shipped|RUN|FILE] [--batch 64] [--repeats 15]

Medians over the repeats, in ms a window; the ratio is PyTorch against ONNX Runtime in the same run. Also how far their answers are apart."""
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import tyro

from cargan.core import CarganError
from cargan.export import Probabilities, write_ear_onnx
from cargan.hearing import find_ear, load_audio_classifier
from cargan.lms import log_mel


def median_ms(work, windows: int, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start) / windows)
    return statistics.median(times[1:])


@torch.no_grad()
def main(ear: str = "shipped", batch: int = 64, repeats: int = 15):
    torch.set_num_threads(1)
    net = Probabilities(load_audio_classifier(find_ear(ear)))
    waves = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (batch, 22050)).astype(np.float32))
    lms_db = log_mel(waves)
    with tempfile.TemporaryDirectory() as folder:
        write_ear_onnx(Path(folder)/"ear.onnx", net.ear)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(Path(folder)/"ear.onnx"), options, providers=["CPUExecutionProvider"])
        size = (Path(folder)/"ear.onnx").stat().st_size / 1e6
    onnx = lambda: session.run(None, dict(lms_db=lms_db.numpy()))
    apart = max(float(abs(a.numpy() - b).max()) for a, b in zip(net(lms_db), onnx()))
    mel, ours, theirs = (median_ms(f, batch, repeats) for f in (lambda: log_mel(waves), lambda: net(lms_db), onnx))
    print(f"batches of {batch}, one thread, ms a window: log-mel {mel:.2f}, ear in PyTorch {ours:.2f}, in ONNX Runtime {theirs:.2f} "
          f"(ratio {ours / theirs:.2f}); file {size:.1f} MB; answers at most {apart:.1e} apart")


if __name__ == "__main__":
    try: tyro.cli(main)
    except CarganError as e:
        print(e, file=sys.stderr)
        sys.exit(2)

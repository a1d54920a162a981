"""Measure the service under load: python -m tests.bench.bench_serving WEIGHTS IMAGES [--seconds N] [--clients N]

Clients send image files, and a share of malformed requests, to `yolov7 serve`, each over one connection. The result is
compared with the model alone in batches of the size that the service allows, on the same machine. The clients share the
CPUs with the service.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import cv2
import numpy as np

_MALFORMED: tuple[tuple[bytes, str], ...] = (
    (b"no picture", "image/jpeg"),
    (b'{"image": 7}', "application/json"),
    (b"nonsense", "multipart/form-data; boundary=limit"),
)


@dataclass
class Load:
    """What clients saw.

    Attributes:
        good: Number of image files that were answered with detections.
        bad: Number of malformed requests that were refused with status 400 and a sentence.
        errors: Every other answer.
        seconds: Latency of each image file.
        duration: Seconds from the first request to the last answer.
    """

    good: int = 0
    bad: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    duration: float = 0.0


def run_load(url: str, images: Sequence[bytes], *, clients: int, seconds: float, malformed: float) -> Load:
    """Send requests from several threads.

    Args:
        url: Where images are sent.
        images: Contents of image files.
        clients: Number of threads, each with one connection.
        seconds: How long each of them sends.
        malformed: Share of malformed requests.

    Returns:
        What all clients saw.
    """
    load, lock, start = Load(), threading.Lock(), time.monotonic()

    def client(number: int) -> None:
        random_numbers = random.Random(number)
        line = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        while time.monotonic() < start + seconds:
            is_bad = random_numbers.random() < malformed
            body, kind = random_numbers.choice(_MALFORMED) if is_bad else (random_numbers.choice(images), "image/jpeg")
            before = time.perf_counter()
            line.request("POST", urlsplit(url).path, body, {"Content-Type": kind})
            answer = line.getresponse()
            content, took = json.loads(answer.read()), time.perf_counter() - before
            with lock:
                if is_bad and answer.status == 400 and list(content) == ["error"]:
                    load.bad += 1
                elif not is_bad and answer.status == 200 and "detections" in content:
                    load.good += 1
                    load.seconds.append(took)
                else:
                    load.errors.append(f"{answer.status} {content}")
        line.close()

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.duration = time.monotonic() - start
    return load


def model_alone(weights: Path, images: Sequence[bytes], *, batch: int, seconds: float) -> float:
    """Return the images per second of decoding, letterboxing and detecting in a plain loop of this process."""
    from yolov7.detect.detector import Detector

    detector, done, start = Detector.load(weights), 0, 0.0
    while not start or time.monotonic() < start + seconds:
        pixels = [
            cv2.imdecode(np.frombuffer(images[i % len(images)], np.uint8), cv2.IMREAD_COLOR_RGB) for i in range(batch)
        ]
        detector.predict(pixels, batch_size=batch)
        if start:
            done += batch
        start = start or time.monotonic()  # the first batch is not measured
    return done / (time.monotonic() - start)


def memory_mb(process: int) -> float:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    """Print the figures."""
    from tests.integration.service import serving

    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_serving")
    parser.add_argument("weights", type=Path)
    parser.add_argument("images", type=Path, help="a folder of JPEG files")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--malformed", type=float, default=0.01)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    images = [path.read_bytes() for path in sorted(options.images.glob("*.jpg"))[:200]]
    alone = {batch: model_alone(options.weights, images, batch=batch, seconds=5) for batch in (1, options.batch)}
    with serving(options.weights, "--max-batch", str(options.batch)) as server:
        url, process = f"{server.url}/predict", server.process.pid
        run_load(url, images, clients=options.clients, seconds=3, malformed=0)
        before = memory_mb(process)
        load = run_load(url, images, clients=options.clients, seconds=options.seconds, malformed=options.malformed)
        after = memory_mb(process)
        with urlopen(f"{server.url}/metadata") as answer:
            about = json.load(answer)
    rate = load.good / load.duration
    p50, p95, p99 = np.percentile(load.seconds, [50, 95, 99]) * 1000
    print(f"{about['engine']} {about['precision']} {about['image_size']} px, {options.clients} clients")
    print(f"good {load.good}, malformed refused {load.bad}, errors {len(load.errors)} {load.errors[:3]}")
    print(f"{rate:.1f} requests/s for {load.duration:.0f} s, p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms")
    for batch, speed in alone.items():
        print(f"model alone, batches of {batch}: {speed:.1f} images/s; the service reaches {rate / speed:.2f} of it")
    print(f"memory before {before:.0f} MB, after {after:.0f} MB")


if __name__ == "__main__":
    main()

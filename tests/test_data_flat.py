"""Memory while 5 GB of pictures are streamed; minutes long."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data.store import Names

FILES, BATCH = 1700, 17

STREAM = """
import json, sys, time
import torch
from sfumato.data import load

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS:"))

start = time.monotonic()
items = load(sys.argv[1], stream=True).items
opened = time.monotonic() - start
batches = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).split(int(sys.argv[2]))
items.prefetch(batches[0])
seen, levels = [], 0.0
start = time.monotonic()
for now, then in zip(batches, [*batches[1:], batches[0]]):
    batch = items[now]
    items.prefetch(then)
    levels += float(batch.float().mean()) / len(batches)
    seen.append(resident())
print(json.dumps({"seen": seen, "levels": levels, "open": opened, "epoch": time.monotonic() - start}))
"""


@pytest.mark.slow
def test_memory_is_flat_while_five_gigabytes_are_streamed(tmp_path: Path) -> None:
    """After a tenth of an epoch in random order it grows by at most 5%."""
    rng = np.random.default_rng(0)
    for first in range(0, FILES, 85):
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (1024, 1024, 3), dtype=np.uint8)).save(content, "PNG", compress_level=1)
        for index in range(first, first + 85):
            (tmp_path / f"{index:04}.png").write_bytes(content.getvalue())
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) > 5e9
    command = [sys.executable, "-c", STREAM, str(tmp_path), str(BATCH)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    told = json.loads(run.stdout)
    warm, *rest = told["seen"][FILES // BATCH // 10 :]
    print({**told, "seen": [size >> 20 for size in told["seen"]], "growth": max(rest) / warm - 1})
    assert 126 < told["levels"] < 129  # noise was read, all of it
    assert max(rest) <= 1.05 * warm


@pytest.mark.slow
def test_a_million_names_take_less_than_their_letters_and_eight_bytes_each() -> None:
    names = Names(b"class_%03d/picture_%08d.png" % (index % 1000, index) for index in range(10**6))
    assert len(names.text) + sys.getsizeof(names._ends) < 45e6

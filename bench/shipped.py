"""Put a trained run among the models that come with sfumato: its averaged weights alone, in half precision.

    python bench/shipped.py RUN NAME [TEACHER]       writes src/sfumato/weights/NAME

TEACHER is the name under which a student's teacher comes along; a student's weights are rounded to bfloat16, in which
it computes: float16 between cost its few calls 4% in distance instead of 1%. What was tuned for the weights is kept for
the rounded ones. How good those are, `sfumato evaluate NAME` tells.
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import torch

from sfumato.engine import checkpoint
from sfumato.engine.config import write_config
from sfumato.engine.run import Run
from sfumato.engine.shipped import SHIPPED

LIMIT = 8_000_000  # bytes of all weights together


def main(folder, name, teacher=None):
    run, place = Run.open(Path(folder)), SHIPPED / name
    model, notes = run.load()
    shutil.rmtree(place, ignore_errors=True)
    half = torch.float16 if teacher is None else torch.bfloat16
    # what a model's estimate is made of may be rounded; what was measured of it is a number, or a table of 45
    own = ("mmse", "mmse_logsnr", "gain")
    tensors = {f"ema.{key}": t if key.endswith(own) else t.to(half) for key, t in model.state_dict().items()}
    checkpoint.save(place / "checkpoints", int(notes["step"]), tensors, notes)
    student = run.config.student if teacher is None else dataclasses.replace(run.config.student, teacher=teacher)
    write_config(place / "config.toml", dataclasses.replace(run.config, student=student, tensorboard=False))
    (place / "data.json").write_text(json.dumps(run.data, indent=2, ensure_ascii=False) + "\n")
    tuned = run.folder / "samplers.json"
    if tuned.exists() and model.tuned:
        rounded, _ = Run.open(place).load()
        record = json.loads(tuned.read_text()) | {"weights": rounded.fingerprint()}
        (place / "samplers.json").write_text(json.dumps(record, indent=1) + "\n")
    total = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    assert total <= LIMIT, f"{total:,} bytes are too many"
    print(f"{place.name}: {notes['step']} steps; all weights together {total:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])

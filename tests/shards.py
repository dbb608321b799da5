"""The pictures of a folder packed as tar shards and as parquet."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

SUFFIXES = ("png", "jpg", "webp", "bmp")
NAMES = [f"{'cat' if index < 14 else 'dog'}/{index:03}.{SUFFIXES[index % 4]}" for index in range(30)]
"""Files of two classes, sorted."""


def add(tar: tarfile.TarFile, name: str, content: bytes, **what: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in what.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def tar(folder: Path, to: Path) -> Path:
    """Three shards in a folder: classes by .cls, by .json, and said before the picture."""
    (to / "tars").mkdir()
    for shard in range(3):
        with tarfile.open(
            to / "tars" / f"{shard}.tar", "w", format=(tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)[shard % 2]
        ) as out:
            for name in NAMES[10 * shard : 10 * shard + 10]:
                key, label = name.replace("/", "_").rsplit(".", 1)[0], name[:3]
                picture = (f"{'deep/' * (30 * shard)}{key}.{name.rsplit('.', 1)[1]}", (folder / name).read_bytes())
                told = {
                    0: ("cls", label.encode()),
                    1: ("json", json.dumps({"label": label, "more": 1}).encode()),
                    2: ("CLS", b" dog\n"),
                }[shard]
                beside = (f"{'deep/' * (30 * shard)}{key}.{told[0]}", told[1])
                for member in (beside, picture) if shard == 2 else (picture, beside):
                    add(out, *member)
    return to / "tars"


def parquet(folder: Path, to: Path) -> Path:
    """Two files as `datasets` writes them, the classes in another order than the alphabet's."""
    from datasets import ClassLabel, Dataset, Features, Image, Value

    features = Features({"id": Value("int64"), "image": Image(), "label": ClassLabel(names=["cat", "unused", "dog"])})
    (to / "parquet").mkdir()
    for shard in range(2):
        rows = [
            {"id": 1, "image": {"bytes": (folder / name).read_bytes(), "path": name}, "label": 2 * (name[:3] == "dog")}
            for name in NAMES[15 * shard : 15 * shard + 15]
        ]
        Dataset.from_list(rows, features=features).to_parquet(to / "parquet" / f"part-{shard}.parquet")
    return to / "parquet"

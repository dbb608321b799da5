"""Teaching a network to jump, so that one call or a few do the work of many. What all ways share stands in base.py."""

from collections.abc import Callable

from sfumato.teaching.base import Method, Task, jumps
from sfumato.teaching.consistency import ConsistencyTuning
from sfumato.teaching.contrast import set_gain
from sfumato.teaching.lines import AlphaFlow, MeanFlow
from sfumato.teaching.matching import Matching
from sfumato.teaching.rivalry import Rivalry
from sfumato.teaching.steps import Direct, Progressive, between, halved

__all__ = [
    "METHODS", "AlphaFlow", "ConsistencyTuning", "Direct", "Matching", "MeanFlow", "Method", "Progressive",
    "Rivalry", "Task", "between", "halved", "jumps", "set_gain",
]  # fmt: skip

METHODS: dict[str, Callable[[int], Method]] = {
    "matching": lambda calls: Matching(calls),
    "consistency": lambda calls: ConsistencyTuning(),
    "direct": lambda calls: Direct(calls, within=max(4, 8 // calls)),
    "progressive": lambda calls: Progressive(calls),
    "alphaflow": lambda calls: AlphaFlow(),
    "meanflow": lambda calls: MeanFlow(),
}
"""The methods by name, for a number of calls that the student will be asked for."""

"""The house: what imports what, what is forbidden, how long files are, and that everything public is documented.

Each rule is a function from source text (or a module) to a list of offences, so that the rules are tested too.
"""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

import sfumato

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"

ORDER = [
    "errors", "files", "defaults", "dist", "coupling", "condition", "language", "facts", "known", "hint", "schedule",
    "process", "ppca", "mixing", "grid", "rows", "weighting", "denoise", "overheard", "guide", "ode", "score",
    "predict", "sampler.base", "sampler.weights", "sampler.*", "sampler", "teaching", "density", "nn", "data", "models",
    "metrics", "engine", "view", "verbs", "cli", "__main__",
]  # fmt: skip
"""A file imports only from entries above its own; files of one folder import each other, but not in a circle."""

LEAVES = {"nn": {"condition"}, "data": {"errors", "files"}, "metrics": {"errors"}}
"""Folders that may import no more than this of what is above them, so that they can be read and used alone."""

TENSORS = "sfumato.metrics.features"
"""The one file that may read somebody else's weights with torch.load, of known checksum and as tensors alone."""
FORBIDDEN = {"torchvision", "torchaudio", "torchcodec", "pickle"}
LONGEST = 420
PAPERS = {"arxiv.org", "doi.org"}
"""Hosts that documents may link to. Source and Makefile name none."""

FILES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SRC.rglob("*.py"))
}
"""Every module of the package by its full name."""


def assert_none(offences):
    assert not offences, "\n" + "\n".join(offences)


def shown(path):
    return str(path.relative_to(ROOT))


# ── Imports ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def imports(text, module, folder=False):
    """Yield (line, full name) of everything that a source imports, wherever it stands.

    ``from a import b`` yields a.b if that is a module of ours, else a. Relative names are resolved, and so is the
    fixed beginning of a name given to import_module.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: len(module.split(".")) + folder - node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            for name in node.names:
                full = f"{base}.{name.name}"
                yield node.lineno, full if full in FILES or base == "sfumato" else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            name = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            yield node.lineno, str(name.value).removesuffix(".") if isinstance(name, ast.Constant) else "anything"


def entry(module):
    """The entry of ORDER to which a module belongs; None if it has no place."""
    parts = module.split(".")[1:]
    if parts[:1] == ["sampler"] and len(parts) > 1:
        return f"sampler.{parts[1]}" if parts[1] in ("base", "weights") else "sampler.*"
    return parts[0] if parts and parts[0] in ORDER else None


def disorder(text, module, folder=False):
    """What a module imports against the order of the house."""
    here = entry(module)
    if here is None:
        return [f"{module} has no place in the house: give it one in ORDER of tests/test_house.py"]
    found = []
    for line, target in imports(text, module, folder):
        there = entry(target)
        if target.split(".")[0] != "sfumato" or target == "sfumato.__version__" or (there == here != "sampler.*"):
            continue
        if there is None:
            found.append(f"{module}:{line} imports {target}: import each name from the file that defines it")
        elif here in LEAVES and there not in LEAVES[here]:
            found.append(f"{module}:{line} imports {target}: {here} may import {sorted(LEAVES[here]) or 'nothing'}")
        elif ORDER.index(there) >= ORDER.index(here):
            found.append(f"{module}:{line} imports {target}, which does not stand above it")
    return found


def is_folder(module):
    return FILES[module].name == "__init__.py"


def test_each_file_imports_only_what_stands_above_it():
    modules = [module for module in FILES if module != "sfumato"]  # the front door, see the next test
    assert_none([o for m in modules for o in disorder(FILES[m].read_text("utf-8"), m, is_folder(m))])


def test_the_front_door_imports_nothing_of_ours_unless_asked():
    tree = ast.parse(FILES["sfumato"].read_text("utf-8"))
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node))]
    assert [name for _, name in imports(ast.unparse(tree), "sfumato", True) if name.startswith("sfumato.")] == []


def test_no_circles():
    """Within a folder too. ``prepare`` raises CycleError, which names the circle."""
    graph = {
        m: {name for _, name in imports(path.read_text("utf-8"), m, is_folder(m)) if name in FILES and name != m}
        for m, path in FILES.items()
        if m != "sfumato"
    }
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("sfumato.dist", "from sfumato.process import Gaussian"),
        ("sfumato.dist", "import sfumato.cli"),
        ("sfumato.process", "def f():\n    from sfumato import sampler"),
        ("sfumato.process", "if TYPE_CHECKING:\n    from .denoise import Denoiser"),
        ("sfumato.engine.run", "from sfumato import Gaussian"),
        ("sfumato.engine.run", "from ..view.show import show"),
        ("sfumato.engine.run", "import_module('sfumato.verbs')"),
        ("sfumato.sampler.base", "from sfumato.sampler.ddim import DDIM"),
        ("sfumato.sampler.ddim", "from .heun import Heun"),
        ("sfumato.nn.mlp", "from sfumato.errors import UserError"),
        ("sfumato.data.toys", "from sfumato.dist import stream"),
        ("sfumato.metrics.frechet", "from sfumato.data import load"),
        ("sfumato.novelty", ""),
    ],
)
def test_the_order_is_enforced(module, text):
    assert len(disorder(text, module)) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("sfumato.process", "import torch\nfrom sfumato.dist import Normal\nfrom . import errors"),
        ("sfumato.engine.run", "from sfumato import __version__\nfrom . import checkpoint\nfrom ..files import x"),
        ("sfumato.sampler.ddim", "from .base import State"),
        ("sfumato.nn.mlp", "from .layers import started"),
        ("sfumato.data.toys", "from sfumato.files import write_png\nfrom .points import Points"),
    ],
)
def test_the_order_lets_pass_what_it_should(module, text):
    assert disorder(text, module) == []


# ── Safety ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def dangers(text, name):
    """Imports and calls that run what a file says, or that the design excludes."""
    found = [f"{name}:{k} imports {m}" for k, m in imports(text, "sfumato.x") if m.split(".")[0] in FORBIDDEN]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            open_door = any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
            tensors_only = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            loads = called == "torch.load" and not (tensors_only and name == TENSORS)
            if called in ("eval", "exec") or loads or open_door:
                found.append(f"{name}:{node.lineno} calls {ast.unparse(node)}")
    return found


def test_nothing_dangerous_in_src():
    assert_none([o for m, path in FILES.items() for o in dangers(path.read_text("utf-8"), m)])


@pytest.mark.parametrize(
    "text",
    [
        "import torchvision.transforms as T",
        "def f():\n    from pickle import loads",
        "importlib.import_module('torchaudio')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=True)",
        "eval('1')",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_dangers_are_seen(text):
    assert len(dangers(text, "x")) == 1


def test_what_only_looks_dangerous_passes():
    text = "model.eval()\nsafetensors.torch.load(content)\nnp.load(p, allow_pickle=False)"
    assert dangers(text, "x") == []
    assert dangers("torch.load(p, weights_only=True)", TENSORS) == []
    assert len(dangers("torch.load(p)", TENSORS)) == 1


# ── Size, places and names ────────────────────────────────────────────────────────────────────────────────────────────


def test_files_are_short():
    paths = [path for folder in ("src", "tests", "bench", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
    lines = {shown(path): len(path.read_text("utf-8").splitlines()) for path in paths}
    assert_none([f"{name} has {n} lines, {n - LONGEST} too many" for name, n in lines.items() if n > LONGEST])


def absentees(text):
    """What is imported from sfumato and is not there, with its line: benches are not run by the tests."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sfumato":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                try:
                    if not hasattr(importlib.import_module(node.module), alias.name):
                        importlib.import_module(name)
                except ModuleNotFoundError:
                    yield node.lineno, name


@pytest.mark.parametrize("path", sorted((ROOT / "bench").glob("*.py")), ids=lambda path: path.stem)
def test_benches_import_what_is_there(path):
    assert list(absentees(path.read_text("utf-8"))) == []


def test_what_is_not_there_is_seen():
    text = "from sfumato.flow import METHODS\nfrom sfumato.grid import karras, none\nfrom sfumato import grid\n"
    assert list(absentees(text)) == [(1, "sfumato.flow.METHODS"), (2, "sfumato.grid.none")]


def strangers(text, hosts):
    """Paths of one machine, and hosts that are not in ``hosts``, with their lines."""
    for k, line in enumerate(text.splitlines(), start=1):
        for found in re.finditer(r"(?<![\w.~/-])/(?:root|work|tmp|home)\b[^\s\"'`)]*|https?://([\w.-]+)", line):
            if found[1] not in hosts:
                yield k, found[0]


def test_no_path_of_one_machine_and_no_host():
    code = [*(p for p in SRC.rglob("*") if p.suffix in (".py", ".html", ".css", ".js", ".toml")), ROOT / "Makefile"]
    prose = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("README*.md")]
    places = [(path, set()) for path in code] + [(path, PAPERS) for path in prose]
    assert_none([f"{shown(p)}:{k} {what}" for p, hosts in places for k, what in strangers(p.read_text("utf-8"), hosts)])


def test_strangers_are_seen():
    text = 'x = "/tmp/a"\ncd /home/me\nruns/tmp/a, ~/work, on.org/home/, src/work\nhttps://x.org/a http://arxiv.org/b'
    assert list(strangers(text, PAPERS)) == [(1, "/tmp/a"), (2, "/home/me"), (4, "https://x.org")]


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == sfumato.__version__, "install the package again: pip install -e ."


def test_the_command_line_starts_without_heavy_libraries():
    code = "import sys, sfumato, sfumato.cli; print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])"
    path = os.pathsep.join([str(SRC), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


# ── Documentation ─────────────────────────────────────────────────────────────────────────────────────────────────────


ARGUMENTS = re.compile(r"^\s*Args:$|\barguments\b|\bsee (:\w+:)?`", re.MULTILINE | re.IGNORECASE)


def functions(name, value):
    """Yield (name, function) of a public function, or of the public methods and properties that a class defines.

    What overrides a documented method of a base class is left out: its contract is told there.
    """
    if inspect.isfunction(inspect.unwrap(value)):
        yield name, inspect.unwrap(value)
    elif inspect.isclass(value):
        for key, member in vars(value).items():
            told = any(inspect.getdoc(getattr(base, key, None)) for base in value.__mro__[1:] if hasattr(base, key))
            member = getattr(member, "fget", None) or getattr(member, "func", None) or member
            member = inspect.unwrap(getattr(member, "__func__", member))
            if inspect.isfunction(member) and not key.startswith("_") and not told:
                yield f"{name}.{key}", member


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


@pytest.fixture(scope="module")
def contracts():
    """Name and parameters of each method that a Protocol of the package declares: its arguments are told there."""
    modules = [importlib.import_module(name) for name in FILES if not name.endswith("__main__")]
    protocols = {value for module in modules for value in vars(module).values() if getattr(value, "_is_protocol", 0)}
    return {
        (path.split(".")[1], *parameters(function))
        for protocol in protocols
        if protocol.__module__.startswith("sfumato.")
        for path, function in functions(protocol.__name__, protocol)
    }


def undocumented(module, contracts):
    """Public names of a module without a docstring, and functions of three or more parameters without "Args:".

    A method may leave its arguments to the Protocol that it fulfils, and a docstring may say where else they are
    told, in the words "arguments" or "see ``Name``".
    """
    if not module.__doc__:
        yield f"{module.__name__} has no docstring"
    for name in getattr(module, "__all__", ()):
        value = inspect.getattr_static(module, name, None)
        if getattr(value, "__module__", None) != module.__name__:
            continue  # an alias, a constant, or at home elsewhere
        told = vars(value).get("__doc__") or f"{name}("
        if inspect.isclass(value) and told.startswith(f"{name}("):  # @dataclass writes "Name(x: int)" by itself
            yield f"{module.__name__}.{name} has no docstring"
        for path, function in functions(name, value):
            where = f"{module.__name__}:{function.__code__.co_firstlineno} {path}"
            text = function.__doc__ or ""
            own = parameters(function)
            fulfils = (path.split(".")[-1], *own) in contracts and not getattr(value, "_is_protocol", False)
            if not text:
                yield f"{where} has no docstring"
            elif len(own) >= 3 and not (fulfils or ARGUMENTS.search(text)):
                yield f"{where}({', '.join(own)}) has no Args:"


def bare_constants(text, public):
    """Public constants and aliases that no string follows."""
    body = ast.parse(text).body
    for node, after in pairwise([*body, ast.Pass()]):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        named = [target.id for target in targets if isinstance(target, ast.Name) and target.id in public]
        if named and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
            yield f"line {node.lineno}: no string below {named[0]} says what it is"


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith("__main__")])
def test_what_is_public_is_documented(name, contracts):
    module = importlib.import_module(name)
    constants = bare_constants(FILES[name].read_text("utf-8"), {*getattr(module, "__all__", ())} - {"__version__"})
    assert_none([*undocumented(module, contracts), *(f"{name} {offence}" for offence in constants)])


def test_bare_constants_are_seen():
    text = 'A = 1\n"""Told."""\nB: int = 2\nC = 3\n_D = B.e = 4\n'
    assert list(bare_constants(text, {"A", "B"})) == ["line 3: no string below B says what it is"]


GAPS = '''
from dataclasses import dataclass
from functools import cache
from typing import Protocol
__all__ = ["A", "B", "D", "P", "Q", "f", "g", "h"]
class A:
    """Told."""
    def told(self): "Told."
    def untold(self): pass
    @property
    def size(self): pass
class B(A):
    def told(self): pass
@dataclass
class D:
    x: int = 0
class P(Protocol):
    """A contract."""
    def go(self, x, t, s): "Go."
class Q:
    """Fulfils it."""
    def go(self, x, t, s): "Go fast."
    def come(self, x, t, s): "No part of it."
def f(a, b): "No need for Args."
@cache
def g(a, b, c): "Three need them."
def h(a, b, c):
    """Has them.

    Args:
        a: one.
    """
'''


def test_gaps_in_documentation_are_seen():
    module = ModuleType("gaps", "A module.")
    exec(compile(GAPS, "gaps", "exec"), module.__dict__)
    assert [re.sub(r"^gaps[.:]\d* ?", "", line) for line in undocumented(module, {("go", "x", "t", "s")})] == [
        "A.untold has no docstring",
        "A.size has no docstring",
        "B has no docstring",
        "D has no docstring",
        "P.go(x, t, s) has no Args:",
        "Q.come(x, t, s) has no Args:",
        "g(a, b, c) has no Args:",
    ]

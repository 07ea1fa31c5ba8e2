"""Change the code a little and see whether a test notices: `python -m tests.mutation --minutes 60 --out FILE.json`.

A mutant is one change of one node: a comparison or an operator exchanged, a number raised by one, a truth value turned.
Each is tried in a process forked from one that has PyTorch and pytest loaded already, with the tests that are there for
its file, until the first fails; one that lives, with the quick tests of its whole room. What lives then shows a line
that no test guards, or one where the change means nothing; which it is, someone has to judge: docs/dev/tests.md. Begun
again with the same FILE, it goes on where it stopped; a file of code that has changed since is tried anew.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
# File -> the tests that guard it.
GUARDS = {
    "model/alternatives.py": ["tests/model/test_ablation.py", "tests/model/test_residual_rules.py"],
    "model/attention.py": ["tests/model/test_properties.py", "tests/model/test_parity_reference.py"],
    "model/block.py": ["tests/model/test_properties.py", "tests/model/test_parity_reference.py"],
    "backends/branches.py": ["tests/model/test_branches.py", "tests/model/test_lean.py"],
    "model/cait.py": ["tests/model/test_properties.py", "tests/model/test_parity_reference.py"],
    "model/convnet.py": ["tests/model/test_convnet.py"],
    "model/embedding.py": ["tests/model/test_properties.py", "tests/model/test_parity_reference.py"],
    "backends/heads.py": ["tests/model/test_lean.py"],
    "backends/products.py": ["tests/model/test_branches.py"],
    "model/variants.py": ["tests/model/test_golden.py"],
    "train/losses.py": ["tests/training/test_losses.py"],
    "evaluation/classes.py": ["tests/evaluation/test_evaluate.py", "tests/evaluation/test_protocols.py"],
    "evaluation/compare.py": ["tests/evaluation/test_metrics.py"],
    "evaluation/counts.py": ["tests/evaluation/test_counts.py"],
    "evaluation/evaluate.py": ["tests/evaluation/test_evaluate.py", "tests/evaluation/test_safeguards.py"],
    "evaluation/expected.py": ["tests/evaluation/test_safeguards.py"],
    "evaluation/intervals.py": ["tests/evaluation/test_metrics.py"],
    "evaluation/masks.py": ["tests/evaluation/test_protocols.py"],
    "evaluation/measure.py": ["tests/evaluation/test_evaluate.py"],
    "evaluation/metrics.py": ["tests/evaluation/test_metrics.py"],
    "evaluation/protocols.py": ["tests/evaluation/test_protocols.py"],
    "evaluation/records.py": ["tests/evaluation/test_metrics.py", "tests/evaluation/test_evaluate.py"],
    "evaluation/safeguards.py": ["tests/evaluation/test_safeguards.py"],
}
# Room -> its other tests that see such a change; those that take minutes are left out.
ROOMS = {
    "evaluation": ["tests/evaluation"],
    "model": [
        f"tests/model/test_{name}.py" for name in "branches broken_on_purpose golden lean modes properties".split()
    ],
    "train": ["tests/training/test_losses.py", "tests/training/test_step.py"],
}
_EXCHANGED = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.Mod: ast.Add},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
}
LIVES, KILLED, ENDLESS = "lives", "killed", "endless"
_MAX_CPU_SECONDS = 120  # of the processor, so that a busy machine makes no mutant endless


def mutate(tree: ast.AST, number: int) -> str | None:
    """Make the change with this number in a tree; what was changed, or None where there are fewer."""
    place = -1
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in _EXCHANGED:
            place += 1
            if place == number:
                old, node.op = node.op, _EXCHANGED[type(node.op)]()
                return f"{line}: {type(old).__name__} -> {type(node.op).__name__}"
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in _EXCHANGED:
            place += 1
            if place == number:
                old, node.ops[0] = node.ops[0], _EXCHANGED[type(node.ops[0])]()
                return f"{line}: {type(old).__name__} -> {type(node.ops[0]).__name__}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            place += 1
            if place == number:
                old, node.value = node.value, not node.value if isinstance(node.value, bool) else node.value + 1
                return f"{line}: {old!r} -> {node.value!r}"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
            place += 1
            if place == number:
                old, node.op = node.op, ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
                node.operand = node.operand if isinstance(old, ast.USub) else ast.UnaryOp(ast.Not(), node.operand)
                return f"{line}: {type(old).__name__} dropped"
    return None


def mutants(source: str) -> Iterator[tuple[str, ast.AST]]:
    """Every mutant of a source: what was changed, and the tree."""
    number = 0
    while True:
        tree = ast.parse(source)
        what = mutate(tree, number)
        if what is None:
            return
        yield what, ast.fix_missing_locations(tree)
        number += 1


class _Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a tree instead of its file."""

    def __init__(self, name: str, path: Path, tree: ast.AST) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, fullname, path, target=None):
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_filename(self, _: str) -> str:
        return str(self.path)

    def exec_module(self, module) -> None:
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


def outcome_of(file: str, tree: ast.AST | None, guards: list[str]) -> str:
    """Run tests against a mutant of a file (None: as it is), in a process of its own."""
    child = os.fork()
    if not child:
        import pytest

        resource.setrlimit(resource.RLIMIT_CPU, (_MAX_CPU_SECONDS, _MAX_CPU_SECONDS + 5))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if tree is not None:
            name = "deepcait." + file.removesuffix(".py").replace("/", ".")
            sys.meta_path.insert(0, _Instead(name, ROOT / "deepcait" / file, tree))
        marks = "not soak and not slow and not process"
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-m", marks, *guards])
        os._exit(0 if code == 0 else 1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return ENDLESS
    return LIVES if status == 0 else KILLED


def digest(file: str) -> str:
    """What a file of the package holds, in 16 digits."""
    return hashlib.sha256((ROOT / "deepcait" / file).read_bytes()).hexdigest()[:16]


def take_up(out: Path | None) -> dict[str, dict[str, str]]:
    """What was tried before, {file: {number and change: outcome}}, of the files that are still the same."""
    if out is None or not out.exists():
        return {}
    facts = json.loads(out.read_text(encoding="utf-8"))
    return {file: tried for file, tried in facts["tried"].items() if facts["sources"][file] == digest(file)}


def written(tried: dict[str, dict[str, str]], num_mutants: int, command: str) -> str:
    """The JSON of what was tried, with the sums."""
    outcomes = [outcome for of_file in tried.values() for outcome in of_file.values()]
    facts = {"command": command, "mutants": num_mutants, "num_tried": len(outcomes)}
    facts |= {f"num_{name}": outcomes.count(name) for name in (KILLED, ENDLESS, LIVES)}
    facts |= {"sources": {file: digest(file) for file in tried}, "tried": tried}
    return json.dumps(facts, indent=1) + "\n"


def main() -> None:
    """Try mutants of every file, drawn at random, until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="*", default=sorted(GUARDS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    # Loaded once, before the forks; nothing of deepcait.
    for name in ("numpy", "torch", "torchvision", "timm", "hypothesis", "pytest", "torch.utils.flop_counter"):
        importlib.import_module(name)
    for file in {str(GUARDS[file]): file for file in args.files}.values():
        sound = outcome_of(file, None, GUARDS[file])
        assert sound == LIVES, f"{file}: without any change its tests end with {sound!r}"
    every = []
    for file in args.files:
        source = (ROOT / "deepcait" / file).read_text(encoding="utf-8")
        every += [(file, f"#{number} line {what}", tree) for number, (what, tree) in enumerate(mutants(source))]
    random.Random(args.seed).shuffle(every)
    began, tried = time.monotonic(), take_up(args.out)
    command = f"python -m tests.mutation --minutes {args.minutes:g} --seed {args.seed}"
    for file, what, tree in every:
        if what in tried.get(file, {}):
            continue
        if time.monotonic() - began > 60 * args.minutes:
            break
        outcome = outcome_of(file, tree, GUARDS[file])
        if outcome == LIVES:
            outcome = outcome_of(file, tree, ROOMS[file.partition("/")[0]])
        tried.setdefault(file, {})[what] = outcome
        if outcome == LIVES:
            print(f"deepcait/{file} {what}", flush=True)
        if args.out:
            args.out.write_text(written(tried, len(every), command), encoding="utf-8")
    num_tried = sum(map(len, tried.values()))
    print(f"{num_tried} of {len(every)} tried, {str(tried).count(repr(LIVES))} live")


if __name__ == "__main__":
    main()

"""Change the code a little and see whether a test notices: `python -m tests.mutation --minutes 60 --out FILE.json`.

A mutant is one change of one node: a comparison or an operator exchanged, a number raised by one, a truth value turned.
Each is tried in a process forked from one that has PyTorch and pytest loaded already, with the tests that are there for
its file, until the first fails. A mutant that lives shows a line that no test guards, or one where the change means
nothing; which it is, someone has to judge: docs/mutants.md.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
# File -> the tests that guard it.
GUARDS = {
    "model/attention.py": ["tests/model/test_properties.py", "tests/model/test_parity_reference.py"],
    "model/block.py": ["tests/model/test_properties.py", "tests/model/test_parity_reference.py"],
    "model/cait.py": ["tests/model/test_properties.py", "tests/model/test_parity_reference.py"],
    "model/embedding.py": ["tests/model/test_properties.py", "tests/model/test_parity_reference.py"],
    "model/lean.py": ["tests/model/test_lean.py"],
    "train/losses.py": ["tests/train/test_losses.py"],
    "evaluation/counts.py": ["tests/evaluation/test_counts.py"],
    "evaluation/metrics.py": ["tests/evaluation/test_metrics.py"],
    "evaluation/intervals.py": ["tests/evaluation/test_metrics.py"],
    "evaluation/compare.py": ["tests/evaluation/test_metrics.py"],
    "evaluation/classes.py": ["tests/evaluation/test_evaluate.py", "tests/evaluation/test_protocols.py"],
    "evaluation/records.py": ["tests/evaluation/test_metrics.py", "tests/evaluation/test_evaluate.py"],
    "evaluation/safeguards.py": ["tests/evaluation/test_safeguards.py"],
    "evaluation/masks.py": ["tests/evaluation/test_protocols.py"],
}
_EXCHANGED = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.Mod: ast.Add},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
}
LIVES, KILLED, TIMEOUT = "lives", "killed", "timeout"
_MAX_SECONDS = 200


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


def outcome_of(file: str, tree: ast.AST | None) -> str:
    """Run the guards of a file against a mutant of it (None: as it is), in a process of its own."""
    child = os.fork()
    if not child:
        import pytest

        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if tree is not None:
            name = "deepcait." + file.removesuffix(".py").replace("/", ".")
            sys.meta_path.insert(0, _Instead(name, ROOT / "deepcait" / file, tree))
        marks = "not soak and not slow and not process"
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-m", marks, *dict.fromkeys(GUARDS[file])])
        os._exit(0 if code == 0 else 1)
    ends = time.monotonic() + _MAX_SECONDS
    while time.monotonic() < ends:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return LIVES if status == 0 else KILLED
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return TIMEOUT


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
        sound = outcome_of(file, None)
        assert sound == LIVES, f"{file}: without any change its tests end with {sound!r}"
    every = []
    for file in args.files:
        source = (ROOT / "deepcait" / file).read_text(encoding="utf-8")
        every += [(file, what, tree) for what, tree in mutants(source)]
    random.Random(args.seed).shuffle(every)
    began, tried = time.monotonic(), []
    for file, what, tree in every:
        if time.monotonic() - began > 60 * args.minutes:
            break
        tried.append({"file": file, "change": what, "outcome": outcome_of(file, tree)})
        if tried[-1]["outcome"] == LIVES:
            print(f"deepcait/{file}:{what}", flush=True)
        if args.out:
            lives = [mutant for mutant in tried if mutant["outcome"] == LIVES]
            facts = {"command": "python -m tests.mutation --minutes 60", "seed": args.seed, "mutants": len(every)}
            facts |= {"tried": len(tried), "killed": len(tried) - len(lives), "lives": lives}
            args.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"{len(tried)} of {len(every)} tried, {sum(m['outcome'] == LIVES for m in tried)} live")


if __name__ == "__main__":
    main()

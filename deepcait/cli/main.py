"""The command `deepcait`: find the verb, run it, turn what happened into an exit code."""

from __future__ import annotations

import difflib
import errno
import importlib
import importlib.metadata
import json
import os
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import TextIO

from deepcait.cli import exits
from deepcait.cli.console import is_under_torchrun, leave_for_torchrun, print_any_character
from deepcait.cli.options import parse_options
from deepcait.errors import ConfigError, DeepcaitError, DeepcaitWarning, Stopped
from deepcait.runtime.messages import is_main_process, print_nowhere, shown

# Verb -> one line for the list. The module deepcait.cli.<verb> holds its Args and run(args).
VERBS = {
    "models": "every variant: parameters, multiply-adds, published accuracy",
    "info": "one model: the same, its preprocessing, classes and provenance",
    "recipes": "recipes, and every key with its default, type and meaning",
    "doctor": "check a data set: damaged, duplicate, stray and mislabelled images",
    "train": "train, fine-tune or distil a model on your images",
    "eval": "measure models on labelled images",
    "predict": "classify pictures",
    "explain": "where a model looked in your pictures, and what its layers do",
    "report": "a run as one page: curves, figures, confusion, mistakes; or two runs compared",
    "bench": "ours against peers: how fast models answer, how fast data is read",
    "study": "run the paper's experiments again at a small scale, its figures beside ours",
    "serve": "answer over HTTP, with a page that shows where the model looked",
    "export": "write a model in the form that others read: onnx, openvino, pt2, timm, the authors' own",
    "push": "put a model into a repository of the Hugging Face hub, with a card",
    "help": "explain an error, or what DATA and MODEL are",
    "demo": "train, measure and use a small model on real photographs, in minutes",
}
# What these log is what they print: it goes to stdout, where results go.
_NARRATING = ("train", "study", "demo")
_LINE_WIDTH = 100
# Turns that a thread of PyTorch (GNU OpenMP) waits for the others before it sleeps; GNU's own default is 300,000.
_PATIENCE = "1000"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv: what follows the word `deepcait`; None takes sys.argv.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in argv
    print_any_character()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.filterwarnings("ignore", module=r"PIL\.")  # our errors say what is wrong with an image
        return _guarded(argv, as_json)


def _guarded(argv: list[str], as_json: bool) -> int:
    """Run the command; what it raises becomes lines and an exit code."""
    try:
        return _run(argv)
    except DeepcaitError as error:
        return _mistake(error.problem, error.remedy, as_json)
    except BrokenPipeError:
        # Whoever read our output has had enough (`deepcait models | head`): the rest goes nowhere, quietly.
        print_nowhere(sys.stdout)
        return exits.DONE
    except Stopped as stopped:
        return _end(str(stopped), exits.STOPPED)
    except exits.Refused as refused:
        return _end(str(refused), exits.REFUSED)
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    except Exception as error:
        mistake = _mendable(error)
        return _defect() if mistake is None else _mistake(*mistake, as_json)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        _print_verbs()
        return exits.DONE
    if argv[0] == "help" and argv[1:2] and argv[1] in VERBS:
        argv = [argv[1], "--help"]
    if argv[0] in ("-V", "--version"):
        # The package itself: importing it by name would be an import upwards.
        print(f"deepcait {sys.modules['deepcait'].__version__}")
        return exits.DONE
    verb, rest = argv[0], argv[1:]
    if verb != "bench":  # which measures PyTorch as it comes
        _share_cores()
    module = _import_verb(verb)
    args = parse_options(module.Args, rest, verb=verb, description=module.__doc__ or "")
    if args is None:  # --help was asked for and shown
        return exits.DONE
    with shown(on_stdout=verb in _NARRATING and "--json" not in argv):
        return module.run(args) or exits.DONE


def _share_cores() -> None:
    """Let threads that wait for each other sleep soon: on cores that others use too, waiting awake takes their turn.

    The choice of whoever set one of these variables stands. It has to be made before PyTorch is imported.
    """
    if "torch" not in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = _PATIENCE


def _import_verb(verb: str) -> ModuleType:
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        raise ConfigError(
            f"expected a verb ({', '.join(VERBS)}), got {verb!r}.",
            remedy=f"Did you mean `deepcait {near[0]}`?" if near else "`deepcait --help` lists them.",
        )
    return importlib.import_module(f"deepcait.cli.{verb}")


def _print_verbs() -> None:
    width = max(map(len, VERBS))
    print("usage: deepcait VERB ...\n\nDeep image transformers with LayerScale and class attention (CaiT).\n")
    for verb, line in VERBS.items():
        print(f"  {verb.ljust(width)}  {line}")
    print("\n`deepcait VERB --help` shows options and examples; `deepcait --version` the version.")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print our own warnings as one line, without the place in our code; those of libraries as Python does."""
    if not issubclass(category, DeepcaitWarning):
        _tell(warnings.formatwarning(message, category, filename, lineno, line).rstrip(), file or sys.stderr)
    elif is_main_process():
        _tell(f"note: {message}", sys.stderr)


def _mistake(problem: str, remedy: str, as_json: bool) -> int:
    """What the user can mend: one paragraph on stderr, or one JSON object on stdout."""
    # An error of one process alone (a folder that its machine lacks) is told by nobody else.
    leave_for_torchrun(f"error: {problem}\nremedy: {remedy}")
    # Outside torchrun a rank may be left over, with no process 0 that would tell; stdout stays that one's all the same.
    if is_main_process() or not is_under_torchrun():
        told = as_json and is_main_process() and _tell(json.dumps({"error": problem, "remedy": remedy}), sys.stdout)
        if not told:
            for label, text in (("error", problem), ("remedy", remedy)):
                line = f"{label}: {' '.join(text.split())}"
                _tell(textwrap.fill(line, _LINE_WIDTH, break_long_words=False, break_on_hyphens=False), sys.stderr)
    return exits.MISTAKE


def _defect() -> int:
    """What we have to mend: the traceback, from every process."""
    traceback.print_exc()
    print("\nThis is a defect of deepcait, not of yours. Please report it with the lines above.", file=sys.stderr)
    return exits.DEFECT


def _end(text: str, code: int) -> int:
    if is_main_process():
        _tell(text, sys.stderr)
    return code


def _tell(text: str, stream: TextIO) -> bool:
    """Print what ended the command; False where that can't be (a full disk, nobody who reads)."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        print_nowhere(stream)
        return False
    return True


def _mendable(error: Exception) -> tuple[str, str] | None:
    """Problem and remedy of an exception of Python's own that the user can mend; None where it is our defect."""
    if isinstance(error, OSError):
        return _file_mistake(error)
    if isinstance(error, ImportError):
        return _missing_package(error)
    if isinstance(error, UnicodeEncodeError) and "\udc80" <= error.object[error.start] <= "\udcff":
        # So Python writes the bytes of a file name that are no UTF-8.
        around = error.object[max(0, error.start - 20) : error.end + 20]
        return f"expected names of files and folders in UTF-8, got {ascii(around)}.", "Rename it."
    return _want_of_memory(error)


def _want_of_memory(error: Exception) -> tuple[str, str] | None:
    """Problem and remedy of memory that was asked for and not there; None where the error is about something else."""
    said = " ".join(str(error).split())
    # PyTorch has an error of its own for accelerators' memory (not imported here) and none for the machine's.
    told = ("can't allocate memory", "not enough memory")
    ours = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not ours and not (isinstance(error, RuntimeError) and any(words in said for words in told)):
        return None
    return (
        f"expected memory for what was asked, got none left ({said[:200] or type(error).__name__}).",
        "Let it do less at once, a smaller batch first of all: `deepcait help out-of-memory`.",
    )


def _file_mistake(error: OSError) -> tuple[str, str] | None:
    """Problem and remedy of a file that is not as it should be; None where the system failed otherwise."""
    path = error.filename or "a file"
    if isinstance(error, FileNotFoundError):
        return f"{path}: expected it to exist, got no such file or folder.", "Check the path, or create its folder."
    if isinstance(error, IsADirectoryError):
        return f"{path}: expected a file, got a folder.", "Give the path of a file."
    if isinstance(error, NotADirectoryError):
        return f"{path}: expected a folder on the way, got a file.", "Give another path."
    if isinstance(error, FileExistsError):
        return f"{path}: expected nothing there, got a file.", "Give another path, or remove it."
    if isinstance(error, PermissionError):
        return f"{path}: expected access, got none.", "Check its permissions, or give another path."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: expected room on the disk, got a full one.", "Free some space, or give another path."
    if error.errno == errno.ENAMETOOLONG:
        return f"{str(path)[:80]}...: expected a path, got a name that is too long.", "Check the path."
    if error.errno == errno.EROFS:
        return f"{path}: expected a disk to write on, got a read-only one.", "Give another path."
    return None


def _missing_package(error: ImportError) -> tuple[str, str] | None:
    """Problem and remedy of a package that is not installed; None where the missing one is our own."""
    if not isinstance(error, ModuleNotFoundError) or (error.name or "deepcait").startswith("deepcait"):
        return None
    name = (error.name or "").partition(".")[0]
    extra = _extra_of(name)
    wanted = f'"deepcait[{extra}]"' if extra else name
    return f"expected the package {name}, which is not installed.", f"pip install {wanted}"


def _extra_of(package: str) -> str | None:
    """The extra of deepcait that brings a package, as its metadata has it."""
    try:
        requirements = importlib.metadata.requires("deepcait") or ()
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return None
    for requirement in requirements:
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if name and extra and name[0].replace("-", "_") == package and extra[1] not in ("dev", "docs"):
            return extra[1]
    return None

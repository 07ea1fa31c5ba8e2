"""The command line: find the command, run it, and turn errors into messages and exit codes."""

from __future__ import annotations

import contextlib
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
from typing import NoReturn, TextIO

from deepcait.cli import exits
from deepcait.cli.console import is_under_torchrun, leave_for_torchrun, print_any_character
from deepcait.cli.options import parse_options
from deepcait.errors import ConfigError, DeepcaitError, DeepcaitWarning, LostProcessError, Stopped
from deepcait.runtime.messages import is_main_process, print_nowhere, shown

# Command -> its line in `deepcait --help`. The module deepcait.cli.<command> has Args and run(args).
COMMANDS = {
    "models": "list models: parameters, multiply-adds, published accuracy",
    "info": "describe one model: sizes, preprocessing, classes, provenance",
    "recipes": "list recipes, and every key with its default, type and meaning",
    "doctor": "check a data set: damaged images, duplicates, equal images with two labels",
    "split": "write a table of the images with splits, or folds for cross-validation",
    "train": "train, fine-tune or distil a model on your images",
    "eval": "evaluate models on labelled images",
    "predict": "classify images",
    "explain": "explain predictions by attention maps; plot a model's layers",
    "report": "write a run's report as an HTML page, or compare several runs",
    "bench": "benchmark inference, training and data loading against timm",
    "study": "reproduce the paper's ablations at small scale",
    "serve": "serve predictions and attention maps over HTTP",
    "export": "export a model: ONNX, OpenVINO, torch.export, timm, official checkpoint",
    "push": "upload a model to the Hugging Face hub, with a model card",
    "help": "explain an error, or what DATA and MODEL are",
    "demo": "run an example of a few minutes: predict, explain, fine-tune, evaluate, export",
}
# Commands whose log is their output, on stdout.
_NARRATING = ("train", "study", "demo")
_LINE_WIDTH = 100
# Spin iterations of an OpenMP thread before it sleeps; GNU's default is 300,000.
_PATIENCE = "1000"


def command() -> NoReturn:
    """Run the command as a program, and end the process with its exit code."""
    exits.leave(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv: arguments after `deepcait`; None means sys.argv.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in argv
    print_any_character()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.filterwarnings("ignore", module=r"PIL\.")  # deepcait's own errors describe bad images
        return _guarded(argv, as_json)


def _guarded(argv: list[str], as_json: bool) -> int:
    """Run the command; exceptions become messages and an exit code."""
    try:
        return _run(argv)
    except DeepcaitError as error:
        return _mistake(error.problem, error.remedy, as_json, isinstance(error, LostProcessError))
    except BrokenPipeError:
        # The reader of the output has exited (`deepcait models | head`): discard the rest.
        print_nowhere(sys.stdout)
        return exits.DONE
    except Stopped as stopped:
        return _end(str(stopped), exits.STOPPED)
    except exits.Refused as refused:
        return _end(str(refused), exits.REFUSED)
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    except Exception as error:
        mistake = _user_error(error)
        return _defect() if mistake is None else _mistake(*mistake, as_json)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        _print_commands()
        return exits.DONE
    if argv[0] == "help" and argv[1:2] and argv[1] in COMMANDS:
        argv = [argv[1], "--help"]
    if argv[0] in ("-V", "--version"):
        # Not imported by name, which would be an import from a higher layer.
        print(f"deepcait {sys.modules['deepcait'].__version__}")
        return exits.DONE
    command, rest = argv[0], argv[1:]
    if command != "bench":  # it measures PyTorch with default settings
        _share_cores()
    module = _import_command(command)
    args = parse_options(module.Args, rest, command=command, description=module.__doc__ or "")
    if args is None:  # --help was shown
        return exits.DONE
    with shown(on_stdout=command in _NARRATING and "--json" not in argv):
        return module.run(args) or exits.DONE


def _share_cores() -> None:
    """Let waiting threads sleep soon, since spinning takes time from other processes on shared cores.

    Values set by the user are kept. This must run before PyTorch is imported.
    """
    if "torch" not in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = _PATIENCE


def _import_command(command: str) -> ModuleType:
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        raise ConfigError(
            f"unknown command {command!r}.",
            remedy=f"Did you mean `deepcait {near[0]}`?" if near else "`deepcait --help` lists the commands.",
        )
    return importlib.import_module(f"deepcait.cli.{command}")


def _print_commands() -> None:
    width = max(map(len, COMMANDS))
    print("usage: deepcait COMMAND ...\n\nDeep image transformers with LayerScale and class attention (CaiT).\n")
    for command, line in COMMANDS.items():
        print(f"  {command.ljust(width)}  {line}")
    print("\n`deepcait COMMAND --help` shows examples and options; `deepcait --version` the version.")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print deepcait's warnings as one line, and those of libraries as Python does."""
    if not issubclass(category, DeepcaitWarning):
        _try_print(warnings.formatwarning(message, category, filename, lineno, line).rstrip(), file or sys.stderr)
    elif is_main_process():
        _try_print(f"note: {message}", sys.stderr)


def _mistake(problem: str, remedy: str, as_json: bool, follows_another: bool = False) -> int:
    """Print an error that the user can fix: one paragraph on stderr, or one JSON object on stdout."""
    # No other process prints an error of a single process (a folder missing on one machine).
    leave_for_torchrun(f"error: {problem}\nremedy: {remedy}", follows_another=follows_another)
    # Outside torchrun, RANK may be a leftover, without a rank 0 that prints; stdout is still rank 0's only.
    if is_main_process() or not is_under_torchrun():
        printed = (
            as_json and is_main_process() and _try_print(json.dumps({"error": problem, "remedy": remedy}), sys.stdout)
        )
        if not printed:
            for label, text in (("error", problem), ("remedy", remedy)):
                line = f"{label}: {' '.join(text.split())}"
                _try_print(textwrap.fill(line, _LINE_WIDTH, break_long_words=False, break_on_hyphens=False), sys.stderr)
    return exits.MISTAKE


def _defect() -> int:
    """Print the traceback of a bug, in every process."""
    traceback.print_exc()
    print("\nThis is a bug in deepcait. Please report it with the lines above.", file=sys.stderr)
    return exits.DEFECT


def _end(text: str, code: int) -> int:
    if is_main_process():
        _try_print(text, sys.stderr)
    return code


def _try_print(text: str, stream: TextIO) -> bool:
    """Print why the command ended; False if that fails (a full disk, or the reader has exited)."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        print_nowhere(stream)
        return False
    return True


def _user_error(error: Exception) -> tuple[str, str] | None:
    """Problem and remedy of a Python exception that the user can fix; None if it is a bug."""
    if isinstance(error, OSError):
        return _file_mistake(error)
    if isinstance(error, ImportError):
        return _missing_package(error)
    if isinstance(error, UnicodeEncodeError) and "\udc80" <= error.object[error.start] <= "\udcff":
        return _name_mistake(error.object, error.start)
    return _out_of_memory(error)


def _name_mistake(text: str, at: int) -> tuple[str, str]:
    """Problem and remedy of a file name with bytes that Python could not read, which it represents as surrogates."""
    before, after = re.split(r"[\0-\x1f]", text[:at])[-1], re.split(r"[\0-\x1f]", text[at:])[0]
    encoding = sys.getfilesystemencoding()
    with contextlib.suppress(UnicodeError):  # it is UTF-8, but Python was told that names are in another encoding
        name = f"{before}{after}".encode(encoding, "surrogateescape").decode("utf-8")
        problem = f"{name}: Python reads file names as {encoding} here, this one is UTF-8."
        return problem, "Set PYTHONUTF8=1, or a UTF-8 locale such as LC_ALL=C.UTF-8."
    return f"a file or folder name is not UTF-8: {ascii(before[-20:] + after[:20])}.", "Rename the file or folder."


def _out_of_memory(error: Exception) -> tuple[str, str] | None:
    """Problem and remedy if memory ran out; None for other errors."""
    said = " ".join(str(error).split())
    # PyTorch has an error class for accelerators' memory (not imported here), but none for main memory.
    texts = ("can't allocate memory", "not enough memory")
    ours = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not ours and not (isinstance(error, RuntimeError) and any(words in said for words in texts)):
        return None
    return (
        f"out of memory: {said[:200] or type(error).__name__}",
        "Reduce the batch size, or set compute.memory=small or compute.grad_checkpointing=true. More: `deepcait help "
        "out-of-memory`.",
    )


def _file_mistake(error: OSError) -> tuple[str, str] | None:
    """Problem and remedy of a file error; None for other system errors."""
    path = error.filename or "a file"
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file or folder.", "Check the spelling of the path, or create its folder."
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder, not a file.", "Give the path of a file."
    if isinstance(error, NotADirectoryError):
        return f"{path}: a part of this path is a file, not a folder.", "Choose a path whose parts are folders."
    if isinstance(error, FileExistsError):
        return f"{path} already exists.", "Choose another path, or remove this file."
    if isinstance(error, PermissionError):
        return f"{path}: permission denied.", "Change its permissions, or choose another path."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full.", "Free space, or choose a path on another disk."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "Too many open files.", "Raise the limit with `ulimit -n 4096`, or use fewer worker processes."
    if error.errno == errno.ENAMETOOLONG:
        return f"{str(path)[:80]}...: the name is too long.", "Use a shorter name."
    if error.errno == errno.EROFS:
        return f"{path}: the file system is read-only.", "Choose a path on another disk."
    return None


def _missing_package(error: ImportError) -> tuple[str, str] | None:
    """Problem and remedy of a package that is not installed; None if it is a module of deepcait."""
    if not isinstance(error, ModuleNotFoundError) or (error.name or "deepcait").startswith("deepcait"):
        return None
    name = (error.name or "").partition(".")[0]
    extra = _extra_of(name)
    wanted = f'"deepcait[{extra}]"' if extra else name
    return f"the package {name} is not installed.", f"Install it: pip install {wanted}"


def _extra_of(package: str) -> str | None:
    """The extra of deepcait with a package, by deepcait's metadata."""
    try:
        requirements = importlib.metadata.requires("deepcait") or ()
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return None
    for requirement in requirements:
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if name and extra and name[0].replace("-", "_") == package and extra[1] not in ("dev", "docs", "ecosystem"):
            return extra[1]
    return None

"""The teacher of distillation: any model, with its own normalisation and size."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcait.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from deepcait.errors import ConfigError, WeightsError
from deepcait.parts import build, is_part, source_digest, split_weights
from deepcait.training.settings import Distillation
from deepcait.weights.hub import HUB_PREFIX, WEIGHTS_FILES, fetch_repository
from deepcait.weights.imagenet import wnids_of
from deepcait.weights.spec import describe, resolve

_TIMM = "timm:"
_WNID = re.compile(r"n\d{8}")
_MAX_REASON = 300


class Teacher:
    """Renormalises and resizes the student's inputs for another model; never trained, never in training mode.

    Args:
        module: any classifier.
        seen: the student's preprocessing: how the given images were normalised.
        mean, std: of the teacher, by channel, of values in [0, 1].
        img_size: height and width of the teacher's input.
        columns: index of the teacher's column for each of the student's classes; None if they are the same.
        sample_K: its logits for an image of the student's mean, by which a resumed run recognises it.
        origin: a line for the user: who teaches, and where its normalisation comes from.
    """

    def __init__(
        self,
        module: nn.Module,
        seen: Preprocessing,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        img_size: tuple[int, int],
        columns: Tensor | None,
        origin: str,
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.img_size = img_size
        self.columns = columns
        self.sample_K = torch.zeros(0)
        self.origin = origin
        # (x * seen.std + seen.mean - mean) / std, as one multiplication and one addition.
        seen_mean, seen_std = torch.tensor(seen.mean), torch.tensor(seen.std)
        own_mean, own_std = torch.tensor(tuple(mean)), torch.tensor(tuple(std))
        self.factor_C11 = (seen_std / own_std)[:, None, None]
        self.offset_C11 = ((seen_mean - own_mean) / own_std)[:, None, None]

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Return the teacher's logits (B, K) for the student's images, mixed or not."""
        dtype = images_BCHW.dtype
        images_BCHW = images_BCHW * self.factor_C11.to(dtype) + self.offset_C11.to(dtype)
        if tuple(images_BCHW.shape[-2:]) != self.img_size:
            images_BCHW = F.interpolate(images_BCHW, self.img_size, mode="bicubic", antialias=True)
        parameter = next(self.module.parameters(), images_BCHW)
        logits_BK = self.module(images_BCHW.to(parameter.dtype))
        return logits_BK if self.columns is None else logits_BK.index_select(1, self.columns)

    def fingerprint(self) -> str:
        """Return the SHA-256 of what its logits follow from but for its code: weights, normalisation, size, columns."""
        columns = None if self.columns is None else self.columns.tolist()
        constants = self.img_size, self.factor_C11.tolist(), self.offset_C11.tolist(), columns
        digest = hashlib.sha256(json.dumps(constants).encode())
        for name, value in self.module.state_dict().items():
            if isinstance(value, Tensor):  # a module of one's own may have others
                value = value.to_dense() if value.layout != torch.strided else value
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device) -> Teacher:
        """Move the teacher and its constants; copying constants in each step would synchronise a GPU with its host."""
        self.module.to(device)
        self.factor_C11, self.offset_C11 = self.factor_C11.to(device), self.offset_C11.to(device)
        self.columns = None if self.columns is None else self.columns.to(device)
        return self


def load_teacher(settings: Distillation, seen: Preprocessing, classes: Sequence[str]) -> Teacher:
    """Return the teacher of a recipe, checked against the student's classes.

    Args:
        settings: the recipe's section.
        seen: the student's preprocessing.
        classes: the student's, in order.

    Raises:
        ConfigError: no such teacher, one for other classes, or a normalisation or size that can't be.
        WeightsError: its weights can't be read or fetched.
    """
    module, own_classes = _build(settings.spec, len(classes))
    cfg = getattr(module, "pretrained_cfg", None) or {}
    cfg = cfg if isinstance(cfg, dict) else vars(cfg)
    mean = settings.mean or cfg.get("mean") or IMAGENET_MEAN
    std = settings.std or cfg.get("std") or IMAGENET_STD
    _require_normalisation(mean, std, seen.channels)
    source = "the recipe" if settings.mean else "its own" if cfg.get("mean") else "ImageNet's, as it names none"
    img_size = _size(settings, cfg, seen)
    teacher = Teacher(
        module,
        seen,
        mean=mean,
        std=std,
        img_size=img_size,
        columns=None,
        origin=f"{settings.spec}: input {img_size[0]} x {img_size[1]} px, mean {list(mean)}, "
        f"std {list(std)} ({source})",
    )
    teacher.sample_K = _sample(teacher, seen, settings.spec)
    num_logits = len(teacher.sample_K)
    own_classes = _class_names(own_classes or cfg.get("label_names"), num_logits, classes)
    expected, whose = (own_classes, "its own") if own_classes else (classes, "the student's")
    if num_logits != len(expected):
        raise ConfigError(
            f"teacher {settings.spec}: expected logits for {whose} {len(expected)} classes, got {num_logits}.",
            remedy="Take a teacher trained on these classes; those of ImageNet are found by their names (wnids such as "
            "n01440764).",
        )
    teacher.columns = _columns(own_classes, classes, settings.spec)
    return teacher


def require_teacher(settings: Distillation) -> None:
    """Pass if the teacher's name is known or its files exist on this machine; loads and downloads nothing.

    Raises:
        ConfigError: no such model, file or factory.
    """
    spec = settings.spec
    if spec.startswith(_TIMM):
        _split_timm(spec.removeprefix(_TIMM))
    elif is_part(spec):
        source_digest(split_weights(spec)[0], "teacher.spec")
    elif not spec.startswith(HUB_PREFIX):
        describe(spec)
    _require_size(settings)


def _class_names(own: Sequence[str] | None, num_logits: int, wanted: Sequence[str]) -> list[str] | None:
    """The teacher's class names; of one without names those of ImageNet, if the student's classes are among them."""
    numbered = own is None or list(own) == [str(index) for index in range(len(own))]
    if numbered and any(_WNID.fullmatch(name) for name in wanted):
        known = wnids_of(num_logits)
        if known is not None and set(wanted) <= set(known):
            return known
    return None if own is None else list(own)


def _build(spec: str, num_classes: int) -> tuple[nn.Module, list[str] | None]:
    if spec.startswith(_TIMM):
        return _build_timm(spec.removeprefix(_TIMM), num_classes), None
    if is_part(spec):
        return _build_own(spec), None
    found = resolve(spec)
    return found.model, found.classes


def _split_timm(text: str) -> tuple[str, str]:
    """Name and path of the weights, "" without one."""
    import timm

    name, _, option = text.partition(",")
    if option and not option.startswith("weights="):
        raise ConfigError(
            f"teacher: expected timm:NAME,weights=PATH, got 'timm:{text}'.",
            remedy="Write timm:NAME or timm:NAME,weights=PATH.",
        )
    path = option.removeprefix("weights=")
    if not timm.is_model(name.partition(".")[0]):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:3]
        hint = f"Did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them."
        raise ConfigError(f"teacher: timm has no model {name!r}.", remedy=hint)
    if path and not Path(path).is_file():
        raise ConfigError(f"teacher: there is no weights file {path!r}.", remedy="Check the path.")
    return name, path


def _build_timm(text: str, num_classes: int) -> nn.Module:
    import timm

    name, path = _split_timm(text)
    try:
        if path:
            return timm.create_model(name, num_classes=_head_of(name, path) or num_classes, checkpoint_path=path)
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=_fetch(name))
    except Exception as error:  # timm and the hub's client raise many kinds
        why = _reason(error.problem if isinstance(error, WeightsError) else str(error)) or type(error).__name__
        remedy = f"Fetch {_address(name)} on a machine with a connection, and give --teacher timm:{name},weights=PATH."
        if path:
            remedy = f"Give a file of this model, as timm.create_model(..., checkpoint_path=PATH) reads it; not {path}."
        raise WeightsError(f"teacher timm:{name}: the weights can't be loaded: {why}.", remedy=remedy) from error


def _reason(message: str) -> str:
    """The lines of another program's error as one sentence, cut where it goes into every tensor."""
    text = " ".join(line.strip() for line in message.splitlines() if line.strip()).rstrip(".")
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]} ..."


def _head_of(name: str, path: str) -> int | None:
    """The number of classes of the head in a weights file of timm; None if it is not known."""
    from timm.models import get_pretrained_cfg, load_state_dict

    cfg = get_pretrained_cfg(name)
    heads = cfg.classifier if cfg is not None else None
    try:
        tensors = load_state_dict(path)
    except Exception:  # timm reports why when it loads the file
        return None
    for head in (heads,) if isinstance(heads, str) else heads or ():
        for key in (f"{head}.bias", f"{head}.weight"):
            if key in tensors:
                return int(tensors[key].shape[0])
    return None


def _fetch(name: str) -> dict[str, str]:
    """Download the weights of a timm model as those of MODEL are, once and verified, and pass their path to timm.

    The few that are not on the hub, or have another format, are left to timm.
    """
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id or cfg.hf_hub_filename or cfg.custom_load:
        return {}
    folder = fetch_repository(cfg.hf_hub_id)
    return next(({"file": str(folder / file)} for file in WEIGHTS_FILES if (folder / file).is_file()), {})


def _address(name: str) -> str:
    """The address of the weights of a timm model, for a manual download."""
    from huggingface_hub import hf_hub_url
    from timm.models import get_pretrained_cfg

    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:  # no such tag
        cfg = None
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        return "them"
    return hf_hub_url(cfg.hf_hub_id, cfg.hf_hub_filename or WEIGHTS_FILES[0]) if cfg.hf_hub_id else str(cfg.url)


def _build_own(spec: str) -> nn.Module:
    model = build(spec, "teacher")
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"teacher: expected {spec} to return a torch module, got {type(model).__name__}.",
            remedy="Let the factory, called without arguments, return the model with its weights.",
        )
    return model


def _require_normalisation(mean: Sequence[float], std: Sequence[float], num_channels: int) -> None:
    # One value is used for all channels, and a grey student's image for three.
    if len({len(mean), len(std), num_channels} - {1}) > 1 or min(std) <= 0:
        raise ConfigError(
            f"teacher.mean, teacher.std: expected one value per channel ({num_channels}) and std above 0, got "
            f"{list(mean)} and {list(std)}.",
            remedy="Set both; null takes the teacher's own.",
        )


def _require_size(settings: Distillation) -> None:
    size = settings.img_size
    if size not in ("own", "student") and not (isinstance(size, int) and size > 0):
        raise ConfigError(
            f"teacher.img_size: expected own, student or a side in pixels, got {size!r}.", remedy="Choose one."
        )


def _size(settings: Distillation, cfg: dict, seen: Preprocessing) -> tuple[int, int]:
    _require_size(settings)
    if isinstance(settings.img_size, int):
        return settings.img_size, settings.img_size
    own = cfg.get("input_size")
    return tuple(own[-2:]) if own and settings.img_size == "own" else seen.img_size


def _columns(own: Sequence[str] | None, wanted: Sequence[str], spec: str) -> Tensor | None:
    # Classes that are bare integers are the teacher's own indices.
    bare = own is not None and list(wanted) == [str(index) for index in range(len(own))]
    if own is None or bare or list(own) == list(wanted):
        return None
    index_of = {name: index for index, name in reversed(list(enumerate(own)))}  # of equal names the first
    missing = [name for name in wanted if name not in index_of]
    if missing:
        raise ConfigError(
            f"teacher {spec}: it lacks these classes of the student: {', '.join(missing[:5])}"
            f"{' ...' if len(missing) > 5 else ''}.",
            remedy="Take a teacher trained on these classes.",
        )
    return torch.tensor([index_of[name] for name in wanted])


def _sample(teacher: Teacher, seen: Preprocessing, spec: str) -> Tensor:
    try:
        answer = teacher(torch.zeros(1, seen.channels, *seen.img_size))
    except Exception as error:  # any network can be here, and each raises its own error
        reason = _reason(str(error)) or type(error).__name__
        raise ConfigError(
            f"teacher {spec}: the forward pass failed for an image of {teacher.img_size[0]} x {teacher.img_size[1]} px "
            f"with {seen.channels} channels: {reason}.",
            remedy="Set teacher.img_size to the side in pixels that it was built for (own takes what it declares), or "
            "take another teacher.",
        ) from error
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 1:
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ConfigError(
            f"teacher {spec}: expected logits (1, classes) for one image, got {got}.",
            remedy="Take a classifier.",
        )
    if not answer.isfinite().all():
        raise ConfigError(
            f"teacher {spec}: the logits contain NaN or infinity.",
            remedy="Its weights or its normalisation are damaged; take another teacher.",
        )
    return answer[0]

"""The initial model of a run, resolved from MODEL, and its copy in the run folder for resuming."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from deepcait.data.seeding import derive_seed, seed_everything
from deepcait.model.alternatives import AblationConfig, apply_overrides
from deepcait.model.network import NetworkConfig
from deepcait.model.networks import build_model, config_of, is_model_name, named_config
from deepcait.model.variants import CaiTConfig
from deepcait.parts import is_part, split_weights
from deepcait.training.checkpoint import newest_checkpoint
from deepcait.training.compute import note_of
from deepcait.training.journal import replace_text
from deepcait.training.recipe import Recipe
from deepcait.weights.own import count_network
from deepcait.weights.spec import Resolved, describe, resolve

_logger = logging.getLogger(__name__)
START_FILE = "start.json"
_KEPT = ("spec", "kind", "name", "classes", "pretrained_cfg")
# Above it AdamW is known to undo what trained weights know (deit issue 88).
_HIGH_LR = 5e-4


def start_of(recipe: Recipe) -> str:
    """Describe what training starts from; for a model name the recipe decides between random and released weights."""
    if is_part(recipe.model):
        return f"the network of {recipe.model}"
    if not is_model_name(recipe.model):
        return f"the weights of {recipe.model}"
    if recipe.start == "released":
        return f"the released weights of {recipe.model}"
    return f"{recipe.model} with random weights"


def start_model(recipe: Recipe, classes: Sequence[str]) -> Resolved:
    """Return the initial model, with a head for the classes of the data.

    Its random parts (all of it, or a new head) are drawn from the recipe's seed.
    """
    fields = shape_of(recipe)
    seed_everything(derive_seed("init", recipe.seed))
    found = resolve(
        recipe.model,
        start=cast("Literal['random', 'released']", recipe.start),
        classes=classes,
        keep_rows=recipe.keep_rows,
        ablation=dataclasses.asdict(recipe.ablation),
        **fields,
    )
    _describe(found, recipe)
    if found.report and str(found.report):
        _logger.info("weights: %s", found.report)
    random = is_part(recipe.model) or (is_model_name(recipe.model) and recipe.start == "random")
    if not random and recipe.train == "all" and recipe.optimizer.name == "adamw" and recipe.peak_lr > _HIGH_LR:
        _logger.warning("a learning rate of %g is one for random weights; trained ones may be lost", recipe.peak_lr)
    return found


def shape_of(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of the model's configuration that a recipe overrides."""
    fields = {"img_size": recipe.img_size, "drop_path_rate": recipe.drop_path_rate, "drop_rate": recipe.drop_rate}
    fields |= {"layer_scale_init": recipe.layer_scale_init} | dataclasses.asdict(recipe.shape)
    return {name: value for name, value in fields.items() if value is not None}


def planned_config(recipe: Recipe, num_classes: int, folder: Path | None = None) -> NetworkConfig:
    """Return the configuration that training would use, without touching weights.

    Args:
        recipe: of the run.
        num_classes: of the data.
        folder: of the run; if it is resumed, its initial model need not exist any more.
    """
    if folder is not None and (facts := _kept_facts(folder, recipe)):
        return config_of(facts["config"])
    config = named_config(recipe.model) if is_model_name(recipe.model) else config_of(describe(recipe.model)["config"])
    config = config.replace(**shape_of(recipe), num_classes=num_classes)
    return apply_overrides(config, dataclasses.asdict(recipe.ablation))


def keep_start(folder: Path, found: Resolved) -> None:
    """Write what resuming needs about the initial model, besides the weights in a checkpoint, to the run folder.

    Raises:
        RunError: the folder can't be written.
    """
    facts = {name: getattr(found, name) for name in _KEPT}
    facts["config"] = dataclasses.asdict(found.model.config)
    replace_text(folder / START_FILE, json.dumps(facts, indent=1) + "\n")


def has_start(folder: Path) -> bool:
    """Whether a run folder describes the initial model of its run."""
    return (folder / START_FILE).is_file()


def kept_start(folder: Path, recipe: Recipe) -> Resolved | None:
    """Return the model of a run without its weights, which a checkpoint has; None if there is no checkpoint yet.

    So a run continues where the model that it started from was moved, deleted, or can't be fetched any more.
    """
    facts = _kept_facts(folder, recipe)
    if facts is None:
        return None
    seed_everything(derive_seed("init", recipe.seed))
    if is_part(recipe.model):
        return _own_start(recipe, facts)
    model = build_model(config_of(facts["config"]))
    model.pretrained_cfg = facts["pretrained_cfg"]
    found = Resolved(model=model, **{name: facts[name] for name in _KEPT})
    _describe(found, recipe)
    return found


def _kept_facts(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """What `keep_start` wrote; None if there is no checkpoint with the weights yet, or the file is unreadable."""
    if not has_start(folder) or newest_checkpoint(folder / "checkpoints")[0] is None:
        return None
    try:
        facts = json.loads((folder / START_FILE).read_text(encoding="utf-8"))
        return {name: facts[name] for name in (*_KEPT, "config")}
    except (OSError, ValueError, TypeError, KeyError):
        _logger.warning("%s is unreadable; looking for %s instead", START_FILE, recipe.model)
        return None


def _own_start(recipe: Recipe, facts: dict[str, Any]) -> Resolved:
    """The network that the factory of a user's part returns."""
    part, _ = split_weights(recipe.model)
    found = resolve(part, classes=facts["classes"], **shape_of(recipe))
    found.model.pretrained_cfg = facts["pretrained_cfg"]
    found = dataclasses.replace(found, spec=facts["spec"], pretrained_cfg=facts["pretrained_cfg"])
    _describe(found, recipe)
    return found


def _describe(found: Resolved, recipe: Recipe) -> None:
    config = found.model.config
    kind = "a CaiT" if isinstance(config, CaiTConfig) else "a convolutional teacher"
    kind = str(found.spec) if found.kind == "own" else kind
    num_params, macs = count_network(found.model) if found.kind == "own" else (config.num_params(), config.macs())
    facts = f"{num_params:,} parameters, {macs / 1e9:.3g} GMACs per image"
    _logger.info("model: %s, %s", found.name or kind, facts)
    if isinstance(config, AblationConfig) and config.options:
        options = ", ".join(f"{name} {value}" for name, value in config.options.items())
        _logger.info("instead of the paper's: %s", options)
    if note := note_of(config, recipe.compute):
        _logger.warning(note)

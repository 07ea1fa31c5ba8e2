"""LoRA through PEFT: the weights of linear layers are frozen, and a low-rank update of each is trained.

    y = W x + (alpha / rank) B A x        A: (rank, in), random; B: (out, rank), 0 at the start

"LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2022). All weights of the head are trained.
"""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from deepcait.data.seeding import derive_seed, seed_everything
from deepcait.errors import ConfigError, some
from deepcait.model.network import Network, as_module
from deepcait.optional import require
from deepcait.runtime.files import replace_folder
from deepcait.training.optimizer import is_head
from deepcait.training.settings import Lora

ADAPTERS = "adapters"


def require_lora() -> Any:
    """Return PEFT. Raises ConfigError if it is not installed."""
    return require("peft", asked="train=lora", extra="lora")


def add_lora(model: Network, lora: Lora, seed: int) -> None:
    """Add updates to the chosen layers of a network, in place; their initial values follow from the seed.

    Raises:
        ConfigError: PEFT is not installed, or a pattern that no linear layer's name matches.
    """
    peft = require_lora()
    names = _targets(model, lora)
    seed_everything(derive_seed("lora", seed))
    peft.inject_adapter_in_model(_config(peft, lora, names), as_module(model))


def merged(model: nn.Module) -> nn.Module:
    """Return the plain network: its updates are added to the weights of their layers.

    The network itself stays as it is. Tensors without an update are shared with it, not copied.
    """
    layer_type = _layer_type()
    layers = [module.get_base_layer() for module in model.modules() if isinstance(module, layer_type)]
    updated = {id(parameter) for layer in layers for parameter in layer.parameters()}
    kept = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in updated]
    model = copy.deepcopy(model, {id(tensor): tensor for tensor in kept})
    for name, module in list(model.named_modules()):
        if isinstance(module, layer_type):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    return model


def save_adapters(folder: Path, model: Network, lora: Lora) -> None:
    """Write the updates and the head in PEFT's format, for `peft.PeftModel.from_pretrained`.

    Raises:
        WriteError: the folder can't be written.
    """
    peft = require_lora()
    tensors: dict[str, Tensor] = {}
    names = [name for name, module in as_module(model).named_modules() if isinstance(module, _layer_type())]
    for name, parameter in as_module(model).state_dict().items():
        if "lora_" in name or is_head(model, name):
            tensors[f"base_model.model.{name.replace('.default.', '.')}"] = parameter.detach().cpu().contiguous()
    heads = sorted({name.rpartition(".")[0] for name, _ in model.named_parameters() if is_head(model, name)})
    config = _config(peft, lora, names)
    config.modules_to_save, config.inference_mode = heads, True

    def fill(aside: Path) -> None:
        save_file(tensors, aside / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(aside))

    replace_folder(folder, fill)


def _config(peft: Any, lora: Lora, names: list[str]) -> Any:
    return peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names, lora_dropout=0.0)


def _layer_type() -> Any:
    return require("peft.tuners.tuners_utils", asked="train=lora", extra="lora").BaseTunerLayer


def _names(linear: list[str]) -> str:
    if not linear:
        return "The network has no linear layers but the head: use train=all or train=head."
    return f"Choose among {some(linear, 6)}; * stands for any text."


def _targets(model: Network, lora: Lora) -> list[str]:
    linear = [name for name, module in as_module(model).named_modules() if isinstance(module, nn.Linear)]
    linear = [name for name in linear if not is_head(model, f"{name}.weight")]
    chosen = []
    for pattern in lora.targets:
        found = [name for name in linear if fnmatchcase(name, pattern)]
        if not found and lora.targets != Lora().targets:
            problem = f"lora.targets: no linear layer has a name like {pattern!r}."
            raise ConfigError(problem, remedy=_names(linear))
        chosen += found
    if not lora.targets:
        raise ConfigError("lora.targets: expected at least one pattern, got none.", remedy="For example ['*.qkv'].")
    if not chosen:
        problem = f"lora.targets: no linear layer of this network has a usual name ({', '.join(lora.targets)})."
        raise ConfigError(problem, remedy=_names(linear))
    return sorted(set(chosen))

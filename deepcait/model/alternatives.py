"""Alternatives compared in the paper, as options on top of a CaiT's configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from deepcait.errors import ConfigError
from deepcait.model.network import NetworkConfig
from deepcait.model.variants import CaiTConfig

C = TypeVar("C", bound=NetworkConfig)
RESIDUALS = ("layerscale", "scalar", "rezero", "skipinit", "fixup", "tfixup", "none")
CLASS_TOKENS = ("class_stage", "inserted", "average")
TALKING_HEADS = ("both", "before", "after", "none")
DROP_PATH_SHAPES = ("uniform", "linear")
SCALAR_RULES = ("scalar", "rezero", "skipinit", "fixup")


@dataclass(frozen=True, kw_only=True)
class AblationConfig(CaiTConfig):
    """Configuration of a CaiT with alternatives from the paper's ablations.

    Args:
        residual: the multiplier of a residual branch, and the initial weights inside it.

            | value      | multiplier, initial value              | weights inside the branch                       |
            |------------|----------------------------------------|-------------------------------------------------|
            | layerscale | vector per branch, `layer_scale_init`  | as CaiT                                         |
            | scalar     | scalar per branch, `layer_scale_init`  | as CaiT                                         |
            | rezero     | scalar per branch, 0                   | as CaiT                                         |
            | skipinit   | scalar per branch, 1 / sqrt(branches)  | as CaiT                                         |
            | fixup      | scalar per branch, 1                   | see `init_fixup`; the classifier starts at 0    |
            | tfixup     | none                                   | see `init_tfixup`                               |
            | none       | none                                   | as CaiT                                         |

        pre_norm: normalise the input of each branch. The original ReZero, SkipInit, Fixup and T-Fixup do not; so they
            did not converge, and the paper added the norms (and warm-up). The last norm is always there.
        class_token: `class_stage`: added after the patch stage, in class-attention blocks (CaiT). `inserted`: added to
            the patches before block `insert_at` and takes part in self-attention; at 0 this is ViT.
            `average`: no class token; the mean of the normalised patch tokens is classified. The last two have no class
            stage.
        insert_at: block of the patch stage, from 0, before which an `inserted` class token is added.
        class_mlp: False omits the MLPs of the class stage.
        talking_heads: where heads are mixed: before the softmax, after it, both, or none.
        drop_path_shape: `uniform`: `drop_path_rate` in every block. `linear`: from 0 in the first block to
            `drop_path_rate` in the last, half of it on average (DeiT).

    Raises:
        ConfigError: a value is not valid.

    Source: Touvron et al. 2021, arXiv:2103.17239, Eq. 3 and Tables 1 and 2. ReZero: Bachlechner et al. 2020,
        arXiv:2003.04887. SkipInit: De and Smith 2020, arXiv:2002.10444. Fixup: Zhang et al. 2019,
        arXiv:1901.09321. T-Fixup: Huang et al. 2020 (ICML).
    Deviation: ReZero's own code shares one scalar between the two branches of a block; its paper has one per branch, as
        here. SkipInit's other initial value, 0, is `rezero`.
    """

    residual: str = "layerscale"
    pre_norm: bool = True
    class_token: str = "class_stage"
    insert_at: int = 0
    class_mlp: bool = True
    talking_heads: str = "both"
    drop_path_shape: str = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {"residual": RESIDUALS, "class_token": CLASS_TOKENS, "talking_heads": TALKING_HEADS}
        for name, allowed in (choices | {"drop_path_shape": DROP_PATH_SHAPES}).items():
            if getattr(self, name) not in allowed:
                problem = f"{name}: expected {' or '.join(allowed)}, got {getattr(self, name)!r}."
                raise ConfigError(problem, remedy=f"Set {name} to one of these values.")
        whole = isinstance(self.insert_at, int) and not isinstance(self.insert_at, bool)
        if not whole or not 0 <= self.insert_at < self.depth:
            raise ConfigError(
                f"insert_at: expected a block of the patch stage, 0 to {self.depth - 1}, got {self.insert_at!r}.",
                remedy="To add the class token after the last block, use class_token: class_stage.",
            )

    @property
    def options(self) -> dict[str, Any]:
        """The options that differ from the paper's CaiT."""
        own = {field.name for field in dataclasses.fields(CaiTConfig)}
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in own and getattr(self, field.name) != field.default
        }

    @property
    def same_at_inference(self) -> bool:
        """Whether the trained network is a plain CaiT, in its tensors and its function."""
        return self.options.keys() <= {"drop_path_shape", "insert_at"}

    @property
    def class_blocks(self) -> int:
        """Blocks of the class stage; 0 if there is none."""
        return self.cls_depth if self.class_token == "class_stage" else 0

    @property
    def num_branches(self) -> int:
        """Residual branches of the whole network: Fixup's L."""
        return 2 * self.depth + (1 + self.class_mlp) * self.class_blocks

    @property
    def drop_path_rates(self) -> list[float]:
        """The drop-path rate of every block of the patch stage."""
        if self.drop_path_shape == "uniform":
            return [self.drop_path_rate] * self.depth
        return [self.drop_path_rate * index / max(1, self.depth - 1) for index in range(self.depth)]

    def num_params(self) -> int:
        """Return the exact number of parameters."""
        d, a, h, k = self.embed_dim, self.num_heads, self.hidden_dim, self.num_classes
        scale = d if self.residual == "layerscale" else int(self.residual in SCALAR_RULES)
        around = scale + 2 * d * self.pre_norm  # of one branch
        attention, mlp = 4 * d * d + 4 * d + around, 2 * d * h + h + d + around
        mixings = {"both": 2, "before": 1, "after": 1, "none": 0}[self.talking_heads] * (a * a + a)
        blocks = self.depth * (attention + mlp + mixings) + self.class_blocks * (attention + self.class_mlp * mlp)
        patch_embed = self.in_chans * self.patch_size**2 * d + d
        token = d * (self.class_token != "average")
        return blocks + patch_embed + token + self.num_patches * d + 2 * d + k * d + k

    def macs(self) -> int:
        """Return the multiply-adds of one image: matrix products only."""
        d, a, h, n = self.embed_dim, self.num_heads, self.hidden_dim, self.num_patches
        mixings = {"both": 2, "before": 1, "after": 1, "none": 0}[self.talking_heads]
        total = n * self.in_chans * self.patch_size**2 * d + d * self.num_classes
        for index in range(self.depth):
            t = n + (self.class_token == "inserted" and index >= self.insert_at)
            total += 4 * t * d * d + 2 * t * d * h + 2 * t * t * d + mixings * t * t * a * a
        class_block = 2 * (n + 1) * d * d + 2 * d * d + 2 * (n + 1) * d + 2 * d * h * self.class_mlp
        return total + self.class_blocks * class_block


def apply_overrides(config: C, options: Mapping[str, Any]) -> C | CaiTConfig:
    """Return a configuration with alternatives applied; None keeps an option as it is.

    If no alternative is left, the result is a plain `CaiTConfig`.

    Raises:
        ConfigError: an option is unknown, a value is not valid, or the network is not a CaiT.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return config
    if not isinstance(config, CaiTConfig):
        raise ConfigError(
            f"ablation.{next(iter(given))}: only a CaiT has these options; the model is another network.",
            remedy="Remove the setting, or choose a CaiT as the model.",
        )
    plain = {field.name: getattr(config, field.name) for field in dataclasses.fields(CaiTConfig)}
    base = config if isinstance(config, AblationConfig) else AblationConfig(**plain)
    changed = cast("AblationConfig", base.replace(**given))
    return changed if changed.options else CaiTConfig(**plain)

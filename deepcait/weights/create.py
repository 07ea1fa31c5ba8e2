"""`create_model`, and timm's feature extractor around a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from deepcait.errors import ConfigError
from deepcait.model.cait import CaiT
from deepcait.model.networks import require_cait
from deepcait.model.variants import variant_config
from deepcait.weights.spec import resolve

if TYPE_CHECKING:
    from timm.models._features import FeatureGetterNet


@overload
def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    features_only: Literal[False] = False,
    **overrides: Any,
) -> CaiT: ...


@overload
def create_model(
    name: str,
    *,
    pretrained: bool = False,
    img_size: int | tuple[int, int] | None = None,
    features_only: Literal[True],
    out_indices: int | Sequence[int] = 3,
    **overrides: Any,
) -> FeatureGetterNet: ...


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] = 3,
    feature_cls: str = "getter",
    **overrides: Any,
) -> CaiT | FeatureGetterNet:
    """Build a model by name, with random or with released weights.

    With released weights, only a head with another number of classes is randomly initialised; another image size
    resizes the position embedding.

    >>> create_model("cait_nano_32").num_classes
    10

    Args:
        name: one of `list_models()`.
        pretrained: load the released weights, from the cache or the hub; cait_nano_32's are in the package.
        num_classes: K; None means the default (1000; cait_nano_32: 10).
        img_size: height and width; None means the size in the name.
        features_only: return timm's `FeatureGetterNet` around the model: images to a list of maps (B, D, rows,
            columns), the patch tokens after chosen blocks, without the final norm.
        out_indices: with `features_only`: the last n blocks, or these blocks.
        feature_cls: with `features_only`: only "getter" is supported.
        overrides: other fields of `CaiTConfig`, such as drop_path_rate.

    Raises:
        ConfigError: a name or field is unknown, sizes do not fit, or there are no released weights.
        WeightsError: the released weights are not available, or do not fit the overrides.
    """
    variant_config(name)  # raises for any other MODEL, with suggestions
    if feature_cls != "getter":
        raise ConfigError(f"feature_cls: expected 'getter', got {feature_cls!r}.", remedy="Omit the argument.")
    start = "released" if pretrained else "random"
    found = resolve(name, start=start, num_classes=num_classes, img_size=img_size, **overrides)
    model = require_cait(found.model).train()
    if not features_only:
        return model
    from timm.models._features import FeatureGetterNet

    getter = FeatureGetterNet(model, out_indices if isinstance(out_indices, int) else tuple(out_indices))
    for name in ("pretrained_cfg", "default_cfg"):  # as timm's factory does
        setattr(getter, name, model.pretrained_cfg)
    return getter

"""The CaiT network: pure functions of tensors, without files, devices, logging or registries."""

from deepcait.model.cait import CaiT as CaiT
from deepcait.model.variants import VARIANTS as VARIANTS
from deepcait.model.variants import CaiTConfig as CaiTConfig
from deepcait.model.variants import variant_config as variant_config

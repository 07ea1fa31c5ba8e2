"""Which linear layers get LoRA's updates; what is trained and saved is in tests/ecosystem/test_lora.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepcait.errors import ConfigError
from deepcait.training.lora import _targets
from deepcait.training.settings import Lora
from tests.training.tiny import tiny_model


class Plain(nn.Module):
    """A transformer block without class attention: it has no q, k and v of its own."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.block = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})
        self.head = nn.Linear(4, 2)


def test_the_default_takes_the_known_names_that_a_network_has():
    assert _targets(Plain("qkv", "proj", "fc1"), Lora()) == ["block.proj", "block.qkv"]
    chosen = {name.rpartition(".")[2] for name in _targets(tiny_model(torch.float32), Lora())}
    assert chosen == {"qkv", "q", "k", "v", "proj"}


@pytest.mark.parametrize(
    ("names", "targets", "problem", "remedy"),
    [
        (["fc1"], Lora().targets, "no linear layer of this network has a usual name", "Choose among block.fc1"),
        ([], Lora().targets, "no linear layer of this network has a usual name", "use train=all or train=head"),
        (["qkv"], ("*.qkv", "*.q"), r"no linear layer has a name like '\*\.q'", "Choose among block.qkv"),
    ],
)
def test_without_such_a_layer_it_is_an_error(names, targets, problem, remedy):
    with pytest.raises(ConfigError, match=problem) as caught:
        _targets(Plain(*names), Lora(targets=targets))
    assert remedy in caught.value.remedy

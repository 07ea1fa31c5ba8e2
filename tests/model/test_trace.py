"""One forward pass gives logits, features and the attention of both stages, and what users attach takes part in it."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
from PIL import Image
from torch import nn

import deepcait
from deepcait.errors import ConfigError
from deepcait.explain import DEFAULT_METHODS, gradient_attention
from deepcait.explain.figures import read_results
from deepcait.explain.layers import measure_layers
from deepcait.explain.writer import write_gallery
from deepcait.model.ablation import AblatedCaiT
from deepcait.model.alternatives import AblationConfig
from deepcait.model.attention import ClassAttention
from deepcait.model.trace import Trace, trace
from deepcait.model.wrappers import unwrap
from tests.explain.test_maps import by_hand, model_and_images


@torch.no_grad()
def test_a_trace_holds_what_separate_passes_give():
    model, images_BCHW = model_and_images((24, 48))
    traced = trace(model, images_BCHW)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(traced.logits, model(images_BCHW), **close)
    features_BD = model.forward_head(model.forward_features(images_BCHW), pre_logits=True)
    torch.testing.assert_close(traced.features, features_BD, **close)
    torch.testing.assert_close(traced.class_attention, by_hand(model, images_BCHW), **close)
    tokens_BND = model._embed(images_BCHW)
    for index, block in enumerate(model.blocks):
        mixed_BANN = block.attn.attend(block.norm1(tokens_BND))[2]
        torch.testing.assert_close(traced.patch_attention[:, index], mixed_BANN.abs().mean(1), **close)
        tokens_BND = block(tokens_BND)
    torch.testing.assert_close(traced.patches, tokens_BND, **close)


# What reaches the last layer of the model, and what ends before it.
PASSES = {
    "forward": (lambda model, images: model(images), set()),
    "forward_features": (lambda model, images: model.forward_features(images), {"head"}),
    "forward_intermediates": (lambda model, images: model.forward_intermediates(images, norm=False), {"head"}),
    "class_attention": (lambda model, images: model.class_attention(images), {"head", "norm"}),
    "trace": (trace, set()),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("run", "not_reached"), PASSES.values(), ids=PASSES.keys())
def test_the_hooks_of_every_module_fire_once(run, not_reached, backend):
    """Forward and backward, those of `attn` of the class blocks too."""
    model, images_BCHW = model_and_images()
    model.set_backend(backend)
    forward, backward = Counter(), Counter()
    names = {name for name, module in model.named_modules() if name and not isinstance(module, nn.ModuleList)}
    for name in names:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: forward.update([name]))
        module.register_full_backward_hook(lambda *_, name=name: backward.update([name]))
    before = [set(vars(module)) for module in model.modules()]
    returned = run(model, images_BCHW.requires_grad_())
    assert forward == dict.fromkeys(names - not_reached, 1)
    assert len(forward) > 40
    assert model.backend == backend
    assert [set(vars(module)) for module in model.modules()] == before
    tensors = returned if isinstance(returned, tuple) else (returned,)
    if isinstance(returned, Trace):
        tensors = (returned.logits, returned.class_attention)
    sum(tensor.square().sum() for tensor in tensors if isinstance(tensor, torch.Tensor)).backward()
    assert set(backward.values()) == {1}
    # The last block's MLP and projection have no effect on its own attention.
    last = f"blocks_token_only.{len(model.blocks_token_only) - 1}"
    no_effect = {name for name in names if name.startswith(last) and run is PASSES["class_attention"][0]}
    assert names - not_reached - set(backward) <= no_effect


@pytest.mark.parametrize("methods", ["class-attention", DEFAULT_METHODS])
def test_the_hooks_of_every_module_fire_once_per_explanation(methods, tmp_path):
    """With the gradient too, from Python and on a page with plots of the layers."""
    classifier = deepcait.load("builtin:nano", device="cpu")
    names = {
        name for name, module in classifier.model.named_modules() if name and not isinstance(module, nn.ModuleList)
    }
    calls = Counter()
    for name in names:
        classifier.model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    image = Image.new("RGB", (32, 32))
    classifier.explain(image, methods=methods)
    assert calls == dict.fromkeys(names, 1)
    image.save(tmp_path / "image.png")
    given = {"name": "x", "methods": methods, "results": read_results(None)}
    write_gallery(classifier, [tmp_path / "image.png"], tmp_path / "out", **given)
    assert calls == dict.fromkeys(names, 2)


@torch.no_grad()
def test_passes_in_two_threads_do_not_disturb_each_other():
    """While one thread is in the middle of a watched pass, another runs a whole one, and a plain one."""
    model, images_BCHW = model_and_images()
    expected, logits_BK = trace(model, images_BCHW), model(images_BCHW)
    others = []

    def run_others(*_):
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: others.extend((trace(model, images_BCHW), model(images_BCHW))))
            thread.start()
            thread.join()

    with torch.no_grad():
        model.blocks_token_only[1].attn.register_forward_hook(run_others)
        traced = trace(model, images_BCHW)
    for one in (traced, others[0]):
        assert torch.equal(one.class_attention, expected.class_attention)
        assert torch.equal(one.patch_attention, expected.patch_attention)
    torch.testing.assert_close(others[1], logits_BK)


@torch.no_grad()
def test_a_replaced_part_takes_effect():
    model, images_BCHW = model_and_images()
    plain = trace(model, images_BCHW)
    model.blocks[1].attn.register_forward_hook(lambda module, args, out: 2 * out)
    model.blocks_token_only[0].norm1 = nn.Identity()
    changed = trace(model, images_BCHW)
    torch.testing.assert_close(changed.logits, model(images_BCHW), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(changed.patch_attention, plain.patch_attention)
    assert (changed.class_attention - plain.class_attention).abs().max() > 0.01


class Doubled(ClassAttention):
    def forward(self, tokens_BTD):
        return 2 * super().forward(tokens_BTD)


class Sharper(ClassAttention):
    def attend(self, tokens_BTD):
        q_BA1E, k_BATE, v_BATE = self._queries_keys_values(tokens_BTD)
        weights_BA1T = (4 * self.scale * q_BA1E @ k_BATE.transpose(-2, -1)).softmax(-1)
        return self.proj((weights_BA1T @ v_BATE).transpose(1, 2).flatten(2)), weights_BA1T


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, tokens_BTD):
        return self.inner(tokens_BTD) + 3.0 * tokens_BTD[:, :1]


class Silent(nn.Module):
    def forward(self, tokens_BTD):
        return tokens_BTD[:, :1]


class Twice(Wrapped):
    def forward(self, tokens_BTD):
        return self.inner(tokens_BTD) + self.inner(tokens_BTD)


def replace_attention(block, kind):
    if issubclass(kind, ClassAttention):
        block.attn.__class__ = kind
    else:
        block.attn = kind(block.attn) if issubclass(kind, Wrapped) else kind()


@pytest.mark.parametrize("kind", [Doubled, Sharper, Wrapped])
@torch.no_grad()
def test_a_replaced_attention_is_what_computes(kind):
    model, images_BCHW = model_and_images()
    plain = trace(model, images_BCHW)
    replace_attention(model.blocks_token_only[0], kind)
    changed = trace(model, images_BCHW)
    torch.testing.assert_close(changed.logits, model(images_BCHW), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(changed.class_attention, model.class_attention(images_BCHW), rtol=1e-5, atol=1e-5)
    difference_BLAT = (changed.class_attention - plain.class_attention).abs()
    assert difference_BLAT[:, 1].max() > 0.01  # the second block's input has changed
    assert (difference_BLAT[:, 0].max() > 0.01) == (kind is Sharper)


@pytest.mark.parametrize(("kind", "times"), [(Silent, "never"), (Twice, "2 times")])
@torch.no_grad()
def test_an_attention_that_gives_no_weights_is_named(kind, times):
    model, images_BCHW = model_and_images()
    patches_BND = trace(model, images_BCHW).patches
    replace_attention(model.blocks_token_only[1], kind)
    for run in (
        lambda: trace(model, images_BCHW),
        lambda: model.class_attention(images_BCHW),
        lambda: gradient_attention(model, patches_BND, torch.tensor([0, 1])),
    ):
        with pytest.raises(ConfigError, match=rf"blocks_token_only\.1\.attn \({kind.__name__}\) .*{times}"):
            run()
    model(images_BCHW)  # and watches nothing


@torch.no_grad()
def test_without_the_weights_of_a_patch_block_there_is_no_rollout():
    model, images_BCHW = model_and_images()
    model.blocks[0].attn = nn.Identity()
    assert trace(model, images_BCHW).patch_attention is None
    with pytest.raises(ConfigError, match=r"blocks\.0\.attn was replaced by Identity"):
        measure_layers(model, images_BCHW)


@torch.no_grad()
def test_the_layers_of_a_silent_attention_are_not_measured():
    model, images_BCHW = model_and_images()
    model.blocks[1].attn.forward = lambda tokens_BND: tokens_BND
    with pytest.raises(ConfigError, match=r"blocks\.1\.attn \(TalkingHeadsAttention\) .* never"):
        measure_layers(model, images_BCHW)


@torch.no_grad()
def test_an_alternative_network_gives_what_it_has():
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 3}
    images_BCHW = torch.randn(2, 3, 32, 32)
    model = AblatedCaiT(AblationConfig(**sizes, talking_heads="none")).eval()
    traced = trace(model, images_BCHW)
    assert traced.patch_attention is None
    torch.testing.assert_close(traced.logits, model(images_BCHW), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="class stage"):
        trace(AblatedCaiT(AblationConfig(**sizes, class_token="average")).eval(), images_BCHW)


def test_unwrap_finds_the_network_in_any_nesting():
    net = nn.Linear(2, 2)
    assert unwrap(net) is net
    assert unwrap(torch.compile(nn.DataParallel(torch.optim.swa_utils.AveragedModel(net)))) is not net
    assert isinstance(unwrap(torch.compile(nn.DataParallel(torch.optim.swa_utils.AveragedModel(net)))), nn.Linear)
    assert unwrap(nn.DataParallel(torch.compile(net))) is net

"""The same network under everything that PyTorch does to networks: compiled, exported, half precise, checkpointed."""

from __future__ import annotations

import copy
import io
import pickle
import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deepcait.errors import ConfigError
from deepcait.inference.fold import fold
from deepcait.model import CaiT
from tests.model.wild import relative_error, some_images, tiny_config, wild_model

HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def gradients(model, images, seed: int = 0) -> list[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    model(images).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_same_gradients(got, expected, tolerance: float) -> None:
    """Each within the tolerance of the largest gradient: some are zero by mathematics."""
    largest = max(g.abs().max() for g in expected)
    assert all((a - b).abs().max() <= tolerance * largest for a, b in zip(got, expected, strict=True))


# -- compile, export --------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on this machine")
def test_compiles_as_one_graph_forward_and_backward():
    """One to two minutes of C++ compiler on an empty cache; the default run traces the same graphs, below."""
    torch.compiler.reset()
    model = wild_model(tiny_config(depth=1, cls_depth=1), dtype=torch.float32)
    images = some_images(model.config, dtype=torch.float32)
    expected, expected_gradients = model(images).detach(), gradients(model, images)
    compiled = torch.compile(model, fullgraph=True)
    assert relative_error(compiled(images).detach(), expected) < 1e-4
    assert_same_gradients(gradients(compiled, images), expected_gradients, 1e-4)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_traces_as_one_graph_with_everything_on(training):
    """Dynamo and AOTAutograd without a compiler: no graph break, drop-path and checkpointing included."""
    torch.compiler.reset()
    model = wild_model(tiny_config(depth=1, cls_depth=1, drop_path_rate=0.3)).train(training)
    model.set_grad_checkpointing()
    images = some_images(model.config)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same_gradients(gradients(compiled, images), gradients(model, images), 1e-9)


@torch.no_grad()
def test_exports_with_a_dynamic_batch():
    model = wild_model(tiny_config(img_size=(16, 24)))
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(model, (some_images(model.config, batch=2),), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    for size in (1, 2, 5):
        images = some_images(model.config, batch=size, seed=size)
        assert relative_error(again(images), model(images)) < 1e-12


# -- half precision ---------------------------------------------------------------------------------------------------


class SoftmaxDtypes(TorchDispatchMode):
    """Remember in which dtype every softmax ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._softmax.default:
            self.seen.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_bf16_autocast_keeps_the_residual_stream_and_the_softmax_in_float32():
    model = wild_model(tiny_config(depth=4), dtype=torch.float32)
    model.set_backend("reference")  # test_lean.py looks into the lean path
    images = some_images(model.config, batch=4, dtype=torch.float32)
    dtypes = []
    for block in [*model.blocks, *model.blocks_token_only]:
        block.register_forward_hook(lambda _block, _inputs, output: dtypes.append(output.dtype))
        block.mlp.register_forward_hook(lambda _block, _inputs, output: dtypes.append(output.dtype))
    expected = model(images).detach()
    dtypes.clear()
    with SoftmaxDtypes() as softmax, torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert dtypes == [torch.bfloat16, torch.float32] * 6  # MLP, then the stream; in every block
    assert softmax.seen == [torch.float32] * 6
    assert 1e-5 < relative_error(logits.detach(), expected) < 0.2
    logits.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_bf16_softmax_is_wide_without_autocast_too():
    model = wild_model(tiny_config(), dtype=torch.bfloat16)
    model.set_backend("reference")
    images = some_images(model.config, dtype=torch.bfloat16)
    with SoftmaxDtypes() as softmax, torch.no_grad():
        logits = model(images)
    assert (softmax.seen, logits.dtype) == ([torch.float32] * 4, torch.bfloat16)
    assert logits.isfinite().all()


# -- meta device ------------------------------------------------------------------------------------------------------


def test_initial_values_survive_the_meta_device():
    with torch.device("meta"):
        model = CaiT(tiny_config(depth=3, layer_scale_init=3e-5, drop_path_rate=0.2))
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))  # what to_empty leaves is anything
    torch.manual_seed(0)
    model.init_weights()
    for block in [*model.blocks, *model.blocks_token_only]:
        for gamma in (block.gamma_1, block.gamma_2):
            assert gamma.unique().tolist() == [torch.tensor(3e-5).item()]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model(some_images(model.config, dtype=torch.float32)).isfinite().all()
    torch.manual_seed(0)
    direct = CaiT(model.config)
    direct_again = copy.deepcopy(direct)
    torch.manual_seed(0)
    direct_again.init_weights()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, direct_again.get_parameter(name)), name


# -- gradient checkpointing -------------------------------------------------------------------------------------------


def bytes_kept(model, images) -> int:
    """Bytes of the distinct tensors that a forward pass keeps for the backward pass, inputs of blocks included."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    hooks = [
        # A checkpoint holds the inputs of its block where saved_tensors_hooks does not see them.
        block.register_forward_pre_hook(lambda _block, inputs: [keep(tensor) for tensor in inputs] and None)
        for block in [*model.blocks, *model.blocks_token_only]
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(images)
    for hook in hooks:
        hook.remove()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    del logits
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_checkpointing_changes_no_gradient(drop_path_rate):
    """With drop-path too: the recomputed forward pass draws the same masks, and later draws are not shifted."""
    model = wild_model(tiny_config(depth=4, drop_path_rate=drop_path_rate)).train()
    images = some_images(model.config, batch=8)
    expected = gradients(model, images)
    next_draw = torch.rand(3)
    model.set_grad_checkpointing()
    assert_same_gradients(gradients(model, images), expected, 1e-6)
    assert torch.equal(torch.rand(3), next_draw)
    if drop_path_rate:
        with pytest.raises(AssertionError):
            assert_same_gradients(gradients(model, images, seed=1), expected, 1e-6)


def test_checkpointing_recomputes_both_stages_and_keeps_less():
    model = wild_model(tiny_config(depth=4, cls_depth=3)).train()
    images = some_images(model.config, batch=4)
    plain = bytes_kept(model, images)
    runs = [0] * 7
    for index, block in enumerate([*model.blocks, *model.blocks_token_only]):

        def count(_block, _inputs, index=index):
            runs[index] += 1

        block.register_forward_pre_hook(count)
    gradients(model, images)
    assert runs == [1] * 7
    model.set_grad_checkpointing()
    gradients(model, images)
    assert runs == [3] * 7  # once forward, once more in the backward pass
    assert bytes_kept(model, images) < plain / 4
    runs[:] = [0] * 7
    with torch.no_grad():
        model(images)
    assert runs == [1] * 7
    model.set_grad_checkpointing(False)
    assert bytes_kept(model, images) == plain


# -- derivatives of other kinds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rewrite", [lambda model: model, fold], ids=["lean", "folded"])
def test_forward_mode_equals_the_difference_quotient(rewrite):
    """Operators without a forward derivative would count as constants, without a warning."""
    model = wild_model(tiny_config())
    images, ways = (some_images(model.config, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        quotient = (model(images + 1e-6 * ways) - model(images - 1e-6 * ways)) / 2e-6
    found = torch.func.jvp(rewrite(model), (images,), (ways,))[1]
    assert relative_error(found.detach(), quotient) < 1e-6
    with torch.autograd.forward_ad.dual_level():
        tangent = torch.autograd.forward_ad.unpack_dual(
            rewrite(model)(torch.autograd.forward_ad.make_dual(images, ways))
        ).tangent
    assert relative_error(tangent.detach(), quotient) < 1e-6


def test_gradients_of_single_images_add_up():
    model = wild_model(tiny_config())
    images = some_images(model.config, batch=3)
    weights = dict(model.named_parameters())

    def loss(weights, image):
        return torch.func.functional_call(model, weights, (image[None],)).square().sum()

    of_each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, images)
    assert_same_gradients([of_each[name].sum(0) for name in weights], gradients(model, images), 1e-12)


def test_second_derivatives_need_the_plain_attention():
    model = wild_model(tiny_config())
    images = some_images(model.config).requires_grad_()
    for lean in (True, False):
        model.set_backend("lean" if lean else "reference")
        (first,) = torch.autograd.grad(model(images).square().sum(), images, create_graph=True)
        if lean:
            with pytest.raises(ConfigError, match="set_backend"):
                first.square().sum().backward()
    first.square().sum().backward()
    assert images.grad.isfinite().all()


# -- no images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("change", ["set_backend", "set_small_memory", "set_grad_checkpointing"])
def test_a_batch_of_no_image(dtype, change):
    model = wild_model(tiny_config(img_size=(16, 40)), dtype=dtype).train()
    getattr(model, change)("reference" if change == "set_backend" else True)
    images = some_images(model.config, batch=0, dtype=dtype)
    assert all(not gradient.any() for gradient in gradients(model, images))
    assert model(images).shape == (0, 7)
    assert model.class_attention(images).shape == (0, 2, 3, 11)
    tokens, (maps, _) = model.forward_intermediates(images)
    assert (tokens.shape, maps.shape) == ((0, 11, 24), (0, 24, 2, 5))
    folded = fold(model)
    assert (folded(images).shape, folded.class_attention(images).shape) == ((0, 7), (0, 2, 3, 11))
    assert folded(images.requires_grad_()).shape == (0, 7)


# -- copies -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_are_equal_and_independent(duplicate):
    model = wild_model(tiny_config())
    images = some_images(model.config)
    expected = model(images)
    other = duplicate(model)
    assert other.config == model.config
    assert torch.equal(other(images), expected)
    other.pos_embed.zero_()
    other.pretrained_cfg["mean"] = 0
    assert torch.equal(model(images), expected)
    assert model.pretrained_cfg == {}

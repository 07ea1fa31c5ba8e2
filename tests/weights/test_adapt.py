"""Other image size, other classes, nothing else; and what was done is said."""

from __future__ import annotations

import pytest
import torch

from deepcait.errors import WeightsError
from deepcait.model.embedding import resize_pos_embed
from deepcait.weights.adapt import HEAD, adapt_state_dict, build_loaded, load_into


def test_weights_that_fit_are_kept_bit_for_bit(tiny, logits):
    source = tiny()
    model, report = build_loaded(source.config, source.state_dict())
    assert torch.equal(logits(model.eval()), logits(source))
    assert str(report) == f"kept {len(source.state_dict())} tensors"


def test_a_built_model_is_whole_and_owns_its_memory(tiny):
    source = tiny()
    model, _ = build_loaded(source.config.replace(num_classes=7), source.state_dict())
    theirs = {tensor.untyped_storage().data_ptr() for tensor in source.state_dict().values()}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad, name
        assert not parameter.is_meta, name
        assert parameter.dtype == torch.float32, name
        assert parameter.is_contiguous(), name
        assert parameter.untyped_storage().data_ptr() not in theirs, name
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.equal(model.head.bias, torch.zeros(7))
    before = source.cls_token.detach().clone()
    with torch.no_grad():
        model.cls_token.add_(1)
    assert torch.equal(source.cls_token, before)


def test_building_draws_no_random_number_where_nothing_is_fresh(tiny):
    source = tiny()
    state = torch.get_rng_state()
    build_loaded(source.config, source.state_dict())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("stored", [torch.float64, torch.float16, torch.bfloat16, "mixed"])
def test_a_model_is_float32_whatever_its_weights_were_stored_in(tiny, logits, stored):
    kinds = [torch.float64, torch.float32, torch.bfloat16] if stored == "mixed" else [stored]
    source = tiny()
    weights = {key: value.to(kinds[at % len(kinds)]) for at, (key, value) in enumerate(source.state_dict().items())}
    assert {value.dtype for value in weights.values()} == set(kinds)
    expected = tiny()  # what a plain copy into float32 parameters gives
    expected.load_state_dict(weights)
    for copy in (True, False):
        model, _ = build_loaded(source.config, weights, copy=copy)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert torch.equal(logits(model.eval()), logits(expected))


@pytest.mark.parametrize(("old", "new"), [(32, 48), (32, (24, 40)), ((16, 64), 32), ((16, 64), (64, 16))])
def test_positions_are_resized_from_the_stored_grid(tiny, old, new):
    source = tiny(img_size=old)
    target = source.config.replace(img_size=new)
    adapted, report = adapt_state_dict(source.state_dict(), target, stored_grid=source.config.grid)
    expected = resize_pos_embed(source.pos_embed, source.config.grid, target.grid)
    assert torch.equal(adapted["pos_embed"], expected)
    assert report.resized == (source.config.grid, target.grid)
    rows, cols = target.grid
    assert f"resized pos_embed {source.config.grid[0]}x{source.config.grid[1]} -> {rows}x{cols}" in str(report)


def test_equal_counts_on_another_grid_are_no_equal_grid(tiny):
    source = tiny(img_size=(16, 64))
    adapted, report = adapt_state_dict(
        source.state_dict(), source.config.replace(img_size=(64, 16)), stored_grid=source.config.grid
    )
    assert report.resized == ((2, 8), (8, 2))
    assert not torch.equal(adapted["pos_embed"], source.pos_embed)


def test_a_grid_that_does_not_fit_is_an_error(tiny):
    source = tiny()
    with pytest.raises(WeightsError, match="has 16 rows; a grid of 3 x 5 patches needs 15"):
        adapt_state_dict(source.state_dict(), source.config, stored_grid=(3, 5))


def test_other_classes_leave_the_fresh_head(tiny):
    source, target = tiny(0), tiny(1, num_classes=7, img_size=48)
    fresh = target.head.weight.detach().clone()
    report = load_into(target, source.state_dict(), stored_grid=(4, 4))
    assert str(report) == (
        f"kept {len(source.state_dict()) - 3} tensors, resized pos_embed 4x4 -> 6x6, re-initialised head 5 -> 7"
    )
    assert torch.equal(target.head.weight, fresh)
    assert torch.equal(target.blocks[1].attn.proj_l.weight, source.blocks[1].attn.proj_l.weight)


def test_features_and_back(tiny):
    source = tiny()
    features, report = build_loaded(source.config.replace(num_classes=0), source.state_dict())
    assert "dropped head 5 -> 0" in str(report)
    model, report = build_loaded(source.config, features.state_dict())
    assert report.head == (0, 5)
    assert not model.head.weight.is_meta


def test_equal_names_keep_their_rows_on_request(tiny):
    source = tiny()
    old, new = ["ant", "bee", "cat", "dog", "elk"], ["yak", "dog", "ant"]
    config = source.config.replace(num_classes=3)
    model, report = build_loaded(config, source.state_dict(), old_classes=old, new_classes=new, keep_rows=True)
    assert torch.equal(model.head.weight[1], source.head.weight[3])
    assert torch.equal(model.head.weight[2], source.head.weight[0])
    assert torch.equal(model.head.bias[1:], source.head.bias[[3, 0]])
    assert model.head.bias[0] == 0
    assert 0 < model.head.weight[0].abs().max() < 0.1
    assert report.num_kept_rows == 2
    assert "rows of 2 classes copied" in str(report)
    model, report = build_loaded(config, source.state_dict(), old_classes=old, new_classes=new)
    assert report.num_kept_rows == 0
    assert not torch.equal(model.head.weight[1], source.head.weight[3])


def test_as_many_classes_of_other_names_are_other_classes(tiny):
    source = tiny()
    names = [["a", "b", "c", "d", "e"], ["v", "w", "x", "y", "z"]]
    _, report = adapt_state_dict(source.state_dict(), source.config, old_classes=names[0], new_classes=names[1])
    assert report.head == (5, 5)
    _, report = adapt_state_dict(source.state_dict(), source.config, old_classes=names[0], new_classes=names[0])
    assert report.head is None


def test_rows_by_name_need_the_names(tiny):
    source = tiny()
    with pytest.raises(WeightsError, match="old_classes: .* needs 5 class names"):
        adapt_state_dict(source.state_dict(), source.config.replace(num_classes=7), keep_rows=True)


def test_every_other_mismatch_is_listed(tiny):
    source = tiny()
    state_dict = source.state_dict()
    state_dict["blocks.0.norm3.weight"] = torch.ones(32)
    del state_dict["norm.weight"]
    state_dict["cls_token"] = torch.ones(1, 1, 16)
    state_dict["norm.bias"] = torch.ones(32, dtype=torch.int64)
    with pytest.raises(WeightsError, match="in 4 tensors") as caught:
        load_into(source, state_dict)
    for part in (
        "norm.weight missing (32,)",
        "blocks.0.norm3.weight unexpected (32,)",
        "cls_token (1, 1, 16) instead of (1, 1, 32)",
        "norm.bias of torch.int64",
    ):
        assert part in str(caught.value)


def test_a_long_list_is_cut_and_counted(tiny):
    with pytest.raises(WeightsError, match="and 67 more") as caught:
        adapt_state_dict(tiny(embed_dim=48).state_dict(), tiny(depth=1, cls_depth=1).config.replace(mlp_ratio=2.0))
    assert str(caught.value).count(" instead of ") == 8


def test_one_missing_half_of_a_kept_head_is_an_error(tiny):
    state_dict = tiny().state_dict()
    del state_dict[HEAD[1]]
    with pytest.raises(WeightsError, match=r"head\.bias missing"):
        adapt_state_dict(state_dict, tiny().config)


def test_a_failed_load_leaves_the_model_as_it_was(tiny):
    target, other = tiny(0), tiny(1)
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    state_dict = other.state_dict()
    del state_dict["norm.bias"]
    with pytest.raises(WeightsError):
        load_into(target, state_dict)
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())

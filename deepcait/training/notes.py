"""The plan of a run in one line, and warnings about likely mistakes in its recipe."""

from __future__ import annotations

from deepcait.data.order import Order
from deepcait.model.networks import is_model_name, named_config
from deepcait.parts import is_part
from deepcait.training.best import chosen_measure
from deepcait.training.recipe import Recipe
from deepcait.training.start import start_of
from deepcait.weights.own import split_weights

# With fewer images, one image is more than a percentage point of accuracy.
_FEW_VALIDATION_IMAGES = 100
# Part of the images that an epoch may leave out unsaid.
_LEFT_OUT = 0.1
# Gradients behind such a LayerScale were flushed to zero in float16 (docs/guides/gpus.md).
_SMALL_GAMMA = 1e-5


def describe_plan(recipe: Recipe, order: Order, world_size: int, computed: str) -> str:
    """Return the plan of a run in one line.

    Args:
        recipe, order: of the run.
        world_size: number of processes.
        computed: where and how, see `describe_compute`.
    """
    each = recipe.replicas // world_size
    split = "" if recipe.replicas == 1 else f" = {recipe.replicas} replicas of {order.replica_batch_size}"
    shared = "" if world_size == 1 else f", {each} on each of {world_size} processes"
    return (
        f"plan: {recipe.epochs} epochs of {order.steps_per_epoch} steps, {recipe.global_batch_size} images per step"
        f"{split}{shared}; learning rate {recipe.peak_lr:g} at its peak; {computed}"
    )


def notes_of(recipe: Recipe, order: Order, num_validation: int) -> list[str]:
    """Return likely mistakes, a sentence each.

    Warm-ups that never end, random weights that are frozen, initial values that do harm or nothing, batches that do not
    fit the number of images, and too few validation images to compare epochs.
    """
    notes = [*_notes_of_layer_scale(recipe), *_notes_of_fp16(recipe), *_notes_of_epoch(order)]
    notes += _notes_of_frozen(recipe)
    if recipe.data.balanced and recipe.optimizer.class_weights is True:
        notes.append(
            "data.balanced and optimizer.class_weights both even out the classes: together they favour the small ones"
        )
    by_loss = chosen_measure(recipe.keep.best_by, num_validation) == "loss"
    if 0 < num_validation < _FEW_VALIDATION_IMAGES and not by_loss:
        chosen = "the best epoch and early stopping are" if recipe.keep.patience_epochs else "the best epoch is"
        notes.append(
            f"{chosen} decided by {num_validation} validation image{'s' * (num_validation > 1)}: a single prediction "
            f"changes the accuracy by {100 / num_validation:.1f} percentage points. keep.best_by=loss is less noisy"
        )
    if recipe.schedule.warmup_epochs >= recipe.epochs:
        notes.append(
            f"the learning rate rises to the end and never gets to its peak: schedule.warmup_epochs is "
            f"{recipe.schedule.warmup_epochs:g}, epochs {recipe.epochs}"
        )
    if recipe.head_warmup_epochs >= recipe.epochs and recipe.train != "head":
        notes.append(
            f"only the head moves: head_warmup_epochs is {recipe.head_warmup_epochs:g}, epochs {recipe.epochs}"
        )
    return notes


def _notes_of_epoch(order: Order) -> list[str]:
    """How many images an epoch omits, and whether a step repeats some of them, by `Order.slots`."""
    num, batch = order.num_samples, order.global_batch_size
    if batch > num * order.repeats:
        return [
            f"a step takes {batch} images and there are {num:,}: each occurs in it about {batch / num:.1f} times, "
            "augmented differently; global_batch_size is larger than the data"
        ]
    taken = batch * order.steps_per_epoch
    if num - taken > _LEFT_OUT * num and order.class_labels is None:
        copies = "" if order.repeats == 1 else f", each {order.repeats} times"
        return [
            f"an epoch takes {-(-taken // order.repeats):,} of {num:,} training images{copies}, in whole steps of "
            f"{batch}; the next takes others. A smaller global_batch_size leaves out fewer"
        ]
    return []


def _notes_of_frozen(recipe: Recipe) -> list[str]:
    """Weights that were not loaded and are not trained, for a while or at all."""
    own = is_part(recipe.model) and split_weights(recipe.model)[1] is None
    if not own and not (is_model_name(recipe.model) and recipe.start == "random"):
        return []
    if recipe.train != "all":
        frozen, remedy = f"train is {recipe.train}", "train=all trains all weights"
    elif recipe.head_warmup_epochs:
        frozen = f"head_warmup_epochs is {recipe.head_warmup_epochs:g}"
        remedy = "head_warmup_epochs=0 trains all weights from the start"
    else:
        return []
    unless = f", unless the factory of {recipe.model} loads trained ones" if own else ""
    return [f"{frozen}: the weights that it does not train are random{unless}; {remedy}"]


def _notes_of_fp16(recipe: Recipe) -> list[str]:
    config = named_config(recipe.model) if is_model_name(recipe.model) and recipe.start == "random" else None
    gamma = recipe.layer_scale_init if recipe.layer_scale_init is not None else getattr(config, "layer_scale_init", 1.0)
    if recipe.compute.precision != "fp16" or config is None or abs(gamma) > _SMALL_GAMMA:
        return []
    return [
        f"compute.precision is fp16 and LayerScale begins at {gamma:g}: gradients behind it are too small for float16 "
        "and become zero at first; compute.precision=fp32, or bf16 on a newer GPU, has no such limit"
    ]


def _notes_of_layer_scale(recipe: Recipe) -> list[str]:
    gamma = recipe.layer_scale_init
    if gamma is None:
        return []
    if not is_model_name(recipe.model) or recipe.start == "released":
        return [f"layer_scale_init changes nothing: {start_of(recipe)} bring their own values"]
    if recipe.ablation.residual not in (None, "layerscale", "scalar"):
        return [f"layer_scale_init changes nothing: {recipe.ablation.residual} has its own first value"]
    if abs(gamma) > 1:
        return [f"layer_scale_init is {gamma:g}: branches drown the stream; the paper starts at 0.1 or less"]
    return []

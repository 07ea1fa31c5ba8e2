"""The numerics of one step: replicas are one batch, clipping and scaling in order, what stays wide under autocast."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from deepcait.data.mixing import Mix
from deepcait.data.seeding import derive_seed
from deepcait.training.losses import cross_entropy
from deepcait.training.optimizer import build_optimizer, class_weights, parameter_groups
from deepcait.training.settings import Compute, Optimizer
from tests.training.tiny import NO_MIX, K, gradients, make_stepper, section, some_batches, tiny_model, tiny_recipe


def step_once(recipe, dtype=torch.float64, *, batches=None, step: int = 0, model=None, **changes):
    """One step from wild weights; returns the model (its gradients still there) and the result."""
    model = model or tiny_model(dtype)
    stepper = make_stepper(model, recipe, **changes)
    result = stepper(step, iter(batches or some_batches(recipe)), 1e-3, head_only=False, stop=False)
    return model, result


def sized(replicas: int, **changes):
    return tiny_recipe(global_batch_size=32, replicas=replicas, **changes)


@pytest.mark.parametrize("replicas", [2, 4, 32])
def test_replicas_give_the_gradients_of_one_batch_float64(replicas):
    one, whole = step_once(sized(1))
    many, result = step_once(sized(replicas))
    wanted = gradients(one)
    assert (gradients(many) - wanted).abs().max() < 1e-12 * max(1.0, wanted.abs().max())
    assert result.loss == pytest.approx(whole.loss, abs=1e-12)
    assert result.correct == pytest.approx(whole.correct, abs=1e-6)  # targets are float32
    assert result.grad_norm == pytest.approx(wanted.norm().item(), rel=1e-12)
    assert result.updated
    after = torch.cat([p.flatten() for p in one.parameters()]), torch.cat([p.flatten() for p in many.parameters()])
    assert (after[0] - after[1]).abs().max() < 1e-9


def test_replicas_give_the_gradients_of_one_batch_float32():
    one, many = (gradients(step_once(sized(replicas), torch.float32)[0]) for replicas in (1, 4))
    exact = gradients(step_once(sized(1))[0])
    assert (many - one).norm() < 1e-5 * one.norm()
    assert (one - exact).norm() < 1e-5 * exact.norm()


def test_the_gradient_is_that_of_the_mean_loss():
    recipe = sized(4, mix=dataclasses.replace(NO_MIX, label_smoothing=0.1))
    model, result = step_once(recipe)
    other = tiny_model().train()
    images, labels = (torch.cat(parts) for parts in zip(*some_batches(recipe), strict=True))
    loss = F.cross_entropy(other(images), labels, label_smoothing=0.1)
    loss.backward()
    assert (gradients(model) - gradients(other)).abs().max() < 1e-7  # targets are float32
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)


def test_class_weights_weigh():
    weights = class_weights([0] * 30 + [1] * 5 + list(range(K)), K)
    recipe = sized(2)
    _, result = step_once(recipe, class_weights_K=weights)
    images, labels = (torch.cat(parts) for parts in zip(*some_batches(recipe), strict=True))
    targets = F.one_hot(labels, K).double() * 0.9 + 0.1 / K
    assert result.loss == pytest.approx(cross_entropy(tiny_model()(images), targets, weights).item(), rel=1e-6)


def test_mixing_and_depth_follow_from_seed_step_and_replica():
    def run(step: int = 3, seed: int = 0, dtype=torch.float64):
        torch.manual_seed(torch.seed())  # whatever was drawn before
        recipe = sized(4, mix=Mix(), seed=seed)
        return gradients(step_once(recipe, dtype, step=step, model=tiny_model(dtype, drop_path_rate=0.3))[0])

    first = run()
    assert torch.equal(run(), first)
    assert not torch.equal(run(step=4), first)
    assert not torch.equal(run(seed=1), first)


def test_each_replica_draws_for_itself(monkeypatch):
    recipe = sized(4, mix=Mix())
    stepper = make_stepper(tiny_model(), recipe)
    seeds = []
    mix = stepper.mixer.__call__
    monkeypatch.setattr(stepper, "mixer", lambda x, y, seed: (seeds.append(seed), mix(x, y, seed))[1])
    stepper(9, iter(some_batches(recipe)), 1e-3, head_only=False, stop=False)
    assert seeds == [derive_seed("replica", 0, 9, replica) for replica in range(4)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_grad_checkpointing_changes_nothing(precision):
    results = []
    for enable in (False, True):
        model = tiny_model(torch.float32, drop_path_rate=0.3)
        model.set_grad_checkpointing(enable)
        recipe = sized(2, mix=Mix(), compute=Compute(device="cpu", precision=precision))
        model, result = step_once(recipe, torch.float32, model=model)
        results.append((result, gradients(model)))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e9])
def test_clipping(clip):
    free = gradients(step_once(sized(2))[0])
    model, result = step_once(section(sized(2), "optimizer", clip_norm=clip))
    assert result.grad_norm == pytest.approx(free.norm().item(), rel=1e-12)  # before clipping
    wanted = free * min(1.0, clip / free.norm().item()) if clip else free
    assert torch.allclose(gradients(model), wanted, rtol=1e-5, atol=1e-12)


class SpyScaler:
    """A scaler by 1024 that writes down what is asked of it."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def scale(self, loss):
        self.log.append("scale")
        return loss * 1024

    def unscale_(self, optimizer):
        self.log.append("unscale")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= 1024

    def step(self, optimizer):
        self.log.append("step")
        optimizer.step()

    def update(self):
        self.log.append("update")


@pytest.mark.parametrize("poisoned", [False, True])
def test_unscale_before_clip_before_step(monkeypatch, poisoned):
    recipe = section(sized(2), "optimizer", clip_norm=1e-3)
    plain, wanted = step_once(recipe)
    log: list[str] = []
    clip = torch.nn.utils.clip_grads_with_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grads_with_norm_", lambda *a, **k: (log.append("clip"), clip(*a, **k))[1])
    batches = some_batches(recipe)
    if poisoned:
        batches[1][0][0, 0, 0, 0] = float("inf")
    model, result = step_once(recipe, scaler=SpyScaler(log), batches=batches)
    assert log == ["scale", "scale", "unscale", *([] if poisoned else ["clip", "step"]), "update"]
    if poisoned:
        assert not result.updated
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))
    else:
        assert result.grad_norm == pytest.approx(wanted.grad_norm)
        assert all(torch.allclose(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


class Dtypes(TorchDispatchMode):
    """Write down which dtype every operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.seen.setdefault(func.overloadpacket.__name__, set()).add(out.dtype)
        return out


@pytest.mark.parametrize("attention", ["lean", "plain"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_keeps_softmax_and_the_residual_stream_wide(precision, attention):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    recipe = sized(2, compute=Compute(device="cpu", precision=precision))
    model = tiny_model(torch.float32)
    model.set_backend("lean" if attention == "lean" else "reference")
    stream = []
    for block in [*model.blocks, *model.blocks_token_only]:
        block.register_forward_hook(lambda module, args, out: stream.extend([args[0].dtype, out.dtype]))
    with Dtypes() as dtypes:
        try:
            model, result = step_once(recipe, torch.float32, model=model)
        except RuntimeError as error:
            pytest.skip(f"this CPU does not compute in {precision}: {error}")
    assert set(stream) == {torch.float32}
    softmaxes = dtypes.seen.get("_softmax", set()) | dtypes.seen.get("_log_softmax", set())
    assert softmaxes == {torch.float32}
    multiplied = set().union(*(dtypes.seen.get(name, set()) for name in ("mm", "addmm", "bmm")))
    assert dtype in multiplied  # it really is autocast
    exact = gradients(step_once(sized(2))[0])
    assert result.updated
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in model.parameters())
    assert (gradients(model) - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_scores_far_apart_survive_narrow_floats(precision):
    """A softmax in bf16 would round weights to 8 bits: rows of the attention must sum to 1 as in float32."""
    model = tiny_model(torch.float32)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    images = some_batches(sized(1))[0][0].float()
    with torch.autocast("cpu", dtype), torch.no_grad():
        maps = model.class_attention(images)
    assert (maps.float().sum(-1) - 1).abs().max() < 1e-2


def test_fp16_overflow_skips_halves_the_scale_and_goes_on():
    recipe = sized(2, compute=Compute(device="cpu", precision="fp16"))
    scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**40)
    model = tiny_model(torch.float32)
    stepper = make_stepper(model, recipe, scaler=scaler)
    before = [p.detach().clone() for p in model.parameters()]
    updated = []
    try:
        for step in range(40):
            result = stepper(step, iter(some_batches(recipe)), 1e-4, head_only=False, stop=False)
            if not updated or not updated[-1]:
                same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
                assert same != result.updated
            updated.append(result.updated)
    except RuntimeError as error:
        pytest.skip(f"this CPU does not train in fp16: {error}")
    skipped = updated.index(True)
    assert skipped > 5
    assert scaler.get_scale() == 2.0 ** (40 - skipped)
    assert all(updated[skipped:])


def test_the_rate_is_set_before_the_step():
    settings = Optimizer(name="sgd", momentum=0.0, weight_decay=0.0, lr=1.0, lr_batch=0)
    recipe = sized(2, optimizer=settings)
    model = tiny_model()
    optimizer = build_optimizer(parameter_groups(model, settings), settings)
    before = [p.detach().clone() for p in model.parameters()]
    make_stepper(model, recipe, optimizer=optimizer)(0, iter(some_batches(recipe)), 0.25, head_only=False, stop=False)
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert torch.allclose(old - 0.25 * parameter.grad, parameter, atol=1e-12)


def test_a_wish_to_stop_is_passed_on():
    recipe = sized(2)
    for wish in (False, True):
        stepper = make_stepper(tiny_model(), recipe)
        assert stepper(0, iter(some_batches(recipe)), 1e-3, head_only=False, stop=wish).stop is wish


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device: values that Python reads, and copies to the host."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.count = 0
        for name in ("tolist", "numpy", "cpu", "__array__"):  # on the CPU these dispatch nothing
            monkeypatch.setattr(torch.Tensor, name, self.counted(getattr(torch.Tensor, name)))

    def counted(self, read):
        def method(tensor, *args, **kwargs):
            self.count += 1
            return read(tensor, *args, **kwargs)

        return method

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, torch.ops.aten.equal.default)
        to_host = func is torch.ops.aten._to_copy.default and (kwargs or {}).get("device") == torch.device("cpu")
        if func in reads or (to_host and args[0].device.type != "cpu"):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", ["plain", "everything"])
def test_the_host_waits_once_a_step_whatever_the_number_of_replicas(monkeypatch, settings):
    """On a GPU each read stops the queue of work: two for each of 8 replicas were 17 stalls in a step."""
    changes, teacher = {}, None
    if settings == "everything":
        optimizer = Optimizer(lr=1e-3, lr_batch=0, clip_norm=1.0, layer_decay=0.9)
        changes = {"mix": Mix(), "optimizer": optimizer, "compute": Compute(device="cpu", precision="bf16")}
        teacher = tiny_model(torch.float32).eval()
    counts = []
    for replicas in (1, 2, 8):
        recipe = sized(replicas, **changes)
        stepper = make_stepper(tiny_model(torch.float32, drop_path_rate=0.2), recipe, teacher=teacher)
        batches = iter(some_batches(recipe))
        with monkeypatch.context() as patch, HostReads(patch) as reads:
            result = stepper(0, batches, 1e-3, head_only=False, stop=False)
        assert result.updated
        counts.append(reads.count)
    assert counts == [1, 1, 1]


def test_the_count_of_host_reads_can_say_no(monkeypatch):
    with HostReads(monkeypatch) as reads:
        value = torch.ones(2).sum()
        for read in (float, bool, lambda t: t.item(), lambda t: t.tolist(), lambda t: t.numpy(), lambda t: t.cpu()):
            before = reads.count
            read(value)
            assert reads.count > before

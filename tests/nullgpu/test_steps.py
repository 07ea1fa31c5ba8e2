"""How often training makes the host wait for the pretended GPU: once per step, whatever a recipe turns on."""

from __future__ import annotations

import json

import pytest

from tests.nullgpu.library import run

pytestmark = pytest.mark.process

PROGRAM = """
import json, os, torch
from deepcait.data import Preprocessing
from deepcait.data.mixing import Mix
from deepcait.runtime.device import to_host
from torch.nn.parallel import DistributedDataParallel, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from deepcait.runtime.processes import Processes
from deepcait.training.average import WeightAverage
from deepcait.training.compute import wrap
from deepcait.training.guard import Guard
from deepcait.training.settings import Average, Compute, Optimizer
from deepcait.training.teacher import Teacher
from tests.nullgpu.meter import Meter
from tests.training.tiny import make_stepper, some_batches, tiny_model, tiny_recipe

torch.backends.cudnn.enabled = False
torch.backends.cuda.enable_cudnn_sdp(False)
device = torch.device("cuda:0")
found = {}

def count(name, call):
    with Meter(lines=True) as meter:
        call()
    causes = [[*cause, number] for cause, number in meter.causes.most_common()]
    found[name] = meter.counts | {"waits": meter.waits, "causes": causes}

seen = Preprocessing((16, 16))
for replicas in (1, 8):
    recipe = tiny_recipe(
        global_batch_size=16, replicas=replicas, mix=Mix(), compute=Compute(device="cuda", precision="bf16"),
        optimizer=Optimizer(lr=1e-3, lr_batch=0, clip_norm=1.0),
    )
    model = tiny_model(torch.float32, drop_path_rate=0.2).cuda()
    teacher = Teacher(tiny_model(torch.float32), seen, mean=(0.0,) * 3, std=(1.0,) * 3, img_size=(16, 16),
                      columns=torch.arange(7), origin="").to(device)
    stepper, average = make_stepper(model, recipe, teacher=teacher), WeightAverage(model, Average(decay=0.9))

    def step(number):
        batches = iter([(seen.normalise((images.clamp(0, 1) * 255).byte().pin_memory().to(device, non_blocking=True)),
                         labels.pin_memory()) for images, labels in some_batches(recipe)])
        stepper(number, batches, 1e-3, head_only=False, stop=False)
        average.update_parameters(model)

    step(0), step(1)  # the first ones set up what lasts
    count(f"step of {replicas}", lambda: step(2))

one = torch.ones(()).cuda()
torch.nn.utils.get_total_norm = lambda tensors, kind: one  # what a kernel gives is junk
guard = Guard(None, 0, scales_gradients=False)
count("finite", lambda: guard.require_finite_weights(model, 1))
states = model.state_dict()
count("to_host", lambda: to_host(states))

torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
distributed._verify_param_shape_across_processes = lambda *_: True  # what it would compare is junk
images = torch.zeros(4, 3, 16, 16, device=device)

def exchange(_, bucket):
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done

nets = {"alone": model, "exchanged": wrap(model, Compute(), Processes(world_size=2))}
nets["copied"] = DistributedDataParallel(model, device_ids=[0])
for name, net in nets.items():
    if isinstance(net, DistributedDataParallel):
        net.register_comm_hook(None, exchange)
    for _ in range(2):  # DDP groups its buckets after the first backward pass
        model.zero_grad(set_to_none=True)
        net(images).sum().backward()
    model.zero_grad(set_to_none=True)
    logits = net(images)
    count(name, lambda: logits.sum().backward())
    found[name]["launches"] = sum(found[name][kind] for kind in ("launch", "gemm", "copy_on_device", "fill"))
found["parameters"] = len(list(model.parameters()))
print(json.dumps(found), flush=True)
os._exit(0)  # the gradients' threads may still want the interpreter while it is taken down, and then abort the process
"""


@pytest.fixture(scope="module")
def found(nullgpu) -> dict:
    """What was counted, by what was done."""
    done = run(nullgpu, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("replicas", [1, 8])
def test_the_host_waits_once_per_step(found, replicas):
    """With clipping, a teacher of other columns and normalisation, mixing and an average of the weights."""
    step = found[f"step of {replicas}"]
    assert (step["waits"], step["to_host"], step["to_device_pageable"]) == (1, 1, 0), step["causes"]
    assert {line.partition(":")[0] for _, line, _ in step["causes"]} == {"training/step.py"}, step["causes"]


def test_the_weights_are_checked_and_copied_with_one_wait(found):
    assert (found["finite"]["waits"], found["finite"]["to_host"]) == (1, 1), found["finite"]["causes"]
    assert (found["to_host"]["waits"], found["to_host"]["to_host"]) == (1, 1), found["to_host"]["causes"]


def test_several_processes_exchange_gradients_where_they_are(found):
    """One copy per parameter, into its bucket; without views of the buckets, a second one back.

    Gradients that are set to zero in place of None would need no copy, but an addition per parameter.
    """
    alone, exchanged, copied = (found[name]["copy_on_device"] for name in ("alone", "exchanged", "copied"))
    assert exchanged - alone == found["parameters"]
    assert copied - alone == 2 * found["parameters"]
    assert found["exchanged"]["launches"] - found["alone"]["launches"] == found["parameters"]

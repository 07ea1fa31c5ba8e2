"""How often a training step makes the host wait for the pretended GPU: not once for each replica."""

from __future__ import annotations

import json

import pytest

from tests.nullgpu.library import run

pytestmark = pytest.mark.process

PROGRAM = """
import json, sys, torch
from deepcait.data.mixing import Mix
from deepcait.training.settings import Compute, Optimizer
from tests.nullgpu.meter import Meter
from tests.training.tiny import make_stepper, some_batches, tiny_model, tiny_recipe

torch.backends.cudnn.enabled = False
waits = {}
for replicas in (1, 2, 8):
    recipe = tiny_recipe(
        global_batch_size=16, replicas=replicas, mix=Mix(), compute=Compute(device="cuda", precision="bf16"),
        optimizer=Optimizer(lr=1e-3, lr_batch=0, clip_norm=1.0),
    )
    model = tiny_model(torch.float32, drop_path_rate=0.2).cuda()
    stepper = make_stepper(model, recipe, teacher=tiny_model(torch.float32).eval().cuda())
    for step in range(2):  # the first may set up what lasts
        batches = [(images.float().pin_memory(), labels.pin_memory()) for images, labels in some_batches(recipe)]
        with Meter(lines=True) as meter:
            stepper(step, iter(batches), 1e-3, head_only=False, stop=False)
    waits[replicas] = {"waits": meter.waits, "to_host": meter.counts["to_host"],
                       "causes": [[*cause, number] for cause, number in meter.causes.most_common()]}
print(json.dumps(waits))
"""


def test_the_host_waits_as_often_for_eight_replicas_as_for_one(nullgpu):
    done = run(nullgpu, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [found[replicas]["to_host"] for replicas in ("1", "2", "8")] == [1, 1, 1], found
    assert len({found[replicas]["waits"] for replicas in ("1", "2", "8")}) == 1, found

"""`python -m tests.nullgpu.program VERB ...`: the command deepcait on the pretended GPU, which has no cuDNN."""

from __future__ import annotations

import json
import os
import signal
import sys

import torch

from deepcait.cli.main import main
from deepcait.training.guard import Guard
from deepcait.training.step import Stepper
from tests.nullgpu.meter import Meter

torch.backends.cudnn.enabled = False  # convolutions become im2col and products
torch.backends.cuda.enable_cudnn_sdp(False)
Guard.require_finite_weights = lambda *_: None  # no kernel computes, so the values are junk

if "STOP_AFTER" in os.environ:  # as if someone sent SIGTERM while this step is computed
    taken, step = [0], Stepper.__call__

    def step_and_stop(*args, **kwargs):
        taken[0] += 1
        if taken[0] == int(os.environ["STOP_AFTER"]):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **kwargs)

    Stepper.__call__ = step_and_stop  # not the optimizer's: what junk makes of the loss may skip it

with Meter(lines=True) as meter:
    code = main(sys.argv[1:])
if "COUNTS" in os.environ:
    causes = [[event, line, number] for (event, line), number in meter.causes.most_common()]
    with open(os.environ["COUNTS"], "w", encoding="utf-8") as file:
        json.dump({"counts": meter.counts, "causes": causes}, file)
sys.exit(code)

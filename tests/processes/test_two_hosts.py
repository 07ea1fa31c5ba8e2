"""Two hosts, as two network namespaces with an address each, train one run through torchrun's rendezvous."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from deepcait.training.journal import read_state
from tests.processes.harness import result, started, steps_logged

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("processes")]

ADDRESSES = ("10.213.77.1", "10.213.77.2")


def ip(*words, check=True):
    return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=check)


@pytest.fixture
def hosts():
    """Names of two namespaces, joined by a cable; `(name, address, interface)` each."""
    if shutil.which("ip") is None:
        pytest.skip("two hosts need the command ip (apt-get install iproute2)")
    tag = f"dc{os.getpid()}"
    names = [f"{tag}a", f"{tag}b"]
    answer = ip("netns", "add", names[0], check=False)
    if answer.returncode:
        pytest.skip(f"network namespaces are not permitted here: {answer.stderr.strip()}")
    try:
        ip("netns", "add", names[1])
        cable = ["type", "veth", "peer", names[1], "netns", names[1]]
        answer = ip("link", "add", names[0], "netns", names[0], *cable, check=False)
        if answer.returncode:
            pytest.skip(f"a pair of virtual interfaces is not permitted here: {answer.stderr.strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [(name, address, name) for name, address in zip(names, ADDRESSES, strict=True)]
    finally:
        for name in names:
            ip("netns", "delete", name, check=False)


def start_hosts(stack, bench, hosts, run, log, *, max_restarts=0):
    """Start torchrun on both hosts; the first holds the rendezvous."""
    agents = []
    for number, (name, address, interface) in enumerate(hosts):
        launcher = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", str(max_restarts)]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29477", "--rdzv-id", "two-hosts"]
        launcher += ["--rdzv-conf", f"is_host={int(number == 0)}", "--local-addr", address]
        command = ["ip", "netns", "exec", name, *bench.torchrun(run, "--resume", launcher=launcher)]
        environment = {"GLOO_SOCKET_IFNAME": interface}
        agents.append(stack.enter_context(started(command, Path(f"{log}_{number}"), environment=environment)))
    return agents


def output(agents):
    return "\n".join(f"--- host {n}\n{agent.stdout}\n{agent.stderr}" for n, agent in enumerate(agents))


def test_two_hosts_train_one_run(bench, hosts, tmp_path, straight_pair):
    with ExitStack() as stack:
        agents = start_hosts(stack, bench, hosts, tmp_path / "run", tmp_path / "log")
        codes = [agent.wait(120) for agent in agents]
        assert codes == [0, 0], output(agents)
    assert result(tmp_path / "run") == result(straight_pair)
    assert "step 45/45" in agents[0].stdout + agents[1].stdout
    assert sorted(agent.stdout.count("step 45/45") for agent in agents) == [0, 1]  # only rank 0 prints


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dying", [0, 1])
def test_a_worker_of_one_host_dies(bench, hosts, tmp_path, straight_pair, dying):
    run = tmp_path / "run"
    with ExitStack() as stack:
        agents = start_hosts(stack, bench, hosts, run, tmp_path / "log", max_restarts=3)
        agents[0].wait_for(lambda: steps_logged(run) >= 9)
        [victim] = agents[dying].workers()
        agents[dying].kill_only(victim)
        began = time.monotonic()
        codes = [agent.wait() for agent in agents]
        print(f"host {dying}'s worker died; both hosts finished {time.monotonic() - began:.0f} s later")
        assert codes == [0, 0], output(agents)
    assert read_state(run)["state"] == "finished"
    assert sum(agent.stdout.count("resuming from step_") for agent in agents) == 1
    assert result(run) == result(straight_pair)

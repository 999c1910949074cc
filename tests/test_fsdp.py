"""Fully sharded weights: `tests/fsdp.yaml` loads, and three papers' networks step by it on CPUs as they do whole.

Runs refuse it, because their checkpoints and evaluations want whole weights.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.paths import ROOT

PROGRAM = """
import copy, sys
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor
from common.random import generator
from common.run import leave
from papers.mamba import audit as mamba
from papers.mamba.config import PRESETS as MAMBA
from papers.transformer import audit as transformer
from papers.transformer.config import PRESETS as TRANSFORMER
from papers.vit import audit as vit
from papers.vit.config import PRESETS as VIT

asked = load_config_from_file(sys.argv[1]).fsdp_config
accelerator = Accelerator(cpu=True)
rank, world = accelerator.process_index, accelerator.num_processes
assert world == 2
draw = torch.Generator().manual_seed(0)
tokens = torch.randint(4, 20, (8, 24), generator=draw)
cases = {
    "Layer": (transformer.build(TRANSFORMER["smoke"], 20, 20), (tokens, tokens.flip(0))),
    "Block": (vit.build(VIT["smoke"]), (torch.randn(8, 3, 32, 32, generator=draw),)),
    "Residual": (mamba.build(MAMBA["smoke"], 20), (tokens,)),
}
for layer, (model, inputs) in cases.items():
    model.initialise(generator(0, "weights"))
    whole = copy.deepcopy(model)
    accelerator.state._shared_state["distributed_type"] = DistributedType.FSDP  # on CPUs accelerate never chooses it
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=asked["fsdp_version"], auto_wrap_policy=asked["fsdp_auto_wrap_policy"].lower(),
        reshard_after_forward=asked["fsdp_reshard_after_forward"], state_dict_type=asked["fsdp_state_dict_type"],
        cpu_ram_efficient_loading=asked["fsdp_cpu_ram_efficient_loading"], transformer_cls_names_to_wrap=[layer],
    )
    sharded, its = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9))
    own = torch.optim.SGD(whole.parameters(), 0.01, momentum=0.9)
    parameters = dict(sharded.named_parameters())
    assert all(isinstance(p, DTensor) for p in parameters.values())
    assert sum(p.to_local().numel() for p in parameters.values()) < 0.7 * sum(p.numel() for p in whole.parameters())
    losses = []
    for _ in range(5):
        part = sharded(*(x.chunk(world)[rank] for x in inputs))
        value = (part.float() - 1).square().mean()
        its.zero_grad()
        accelerator.backward(value)
        its.step()
        expected = (whole(*inputs).float() - 1).square().mean()
        own.zero_grad()
        expected.backward()
        own.step()
        mean = accelerator.reduce(value.detach(), reduction="mean")
        torch.testing.assert_close(mean, expected.detach(), rtol=1e-5, atol=1e-6)
        losses.append(expected.item())
    assert losses[-1] < losses[0]
    for name, p in whole.named_parameters():
        torch.testing.assert_close(parameters[name].full_tensor(), p.data, rtol=1e-4, atol=1e-5)
    accelerator.state._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    accelerator._models.clear()
    print("stepped", layer, flush=True)
leave(accelerator)
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


@pytest.mark.long
def test_three_networks_step_with_sharded_weights(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(file), str(ROOT / "tests/fsdp.yaml")], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stepped") == 6


def test_a_run_refuses_sharded_weights(tmp_path: Path, script) -> None:  # type: ignore[no-untyped-def]
    arguments = ("--preset", "smoke", "--device", "cpu", "--output-dir", str(tmp_path))
    done = script("papers.vit.train", *arguments, env={"ACCELERATE_USE_FSDP": "true"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: FSDP: ")
    assert len(done.stderr.splitlines()) == 1

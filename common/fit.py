"""The plain loop: batches in, one optimiser, a schedule. A paper that needs more writes its own on `run.steps`."""

from collections.abc import Callable
from typing import Any

import torch

from common.run import Run

Loss = Callable[[torch.nn.Module, Any, int], tuple[torch.Tensor, dict[str, torch.Tensor]]]


def fit(
    run: Run,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Callable[[int], Any],
    loss: Loss,
    steps: int,
    *,
    schedule: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    log_every: int = 100,
    state: dict[str, Any] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> torch.nn.Module:
    """Train `model` for `steps` updates and return it (unwrapped).

    Args:
        batch: step -> this process's part of the batch, a pure function of the step.
        loss: (model, batch, step) -> (scalar to minimise, named values to log: scalars or one per seed).
        schedule: step -> multiplier of every group's initial learning rate (a group with "constant" set keeps its own).
        clip_norm: largest norm of all gradients together.
        log_every: updates between log lines; values are fetched from the device only then.
        state: further objects that change during training (an EMA, say), for the checkpoint.
        after_step: called with the step after its update (EMA, evaluation during training).

    Raises:
        UserError: the loss or a gradient is not finite. Looked at before every update on a CPU, at log steps on a GPU,
            which would otherwise wait for each update.
    """
    model.to(run.device)
    wrapped = run.wrapped(model)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    for step in run.steps(steps, {"model": model, "optimizer": optimizer, **(state or {})}):
        if schedule is not None:
            for group in optimizer.param_groups:
                if not group.get("constant"):
                    group["lr"] = group["initial_lr"] * schedule(step)
        value, shown = loss(wrapped, batch(step), step)
        optimizer.zero_grad(set_to_none=True)
        run.accelerator.backward(value)
        stop_unless_finite(run, step, value, model, optimizer, step % log_every == 0)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        run.average_buffers(model)
        if after_step is not None:
            after_step(step)
        if step % log_every == 0 or step == steps - 1:
            run.log(step, **{name: run.mean(v.detach()) for name, v in shown.items()})
    return model


def stop_unless_finite(
    run: Run, step: int, loss: torch.Tensor, model: torch.nn.Module, optimizer: torch.optim.Optimizer, logged: bool
) -> None:
    """End the run, with records that say so, where the loss or a gradient of any process is not finite.

    To be called before the update. On a GPU, which would otherwise wait for it, it looks only where `logged`.
    """
    if run.device.type != "cpu" and not logged:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    largest = torch.nn.utils.get_total_norm(gradients, torch.inf)
    bad = torch.stack([~loss.detach().isfinite().all(), ~largest.isfinite()]).double()
    bad_loss, bad_gradient = run.mean(bad).tolist()  # all processes stop, or none
    if bad_loss or bad_gradient:
        what = "the loss" if bad_loss else "a gradient"
        rates = ", ".join(dict.fromkeys(f"{group['lr']:.6g}" for group in optimizer.param_groups))
        run.diverge(step, f"{what} is not finite (learning rate {rates})")

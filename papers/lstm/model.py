"""Long short-term memory as torch modules: many independent nets at once, differentiated by autograd.

Hochreiter, Schmidhuber. Long Short-Term Memory. Neural Computation 9(8), 1997 (section 4, appendix A.1).
Gers, Schmidhuber, Cummins. Learning to Forget. Neural Computation 12(10), 2000 (forget gates).

Glossary (code name, paper's symbol, shape):
    x         y^u of input units u, (s, b, t, i)        s seeds (independent nets), b sequences, t steps, i input units
    y         y(t-1), what is fed back, (s, b, r)       r units fed back: none, the cells c, or all hidden units u
    s         s_c, cell states, (s, b, c)               c cells = blocks * size
    y_in, y_out, y_forget   gate activations            k output units
    g, h      squash cell input and cell state: g in [-2, 2] or [0, 1], h in [-1, 1] or the identity
Hidden units are numbered cells, input gates, output gates, forget gates.

This is the readable version and the oracle of `kernel.run`, which trains. With `truncated`, y(t-1) is detached: errors
reach earlier steps through s alone, which is the truncated gradient of the paper.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn


class LSTM(nn.Module):
    """`seeds` independent nets of one shape."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        size: int,
        *,
        seeds: int = 1,
        recurrence: Literal["all", "cells", "none"] = "all",
        outputs_see_inputs: bool = False,
        output_gates: bool = True,
        forget_gates: bool = False,
        self_recurrence: float = 1.0,
        g: Literal["[-2,2]", "[0,1]"] = "[-2,2]",
        h: Literal["[-1,1]", "identity"] = "[-1,1]",
        hidden_biases: Literal["all", "gates", "none"] = "all",
        output_biases: bool = True,
        truncated: bool = True,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.blocks, self.size = inputs, outputs, blocks, size
        self.cells = blocks * size
        self.hidden = self.cells + blocks * (1 + output_gates + forget_gates)
        self.fed_back = {"all": self.hidden, "cells": self.cells, "none": 0}[recurrence]
        self.outputs_see_inputs, self.output_gates, self.forget_gates = outputs_see_inputs, output_gates, forget_gates
        self.self_recurrence, self.truncated = self_recurrence, truncated
        self.g_wide, self.h_wide = g == "[-2,2]", h == "[-1,1]"
        self.first_biased = {"all": 0, "gates": self.cells, "none": self.hidden}[hidden_biases]

        sources = self.cells + (inputs if outputs_see_inputs else 0)
        self.w_hidden = nn.Parameter(torch.empty(seeds, inputs + self.fed_back, self.hidden))
        self.b_hidden = nn.Parameter(torch.empty(seeds, self.hidden - self.first_biased))
        self.w_output = nn.Parameter(torch.empty(seeds, sources, outputs))
        self.b_output = nn.Parameter(torch.empty(seeds, outputs if output_biases else 0))

    def weights(self) -> int:
        """Trainable weights of one net, as the paper counts them."""
        return sum(p[0].numel() for p in self.parameters())

    def initialise(
        self,
        generators: Sequence[torch.Generator],
        init_range: float,
        input_gate_bias: Sequence[float] = (),
        output_gate_bias: Sequence[float] = (),
        forget_gate_bias: Sequence[float] = (),
    ) -> None:
        """Uniform in [-init_range, init_range], then the gate biases that are given, block by block."""
        with torch.no_grad():
            for i, generator in enumerate(generators):
                for p in self.parameters():
                    p[i] = (2 * torch.rand(p[i].shape, generator=generator, dtype=torch.float64) - 1) * init_range
            gate = self.cells - self.first_biased
            for biases, there in (
                (input_gate_bias, True),
                (output_gate_bias, self.output_gates),
                (forget_gate_bias, True),
            ):
                if biases:
                    self.b_hidden[:, gate : gate + self.blocks] = torch.tensor(biases, dtype=torch.float64)
                gate += self.blocks if there else 0

    def forward(self, x: Tensor, fed_back: Tensor | None = None) -> Tensor:
        """Outputs at every step.

        Args:
            x: (s, b, t, i)
            fed_back: what the hidden units see of t-1, (s, b, t, r), as constants; by default what the net itself did.
                With it given, the function's exact gradient is the truncated gradient.

        Returns:
            (s, b, t, k)
        """
        if fed_back is None and self._fused():
            y_c = self._torch_lstm(x)
        else:
            y_c = self.states(x, fed_back)[..., : self.cells]
        seen = torch.cat([y_c, x], -1) if self.outputs_see_inputs else y_c
        net = torch.einsum("sbtj,sjk->sbtk", seen, self.w_output)
        if self.b_output.shape[1]:
            net = net + self.b_output[:, None, None]
        return torch.sigmoid(net)

    def states(self, x: Tensor, fed_back: Tensor | None = None) -> Tensor:
        """Activations of all hidden units at every step, (s, b, t, u)."""
        size = self.size
        bias = nn.functional.pad(self.b_hidden, (self.first_biased, 0))
        net_x = torch.einsum("sbti,siu->sbtu", x, self.w_hidden[:, : self.inputs]) + bias[:, None, None]
        w_back = self.w_hidden[:, self.inputs :]
        y = x.new_zeros(*x.shape[:2], self.fed_back)
        s = x.new_zeros(*x.shape[:2], self.cells)
        ys = []
        for t in range(x.shape[2]):
            if fed_back is not None:
                y = fed_back[:, :, t]
            elif self.truncated:
                y = y.detach()
            net = net_x[:, :, t] + torch.einsum("sbr,sru->sbu", y, w_back)  # (s, b, u)
            net_c, net_gates = net.split([self.cells, self.hidden - self.cells], -1)
            gates = torch.sigmoid(net_gates)
            y_in, *others = gates.repeat_interleave(size, -1).split(self.cells, -1)  # one gate a cell
            g = 4 * torch.sigmoid(net_c) - 2 if self.g_wide else torch.sigmoid(net_c)
            keep = self.self_recurrence * others[-1] if self.forget_gates else self.self_recurrence
            s = keep * s + y_in * g
            y_c = 2 * torch.sigmoid(s) - 1 if self.h_wide else s
            if self.output_gates:
                y_c = others[0] * y_c
            everything = torch.cat([y_c, gates], -1)
            ys.append(everything)
            y = everything[..., : self.fed_back]
        return torch.stack(ys, 2)

    # ---- where the variant allows it, torch's own LSTM does the steps

    def _fused(self) -> bool:
        modern = self.forget_gates and self.output_gates and self.size == 1 and self.fed_back == self.cells
        return modern and not self.truncated and self.g_wide and self.h_wide and self.self_recurrence == 1.0

    def torch_weights(self, seed: int = 0) -> list[Tensor]:
        """The weights of an equal `torch.nn.LSTM`: w_ih, w_hh, b_ih, b_hh, rows ordered i, f, g, o.

        g(x) = 4σ(x) - 2 = 2 tanh(x/2) and h(s) = 2σ(s) - 1 = tanh(s/2): in terms of s/2 this is torch's cell, with the
        weights into the cell halved.
        """
        c, i, o, f = self.w_hidden[seed].T.split(self.cells)
        b_c, b_i, b_o, b_f = nn.functional.pad(self.b_hidden[seed], (self.first_biased, 0)).split(self.cells)
        w, b = torch.cat([i, f, c / 2, o]), torch.cat([b_i, b_f, b_c / 2, b_o])
        return [w[:, : self.inputs].contiguous(), w[:, self.inputs :].contiguous(), b, torch.zeros_like(b)]

    def _torch_lstm(self, x: Tensor) -> Tensor:
        zero = x.new_zeros(1, x.shape[1], self.cells)
        return torch.stack(
            [
                torch.lstm(x[i], (zero, zero), self.torch_weights(i), True, 1, 0.0, True, False, True)[0]
                for i in range(len(x))
            ]
        )

    # ---- the same weights, as the compiled kernel lays them out

    def arrays(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(W, V, which biases learn) of `kernel.run`: weights source-major, biases in the last row."""
        with torch.no_grad():
            bias = nn.functional.pad(self.b_hidden[seed], (self.first_biased, 0))
            W = torch.cat([self.w_hidden[seed], bias[None]])
            b_output = self.b_output[seed] if self.b_output.shape[1] else torch.zeros(self.outputs)
            V = torch.cat([self.w_output[seed], b_output[None].to(self.w_output)])
        learns = np.ones(self.hidden + 1)
        learns[: self.first_biased] = 0.0
        learns[-1] = float(self.b_output.shape[1] > 0)
        return W.double().numpy().copy(), V.double().numpy().copy(), learns

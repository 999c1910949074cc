"""State spaces and their convolution kernels: HiPPO, S4 (diagonal plus low rank), S4D (diagonal), dense ones (LSSL).

    x'(t) = A x(t) + B u(t),  y(t) = C x(t);   discrete: x_k = A_bar x_(k-1) + B_bar u_k,  K_l = C A_bar^l B_bar.

Glossary: h channels (H), n state size (N), m = n / 2 conjugate pairs of which one each is stored, L length, c kernels
a channel (two in a bidirectional net), s copies of (A, B) that the channels share (`copies`), r rows of a product.
`lam`, `p`, `q`, `b` are Lambda, P, Q, B of A = Lambda - P Q^*; `dt` is Delta. All of it is float32 (or float64)
whatever autocast says, and real arithmetic where the tensors are large: complex products are slow on a CPU.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from common.errors import UserError

DT_RANGE = (1e-3, 1e-1)  # Delta is drawn log-uniformly from it
Init = Literal["legs", "legs-clipped", "lin", "inv", "real", "random", "gaussian", "diagonal"]


# ---- HiPPO


def legs(n: int) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS (Eq. 2): A (n, n) and B (n,), float64."""
    index = torch.arange(n, dtype=torch.float64)
    root = torch.sqrt(2 * index + 1)
    a = -torch.tril(root[:, None] * root, -1) - torch.diag(index + 1)
    return a, root


def nplr(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS as normal plus rank one (Theorem 1): A = V (Lambda - P P^*) V^*, with V unitary.

    A + P P^T is skew-symmetric minus I / 2, for P = sqrt(i + 1/2).

    Returns:
        Lambda (n / 2,) with positive imaginary parts rising, V^* P (n / 2,) and V (n, n / 2), complex128. The other
        half is conjugate. V is turned so that V^* P is positive; then V^* B is sqrt(2) times it.
    """
    a, b = legs(n)
    p = b / math.sqrt(2)
    skew = a + p[:, None] * p
    skew = (skew - skew.T) / 2
    omega, v = torch.linalg.eigh(-1j * skew)
    omega, v = omega[n // 2 :], v[:, n // 2 :]
    turned = v.conj().T @ p.to(v)
    v = v * (turned / turned.abs())
    return torch.complex(torch.full_like(omega, -0.5), omega), v.conj().T @ p.to(v), v


def legs_start(n: int, clip: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Lambda, P and B of HiPPO-LegS, three (n / 2,) complex128; with `clip`, B as the official code has it.

    `hippo.nplr` clips the imaginary part of V^* B at 2, in the basis LAPACK returns: that in which the first component
    of every eigenvector is real (`zheev` and its kin reduce the matrix from there). B is nearly imaginary in it, so the
    slowest modes lose most of theirs: 40.8 becomes 2 with n = 64.
    """
    lam, p, v = nplr(n)
    if clip:
        p = p * (v[0] / v[0].abs())
    b = math.sqrt(2) * p
    return lam, p, torch.complex(b.real, b.imag.clamp(-2.0, 2.0)) if clip else b


def legs_eigenvectors(n: int) -> Tensor:
    """V_ij = binom(i + j, i - j), which diagonalises LegS up to a diagonal scaling (Lemma 3.2), (n, n) float64."""
    i = torch.arange(n, dtype=torch.float64)
    top, bottom = i[:, None] + i, (i[:, None] - i).clamp_min(0)
    log = torch.lgamma(top + 1) - torch.lgamma(bottom + 1) - torch.lgamma(top - bottom + 1)
    return torch.tril(torch.exp(log))


# ---- products


def vandermonde(v: Tensor, log_a: Tensor, length: int) -> Tensor:
    """2 Re sum_m v_m a_m^l for l < length, as products of powers across blocks and powers within one.

    Args:
        v: (r, h, m) complex. log_a: (h, m) complex128: float32 would lose the phase of a mode that hardly decays.

    Returns:
        (r, h, length) real
    """
    r, h, _ = v.shape
    within = min(length, 1 << max(0, round(math.log2(math.sqrt(length * r)))))
    across = -(-length // within)

    def powers(log: Tensor, count: int) -> tuple[Tensor, Tensor]:
        k = torch.arange(count, device=log.device, dtype=torch.float64)
        angle = log.imag[..., None] * k
        angle = (angle - 2 * math.pi * torch.round(angle.detach() / (2 * math.pi))).to(v.real.dtype)
        size = torch.exp((log.real[..., None] * k).to(v.real.dtype))
        return size * torch.cos(angle), size * torch.sin(angle)  # (h, m, count)

    inner = torch.cat(powers(log_a, within), 1)  # (h, 2 m, within)
    x, y = (part.transpose(1, 2)[:, None] for part in powers(within * log_a, across))  # (h, 1, across, m)
    a, b = (2 * part.transpose(0, 1)[:, :, None] for part in (v.real, v.imag))  # (h, r, 1, m)
    outer = torch.cat([a * x - b * y, -(a * y + b * x)], -1)  # (h, r, across, 2 m)
    product = torch.bmm(outer.flatten(1, 2), inner)  # (h, r across, within)
    return product.view(h, r, across * within)[..., :length].transpose(0, 1)


def cauchy(v: Tensor, lam: Tensor, dt: Tensor, z: Tensor) -> Tensor:
    """2 dt sum v / (2 (1 - z) - dt lam (1 + z)) over conjugate pairs: the resolvent at z under the bilinear rule.

    Multiplied through by 1 + z, so that nothing is infinite at z = -1 (the usual form divides by it and back).

    Args:
        v: (r, h, m), lam: (h, m), dt: (h, 1), z: (f,).

    Returns:
        (r, h, f) complex
    """
    a, b = 2 * (1 - z), (1 + z) * dt  # (f,), (h, f)
    below = a * a - 2 * lam.real[..., None] * (a * b)[:, None] + lam.abs().square()[..., None] * (b * b)[:, None]
    above = a * v.real[..., None] - b[:, None] * (v * lam.conj()).real[..., None]  # (r, h, m, f)
    return 4 * dt * (above / below).sum(-2)


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1 of complex numbers, without cancellation near 0."""
    size, angle = x.real, x.imag
    return torch.complex(
        torch.expm1(size) * torch.cos(angle) - 2 * torch.sin(angle / 2).square(), torch.exp(size) * torch.sin(angle)
    )


def log_bilinear(half: Tensor) -> Tensor:
    """log((1 + half) / (1 - half)) of complex numbers, without cancellation near 0."""
    size = torch.log1p(4 * half.real / (1 - half).abs().square()) / 2
    return torch.complex(size, torch.atan2(2 * half.imag, 1 - half.abs().square()))


def joined(x: Tensor) -> Tensor:
    """One of each pair -> both: (..., m) -> (..., n)."""
    return torch.cat([x, x.conj()], -1)


def real_sum(x: Tensor) -> Tensor:
    """Sum over both of each pair: (..., m) -> (..., 1)."""
    return 2 * x.real.sum(-1, keepdim=True)


# ---- kernels


class Parameters(NamedTuple):
    """A kernel's numbers, spread over channels: dt (h, 1), lam, b, p, q (h, m), c (c, h, m)."""

    dt: Tensor
    lam: Tensor
    b: Tensor
    c: Tensor
    p: Tensor
    q: Tensor


class Kernel(nn.Module):
    """What the parametrisations share: Delta, and which parameters have learning rates of their own.

    Args:
        h: channels. n: state size. channels: kernels a channel. copies: of (A, B), which divide h; 0: one a channel.
        softplus: Delta = softplus(parameter) (official code since v3) rather than exp(parameter).
    """

    slow: tuple[str, ...] = ()  # parameters trained at the kernel's own learning rate, without decay

    def __init__(self, h: int, n: int, channels: int, copies: int, softplus: bool) -> None:
        super().__init__()
        self.h, self.n, self.channels, self.copies, self.softplus = h, n, channels, copies or h, softplus
        if h % self.copies:
            raise UserError(f"{copies} copies of (A, B) do not divide {h} channels")
        if n % 2 or n < 2:
            raise UserError(f"a state of {n} has no conjugate pairs; take an even size")
        self.dt_parameter = nn.Parameter(torch.empty(h))

    def dt(self) -> Tensor:
        """Delta, (h, 1)."""
        dt = nn.functional.softplus(self.dt_parameter) if self.softplus else self.dt_parameter.exp()
        return dt[:, None]

    def initialise_dt(self, generator: torch.Generator) -> None:
        low, high = map(math.log, DT_RANGE)
        log = low + (high - low) * torch.rand(self.h, generator=generator)
        self.dt_parameter.copy_(torch.log(torch.expm1(log.exp())) if self.softplus else log)

    def spread(self, x: Tensor) -> Tensor:
        """Copies -> channels, (s, ...) -> (h, ...)."""
        return x if self.copies == self.h else x.repeat(self.h // self.copies, *[1] * (x.ndim - 1))


class DiagonalKernel(Kernel):
    """S4D (2206.11893): A = diag(lam), zero-order hold. With init = "real": n real modes, no pairs.

    Parameters: A_real = log(-Re lam), A_imag = Im lam, B (or 1, without learn_b), C, and Delta.
    """

    slow = ("a_real", "a_imag", "b", "p", "q")

    def __init__(
        self, h: int, n: int, channels: int = 1, copies: int = 0, softplus: bool = False, init: Init = "lin",
        learn_b: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(h, n, channels, copies, softplus)
        self.init, self.real = init, init == "real"
        self.m = n if self.real else n // 2
        tail = () if self.real else (2,)
        self.a_real = nn.Parameter(torch.empty(self.copies, self.m))
        self.a_imag = None if self.real else nn.Parameter(torch.empty(self.copies, self.m))
        self.b = nn.Parameter(torch.empty(self.copies, self.m, *tail)) if learn_b else None
        self.c = nn.Parameter(torch.empty(channels, h, self.m, *tail))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        self.initialise_dt(generator)
        lam, b = initial(self.init, self.n, generator)
        self.a_real.copy_(torch.log(-lam.real))
        if self.a_imag is not None:
            self.a_imag.copy_(lam.imag)
        if self.b is not None:
            self.put(self.b, b)
        shape = (self.channels, self.h, self.m)
        self.put(self.c, torch.randn(shape, generator=generator, dtype=torch.complex64))

    def as_complex(self, parameter: Tensor) -> Tensor:
        """A parameter stored as (..., 2), or a real one, as complex."""
        return torch.complex(parameter, torch.zeros_like(parameter)) if self.real else torch.view_as_complex(parameter)

    def put(self, parameter: Tensor, value: Tensor) -> None:
        parameter.copy_(value.real if self.real else torch.view_as_real(value.resolve_conj()))

    def numbers(self) -> Parameters:
        lam = torch.complex(-self.a_real.exp(), torch.zeros_like(self.a_real) if self.a_imag is None else self.a_imag)
        b = torch.ones_like(lam) if self.b is None else self.as_complex(self.b)
        c = self.as_complex(self.c)
        none = c.new_zeros(0)
        return Parameters(self.dt(), self.spread(lam), self.spread(b), c, none, none)

    def forward(self, length: int) -> Tensor:
        """K (c, h, length)."""
        with torch.autocast(self.c.device.type, enabled=False):
            dt, lam, b, c, *_ = self.numbers()
            gain = expm1(dt * lam) / lam  # (A_bar - I) A^-1
            return vandermonde(c * (b * gain), (dt * lam).to(torch.complex128), length)

    def recurrence(self) -> tuple[Tensor, ...]:
        """What `step` needs: A_bar, B_bar, C."""
        dt, lam, b, c, *_ = self.numbers()
        return torch.exp(dt * lam), b * expm1(dt * lam) / lam, c

    def step(self, u: Tensor, state: Tensor, recurrence: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """One step in O(n): u (b, h), state (b, h, m) -> y (b, h, c), state."""
        a, b, c = recurrence
        state = a * state + b * u[..., None]
        return 2 * torch.einsum("chm,bhm->bhc", c, state).real, state


class S4Kernel(DiagonalKernel):
    """S4: A = Lambda - P Q^* under the bilinear rule (Section 3). What is trained in C's place is C (I - A_bar^L).

    Args:
        length: L, the longest kernel. untied: Q has parameters of its own (Section 3.4: 5 n numbers); else Q = P.
        method: of computing K. "fft": the Cauchy sums at the roots of unity are the transforms of diagonal kernels,
            sum_l a^l z^l = (1 - a^L) / (1 - a z), which `vandermonde` has at the cost of a matrix product.
            "cauchy": as Algorithm 1 says it.
    """

    def __init__(
        self, h: int, n: int, length: int, channels: int = 1, copies: int = 0, softplus: bool = False,
        init: Init = "legs", untied: bool = False, method: Literal["fft", "cauchy"] = "fft",
    ) -> None:  # fmt: skip
        if init == "real":
            raise UserError("S4's low-rank term needs complex modes: take another init than real")
        super().__init__(h, n, channels, copies, softplus, init)
        self.length, self.method = length, method
        self.p = nn.Parameter(torch.empty(self.copies, self.m, 2))
        self.q = nn.Parameter(torch.empty(self.copies, self.m, 2)) if untied else None

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        if self.init in ("legs", "legs-clipped"):
            self.put(self.p, legs_start(self.n, self.init == "legs-clipped")[1])
        else:
            self.put(self.p, torch.randn(self.m, generator=generator, dtype=torch.complex64))
        if self.q is not None:
            self.q.copy_(self.p)
        a_bar, *_ = self.dense()
        c = joined(self.as_complex(self.c)).to(a_bar)
        tail = torch.einsum("hij,chi->chj", torch.linalg.matrix_power(a_bar, self.length), c)
        self.put(self.c, (c - tail)[..., : self.m])

    def numbers(self) -> Parameters:
        dt, lam, b, c, *_ = super().numbers()
        p = self.spread(self.as_complex(self.p))
        return Parameters(dt, lam, b, c, p, p if self.q is None else self.spread(self.as_complex(self.q)))

    def forward(self, length: int) -> Tensor:
        """K (c, h, length).

        Raises:
            UserError: longer than what the kernel was made for.
        """
        if length > self.length:
            raise UserError(f"a sequence of {length} is longer than the kernel, {self.length}")
        with torch.autocast(self.c.device.type, enabled=False):
            dt, lam, b, c, p, q = self.numbers()
            v = torch.cat([c * b, c * p, torch.stack([q.conj() * b, q.conj() * p])])  # (2 c + 2, h, m)
            z = self.roots(lam)
            if self.method == "cauchy":
                r = cauchy(v, lam, dt, z)
            else:
                half = (dt * lam / 2).to(torch.complex128)
                log_a = log_bilinear(half)
                gain = (dt / (1 - half) / -expm1(self.length * log_a)).to(v.dtype)
                r = torch.fft.rfft(vandermonde(v * gain, log_a, self.length))
            cb, cp, (qb, qp) = r[: self.channels], r[self.channels : -2], r[-2:]
            w = (1 + z) / 2
            generating = cb - w * cp * (qb / (1 + w * qp))  # Woodbury
            return torch.fft.irfft(generating, self.length)[..., :length]

    def roots(self, like: Tensor) -> Tensor:
        """exp(-2 pi i k / L) for k <= L / 2."""
        k = torch.arange(self.length // 2 + 1, device=like.device, dtype=like.real.dtype)
        return torch.polar(torch.ones_like(k), -2 * math.pi / self.length * k)

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """A_bar (h, n, n), B_bar (h, n) and the trained C (c, h, n), complex128, both of each pair."""
        dt, lam, b, c, p, q = (x.to(torch.complex128) for x in self.numbers())
        a = torch.diag_embed(joined(lam)) - joined(p)[..., None] * joined(q).conj()[:, None]
        a = a * dt[..., None] / 2
        eye = torch.eye(self.n, dtype=a.dtype, device=a.device)
        return (
            torch.linalg.solve(eye - a, eye + a),
            torch.linalg.solve(eye - a, joined(b) * dt),
            joined(c),
        )

    @torch.no_grad()
    def recurrence(self) -> tuple[Tensor, ...]:
        """What `step` needs: D = (2 / dt - Lambda)^-1, E = 2 / dt + Lambda, B, P, Q^*, the factor of the low-rank
        term, and the true C."""
        a_bar, _, trained = self.dense()
        rest = torch.eye(self.n, dtype=a_bar.dtype, device=a_bar.device)
        rest = rest - torch.linalg.matrix_power(a_bar, self.length)
        c = torch.linalg.solve(rest.transpose(1, 2), trained[..., None])[..., : self.m, 0]
        dt, lam, b, kept, p, q = self.numbers()
        d = 1 / (2 / dt - lam)
        return d, 2 / dt + lam, 2 * b, p, q.conj(), 1 / (1 + real_sum(q.conj() * d * p)), c.to(kept.dtype)

    def step(self, u: Tensor, state: Tensor, recurrence: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """One step in O(n), A_bar = D-like products and rank-one terms (Theorem 2): as `DiagonalKernel.step`."""
        d, e, b, p, q, r, c = recurrence
        v = e * state - p * real_sum(q * state) + b * u[..., None]
        state = d * (v - p * (r * real_sum(q * d * v)))
        return 2 * torch.einsum("chm,bhm->bhc", c, state).real, state


class DenseKernel(Kernel):
    """A dense real A under the bilinear rule, K by repeated squaring: the LSSL layer, and the SSMs of Figure 3."""

    slow = ("a", "b")

    def __init__(
        self, h: int, n: int, channels: int = 1, copies: int = 1, softplus: bool = False, init: Init = "legs"
    ) -> None:
        super().__init__(h, n, channels, copies, softplus)
        self.init = init
        self.a = nn.Parameter(torch.empty(self.copies, n, n))
        self.b = nn.Parameter(torch.empty(self.copies, n))
        self.c = nn.Parameter(torch.empty(channels, h, n))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        self.initialise_dt(generator)
        a, b = legs(self.n)
        if self.init == "gaussian":
            a = torch.randn(self.n, self.n, generator=generator, dtype=a.dtype) / math.sqrt(self.n)
            a -= torch.eye(self.n)  # eigenvalues in a disc that touches the imaginary axis
        elif self.init == "diagonal":
            a = -torch.diag(self.n * torch.rand(self.n, generator=generator, dtype=a.dtype))
        elif self.init != "legs":
            raise UserError(f"a dense A starts as legs, gaussian or diagonal, not {self.init}")
        self.a.copy_(a)
        self.b.copy_(b if self.init == "legs" else torch.ones_like(b))
        self.c.copy_(torch.randn(self.c.shape, generator=generator))

    def forward(self, length: int) -> Tensor:
        """K (c, h, length) in O(h (n^3 log L + n^2 L))."""
        with torch.autocast(self.c.device.type, enabled=False):
            power, b, c = self.recurrence()
            columns = b[..., None]
            while columns.shape[-1] < length:
                columns = torch.cat([columns, power @ columns], -1)  # (h, n, 2^i)
                if columns.shape[-1] < length:
                    power = power @ power
            return torch.einsum("chn,hnl->chl", c, columns[..., :length])

    def recurrence(self) -> tuple[Tensor, ...]:
        """A_bar (h, n, n), B_bar (h, n), C."""
        a = self.spread(self.a) * (self.dt() / 2)[..., None]
        eye = torch.eye(self.n, dtype=a.dtype, device=a.device)
        right = torch.cat([eye + a, (self.dt() * self.spread(self.b))[..., None]], -1)
        both = torch.linalg.solve(eye - a, right)
        return both[..., :-1], both[..., -1], self.c

    def step(self, u: Tensor, state: Tensor, recurrence: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """One step in O(n^2): as `DiagonalKernel.step`, with a state (b, h, n)."""
        a, b, c = recurrence
        state = torch.einsum("hij,bhj->bhi", a, state) + b * u[..., None]
        return torch.einsum("chn,bhn->bhc", c, state), state


def initial(init: Init, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """lam and B of a diagonal (part of a) state matrix, one of each pair.

    "legs": Lambda of Theorem 1, HiPPO's B; "legs-clipped": the official code's B. "lin", "inv": S4D-Lin, S4D-Inv.
    "real": -1 ... -n. "random": the code's random frequencies, exp of a normal. But for LegS, B = 1.
    """
    k = torch.arange(n // 2, dtype=torch.float64)
    if init in ("legs", "legs-clipped"):
        lam, _, b = legs_start(n, init == "legs-clipped")
        return lam, b
    if init == "real":
        lam = torch.complex(-1 - torch.arange(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64))
        return lam, torch.ones_like(lam)
    if init == "lin":
        frequency = math.pi * k
    elif init == "inv":
        frequency = n / math.pi * (n / (2 * k + 1) - 1)
    elif init == "random":
        frequency = torch.randn(n // 2, generator=generator, dtype=torch.float64).exp()
    else:
        raise UserError(f"a diagonal A does not start as {init}: take legs, lin, inv, real or random")
    lam = torch.complex(torch.full_like(frequency, -0.5), frequency)
    return lam, torch.ones_like(lam)

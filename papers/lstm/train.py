"""Trains tiny LSTM nets online on the tasks of the 1997 paper, each trial (one seed) until its stopping rule."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("lstm")

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np

from common.cost import slope
from common.errors import UserError
from common.random import generator
from common.run import Run
from common.threads import each
from papers.lstm import data, kernel
from papers.lstm.config import Config
from papers.lstm.model import LSTM

SEEDS = "sharded"
REBER_SETS = 3  # pairs of training and test sets, each with its own ten initialisations (5.1)
ROUND_ROWS = 200_000  # time steps a trial goes on between two looks at the clock; moves no number


def task_of(cfg: Config) -> tuple[str, int, int, int, int]:
    """What `data` needs to know of the configuration."""
    kind, _, name = cfg.dataset.partition("/")
    if kind != "generated":
        raise UserError(f"dataset {cfg.dataset}: this paper's data is generated, write generated/<task>")
    return name, cfg.min_length, cfg.informative, cfg.distractors, cfg.lag


def build(cfg: Config, seeds: int) -> LSTM:
    """The nets of a configuration, not initialised."""
    _, inputs, outputs, _ = data.describe(*task_of(cfg))
    return LSTM(
        inputs, outputs, cfg.blocks, cfg.block_size, seeds=seeds, recurrence=cfg.recurrence,
        outputs_see_inputs=cfg.outputs_see_inputs, output_gates=cfg.output_gates, forget_gates=cfg.forget_gates,
        self_recurrence=cfg.self_recurrence, g=cfg.g, h=cfg.h, hidden_biases=cfg.hidden_biases,
        output_biases=cfg.output_biases, truncated=cfg.gradient == "truncated",
    ).double()  # fmt: skip


def start(cfg: Config, seed: int) -> LSTM:
    """One net as a trial begins with it."""
    for name in ("input_gate_bias", "output_gate_bias", "forget_gate_bias"):
        biases = getattr(cfg, name)
        if biases and (len(biases) != cfg.blocks or cfg.hidden_biases == "none"):
            raise UserError(
                f"{name} has {len(biases)} values for {cfg.blocks} blocks; give one each, or none for random"
            )
    if cfg.gradient == "full" and (cfg.update == "step" or not cfg.reset):
        raise UserError(
            "gradient full needs a whole sequence: use update sequence and reset True, or gradient truncated"
        )
    net = build(cfg, 1)
    net.initialise(
        [generator(seed, "init")], cfg.init_range, cfg.input_gate_bias, cfg.output_gate_bias, cfg.forget_gate_bias
    )
    return net


def shape_of(net: LSTM) -> kernel.Net:
    return kernel.Net(
        net.inputs, net.outputs, net.blocks, net.size, net.fed_back, int(net.output_gates), int(net.forget_gates),
        int(net.outputs_see_inputs), int(net.g_wide), int(net.h_wide), net.self_recurrence,
    )  # fmt: skip


def rule_of(cfg: Config) -> kernel.Rule:
    return kernel.Rule(
        full=int(cfg.gradient == "full"),
        per_step=int(cfg.update == "step"),
        reset=int(cfg.reset),
        legal_targets=int(cfg.targets == "legal"),
        judge={"end": kernel.END, "all": kernel.ALL, "order": kernel.ORDER}[cfg.judge],
        tolerance=cfg.tolerance,
        stream=int(cfg.stop == "streams"),
        max_wrong=cfg.window_wrong if cfg.stop == "window" else -1,
        max_error=cfg.window_error,
    )


class Trial:
    """One seed: its net, its sequences, and how far it is. All that changes is in `state`."""

    def __init__(self, cfg: Config, seed: int) -> None:
        self.cfg, self.seed = cfg, seed
        net = start(cfg, seed)
        W, V, self.learns = net.arrays()
        self.shape, self.rule = shape_of(net), rule_of(cfg)
        task = task_of(cfg)
        buffered = 200 if cfg.stop == "streams" else 2_000
        self.train_data = data.Source(*task, data.key_of(seed, "data"), buffered)
        self.test_data = data.Source(*task, data.key_of(seed, "test"), buffered)
        self.test_pool: list[data.Sequences] = []
        if task[0] == "reber":
            train, test = data.reber_sets(data.key_of("reber sets", seed % REBER_SETS), 256)
            self.train_data.pool, self.test_pool = train, [train, test]
        self.said = np.zeros((3, 2_000))
        y, s, P = kernel.empty_carry(self.shape)
        window = cfg.window_sequences
        self.state: dict[str, Any] = {
            "W": W, "V": V, "y": y, "s": s, "P": P,
            "flags": np.zeros(window, dtype=np.int64), "errors": np.zeros(window),
            "counters": np.zeros(2, dtype=np.int64),
            # of streams: sequences read by training and by tests. Active: the hidden layer is there (task 2a).
            "read": np.zeros(2, dtype=np.int64), "active": np.array([int(cfg.grow_after_sequences == 0)]),
            "block_error": np.array([0.0, np.inf]),  # task 2a, see _grow
            "sequences": np.zeros(1, dtype=np.int64), "tests": np.zeros(1, dtype=np.int64),
            "done": np.zeros(1, dtype=np.int64), "solved": np.zeros(1, dtype=np.int64),
            "st1": np.full(1, np.nan), "at_report": np.full(1, np.nan),
            "test": np.full(3, np.nan),  # final test: wrong, mean absolute error, root mean square error
        }  # fmt: skip

    @property
    def done(self) -> bool:
        return bool(self.state["done"][0])

    @property
    def sequences(self) -> int:
        return int(self.state["sequences"][0])

    # ---- pieces

    def run_kernel(self, sequences: data.Sequences, first: int, last: int, lr: float, enough: int, carry: Any) -> Any:
        s = self.state
        window = (s["flags"], s["errors"], s["counters"])
        return kernel.run(
            self.shape, self.rule, s["W"], s["V"], self.learns, carry, lr, int(s["active"][0]), sequences, first, last,
            enough, window, self.said,
        )  # fmt: skip

    def _test(self, source: data.Source, first: int, count: int, allowed: int) -> tuple[int, int, np.ndarray]:
        """Read without learning; give up when more than `allowed` are wrong. Returns (read, wrong, sums of `said`)."""
        total, read = np.zeros(3), 0
        carry = kernel.empty_carry(self.shape)
        pool = list(self.test_pool)
        while read < count and total[0] <= allowed:
            if self.test_pool:
                if not pool:
                    break
                sequences = pool.pop(0)
                made = len(sequences.start) - 1
            else:
                sequences, made = source.read(first + read, min(count - read, 16 if read == 0 else 256))
            done, _, _ = self.run_kernel(sequences, 0, made, 0.0, allowed - int(total[0]), carry)
            total += self.said[:, :done].sum(1)
            read += done
        return read, int(total[0]), total

    def fraction_correct(self) -> float:
        """Percentage right among the last `window_sequences` training sequences (streams)."""
        seen = min(int(self.state["counters"][kernel.N]), self.cfg.window_sequences)
        return 100.0 * (1.0 - self.state["counters"][kernel.WRONG] / seen) if seen else 0.0

    def window_mean(self) -> float:
        """Average absolute error over the same sequences; of streams, how many sequences they lasted."""
        seen = min(int(self.state["counters"][kernel.N]), self.cfg.window_sequences)
        return float(self.state["errors"][:seen].mean()) if seen else math.nan

    # ---- going on

    def advance(self, sequences: int) -> None:
        """Train on so many sequences (streams) more, or until done."""
        end = min(self.sequences + sequences, self.cfg.max_sequences)
        while self.sequences < end and not self.done:
            if self.cfg.stop == "streams":
                self._one_stream()
            else:
                self._some_sequences(end - self.sequences)
        if self.sequences >= self.cfg.max_sequences:
            self.state["done"][0] = 1
        if self.done and np.isnan(self.state["at_report"][0]):
            self.state["at_report"][0] = self.fraction_correct()
        if self.done and self.cfg.test_sequences:  # the final test set, read once
            read, wrong, total = self._test(self.test_data, 2**31, self.cfg.test_sequences, self.cfg.test_sequences)
            self.state["test"][:] = wrong, total[1] / read, math.sqrt(total[2] / read)

    def _some_sequences(self, most: int) -> None:
        cfg, s, n = self.cfg, self.state, self.sequences
        for every, wanted in (
            (cfg.test_every_sequences, cfg.stop == "test"),
            (cfg.grow_after_sequences, not s["active"][0]),
            (cfg.report_sequences, n < cfg.report_sequences),
        ):
            if wanted:  # stop exactly where something is to be looked at
                most = min(most, every - n % every)
        sequences, made = self.train_data.read(n, most)
        carry = (s["y"], s["s"], s["P"])
        done, _, stopped = self.run_kernel(sequences, 0, made, cfg.lr, 0, carry)
        s["sequences"] += done
        n = self.sequences
        if stopped:
            s["solved"][0] = s["done"][0] = 1
        if not s["active"][0]:
            self._grow(self.said[1, :done], n)
        if cfg.stop == "test" and n % cfg.test_every_sequences == 0:
            self._stopping_test()
        if np.isnan(s["at_report"][0]) and n >= cfg.report_sequences:
            s["at_report"][0] = self.fraction_correct()

    def _grow(self, errors: np.ndarray, n: int) -> None:
        """Task 2a: the memory cell comes once the error has stopped decreasing (section 4, abuse problem)."""
        block = self.state["block_error"]  # sum over the block so far, mean of the block before
        block[0] += errors.sum()
        if n % self.cfg.grow_after_sequences == 0:
            mean = block[0] / self.cfg.grow_after_sequences
            self.state["active"][0] = int(mean >= (1 - self.cfg.grow_below) * block[1])
            block[:] = 0.0, mean

    def _stopping_test(self) -> None:
        """ST1: few enough wrong. ST2: ST1, and the mean error small enough. Task 1: all strings of both sets right."""
        cfg, s = self.cfg, self.state
        first = int(s["tests"][0]) * cfg.stop_test_sequences if cfg.fresh_test_set else 0
        count = 2 * cfg.stop_test_sequences if self.test_pool else cfg.stop_test_sequences
        s["tests"] += 1
        read, wrong, total = self._test(self.test_data, first % 2**31, count, cfg.stop_wrong)
        if wrong <= cfg.stop_wrong:
            if np.isnan(s["st1"][0]):
                s["st1"][0] = self.sequences
            if total[1] / read < cfg.stop_error:
                s["solved"][0] = s["done"][0] = 1

    def _one_stream(self) -> None:
        """Gers et al. 2000: learn from one stream until its first error, then ask for perfect test streams."""
        cfg, s = self.cfg, self.state
        lr = cfg.lr * cfg.lr_decay ** (self.sequences // cfg.lr_decay_streams)
        strings, failed = self._stream(self.train_data, 0, lr, (s["y"], s["s"], s["P"]))
        s["sequences"] += 1
        slot = int(s["counters"][kernel.N]) % cfg.window_sequences
        s["counters"][kernel.WRONG] += int(failed) - s["flags"][slot]
        s["flags"][slot], s["errors"][slot] = int(failed), strings
        s["counters"][kernel.N] += 1
        for _ in range(cfg.test_streams):  # one that fails settles it: the others are not read
            if self._stream(self.test_data, 1, 0.0, kernel.empty_carry(self.shape))[1]:
                return
        s["solved"][0] = s["done"][0] = 1

    def _stream(self, source: data.Source, which: int, lr: float, carry: Any) -> tuple[int, bool]:
        """One stream, from a state of zeros: (sequences read, ended by an error)."""
        for part in carry:
            part[...] = 0.0
        strings = symbols = 0
        read = self.state["read"]
        while strings < self.cfg.stream_sequences and symbols < self.cfg.stream_symbols:
            most = min(source.most, self.cfg.stream_sequences - strings, 4 if strings < 4 else source.most)
            sequences, made = source.read(int(read[which]), most)
            done, rows, failed = self.run_kernel(sequences, 0, made, lr, made, carry)
            read[which] += done
            strings, symbols = strings + done, symbols + rows
            if failed:
                return strings, True
        return strings, False

    def metrics(self) -> dict[str, float]:
        s, cfg = self.state, self.cfg
        found = {"sequences": float(self.sequences), "solved": 100.0 * float(s["solved"][0])}
        if cfg.stop == "test":
            found["sequences_st1"] = float(s["st1"][0]) if not np.isnan(s["st1"][0]) else float(self.sequences)
        if cfg.stop != "streams":
            found["correct_at_report"] = float(s["at_report"][0])
        if cfg.test_sequences:
            wrong, error, rmse = (float(v) for v in s["test"])
            found |= {f"wrong_of_{cfg.test_sequences}": wrong, "fraction_wrong": wrong / cfg.test_sequences}
            found |= {"test_error": error, "test_rmse": rmse}
        return found


def typical_length(cfg: Config) -> int:
    """Roughly how many time steps a sequence (late in training, a stream) has."""
    if cfg.stop == "streams":
        return 20_000
    sizes = {"reber": 12, "2a": cfg.distractors, "2b": cfg.distractors, "2c": cfg.lag}
    return sizes.get(task_of(cfg)[0], cfg.min_length)


def worth_logging(step: int) -> bool:
    """Every step at first, then eight times between one power of two and the next."""
    return step % max(1, 2 ** (step.bit_length() - 4)) == 0


def train(cfg: Config, run: Run) -> None:
    task = task_of(cfg)
    run.read(cfg.dataset, data.fingerprint(task[0]))
    if cfg.stop == "cost":
        complexity(cfg, run)
        return
    trials = [Trial(cfg, seed) for seed in run.seeds]
    state = {f"seed-{trial.seed}": trial.state for trial in trials}
    a_round = max(1, min(ROUND_ROWS // typical_length(cfg), -(-cfg.max_sequences // 10)))
    for step in run.steps(-(-cfg.max_sequences // a_round), state):
        each(lambda trial: trial.advance(a_round), [(trial,) for trial in trials if not trial.done])
        over = all(trial.done for trial in trials)
        if worth_logging(step) or over:
            run.log(
                step,
                sequences=[trial.sequences for trial in trials],
                correct=[trial.fraction_correct() for trial in trials],
                **{"lasted" if cfg.stop == "streams" else "error": [trial.window_mean() for trial in trials]},
            )
        if over:
            break
    run.finish([trial.metrics() for trial in trials])


def complexity(cfg: Config, run: Run) -> None:
    """Section 4: the cost of a time step is O(W). Slope of log time per step on log W, over nets of growing size."""
    run.timed()
    found: list[dict[str, float]] = []
    for _ in run.steps(1, {}):
        for seed in run.seeds:
            points = [_cost_of_a_step(cfg, blocks, seed) for blocks in (8, 16, 32, 64)]
            weights, seconds = zip(*points, strict=True)
            found.append({"slope": slope(weights, seconds), "nanoseconds_per_weight": 1e9 * seconds[-1] / weights[-1]})
        run.log(0, slope=[one["slope"] for one in found])
    run.finish(found)


def _cost_of_a_step(cfg: Config, blocks: int, seed: int) -> tuple[int, float]:
    """(weights, seconds a time step takes): the fastest of eight times."""
    cfg = replace(cfg, blocks=blocks)
    trial = Trial(cfg, seed)
    sequences, made = trial.train_data.read(0, cfg.max_sequences)
    carry = kernel.empty_carry(trial.shape)
    fastest = math.inf
    for _ in range(8):  # the first time may include compilation
        begun = time.perf_counter()
        _, rows, _ = trial.run_kernel(sequences, 0, made, cfg.lr, 0, carry)
        fastest = min(fastest, (time.perf_counter() - begun) / rows)
    return build(cfg, 1).weights(), fastest

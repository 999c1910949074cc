"""Progress on the main process: a bar on a terminal, a line now and then elsewhere."""

import sys
import time


class Progress:
    """Shows step, the last logged values, rate and time left."""

    LINE_SECONDS = 20.0

    def __init__(self, total: int, start: int, shown: bool) -> None:
        self.total, self.start, self.shown = total, start, shown
        self.begun = self.printed = time.monotonic()
        self.text = ""
        self._bar = None
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = [
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            ]
            self._bar = Bar(*columns, console=Console(stderr=True), refresh_per_second=4)
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=start, rate="")

    def note(self, text: str) -> None:
        """The values to show beside the step."""
        self.text = text

    def update(self, done: int) -> None:
        """`done` steps of the total are finished."""
        if not self.shown:
            return
        now = time.monotonic()
        if self._bar is not None:
            if now - self.printed > 0.2 or done == self.total:
                self.printed = now
                self._bar.update(self._task, completed=done, description=self.text, rate=self._rate(done, now))
        elif now - self.printed > self.LINE_SECONDS:
            self.printed = now
            rate = (done - self.start) / max(now - self.begun, 1e-9)
            left = time.strftime("%H:%M:%S", time.gmtime((self.total - done) / max(rate, 1e-9)))
            print(
                f"step {done}/{self.total}  {self.text}  {self._rate(done, now)}  {left} left",
                file=sys.stderr,
                flush=True,
            )

    def _rate(self, done: int, now: float) -> str:
        return f"{(done - self.start) / max(now - self.begun, 1e-9):.3g} steps/s"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

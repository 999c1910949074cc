"""`repro board --serve`: the page from this machine to this machine."""

import http.server
import webbrowser
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.paths import ROOT

SHOWN = ("leaderboards", "papers")  # what the page links to; nothing else of the folder goes out


class _Pages(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, directory=str(ROOT), **more)

    def send_head(self) -> Any:
        """The file asked for, or 404; / leads to the page."""
        if self.path.partition("#")[0].partition("?")[0] == "/":
            self.send_response(302)
            self.send_header("Location", "/leaderboards/index.html")
            self.end_headers()
            return None
        inside = Path(self.translate_path(self.path)).resolve()
        if not inside.is_file() or not any(inside.is_relative_to(ROOT / name) for name in SHOWN):
            self.send_error(404)
            return None
        return super().send_head()

    def guess_type(self, path: Any) -> str:
        return "text/plain; charset=utf-8" if str(path).endswith(".md") else super().guess_type(path)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the terminal shows the address."""


def server(port: int) -> http.server.ThreadingHTTPServer:
    """A server on this machine's own address only; port 0 takes a free one.

    Raises:
        UserError: the port is taken.
    """
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), _Pages)
    except OSError as error:
        raise UserError(f"port {port} cannot be used: {error.strerror}; name another with --port") from None


def serve(port: int) -> None:
    """Open the page in the browser and serve it until Ctrl-C."""
    with server(port) as pages:
        address = f"http://127.0.0.1:{pages.server_address[1]}/"
        print(f"{address} (Ctrl-C ends)", flush=True)
        webbrowser.open(address)
        try:
            pages.serve_forever()
        except KeyboardInterrupt:
            print()

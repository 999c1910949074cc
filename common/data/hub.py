"""Data sets of the Hugging Face Hub, or of a local mirror laid out like it: one code path."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError

if TYPE_CHECKING:
    import numpy as np


def load(name: str, split: str, data_dir: Path | None, streaming: bool = False, revision: str | None = None) -> Any:
    """Load one split of a Hub data set, e.g. `load("ylecun/mnist", "train", None)`, or open it as a stream.

    What follows a second slash is the configuration: `wmt/wmt14/de-en`. A folder `<data_dir>/hub/<name>` is read in
    place of the Hub; without a network, what the Hub's cache has will do.

    Raises:
        UserError: neither the folder, nor the Hub, nor its cache has it.
    """
    folder = data_dir / "hub" / name if data_dir else None
    here = folder if folder is not None and folder.is_dir() else None
    import datasets
    import huggingface_hub.constants

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it would say of a torn file is in our one line
    online = here is not None or reachable()
    if not online:  # only the cache can help; the environment's HF_HUB_OFFLINE was read at import
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    from datasets.exceptions import DatasetsError

    owner, _, configuration = name.rpartition("/") if name.count("/") > 1 else (name, "", None)
    try:
        if here is not None:  # files are named by their split, whatever it is called
            files = sorted(str(file.relative_to(here)) for file in here.rglob(f"{split}-*.parquet"))
            return datasets.load_dataset(
                str(here), split=split, streaming=streaming, data_files={split: files} if files else None
            )
        return datasets.load_dataset(owner, configuration, split=split, streaming=streaming, revision=revision)
    except DatasetsError as error:
        raise UserError(damaged(f"{name} ({split})", error.__cause__ or error)) from None
    except (OSError, ValueError) as error:
        reason = f" ({str(error).splitlines()[0]})" if online and str(error) else ""
        raise UserError(missing(name, data_dir) + reason) from None


def reachable(host: str = "huggingface.co", seconds: float = 3.0) -> bool:
    """Whether a connection to the Hub can be opened."""
    import socket

    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return False
    if os.environ.get("HF_ENDPOINT") or os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True  # through a mirror or proxy: only a real request can tell
    try:
        socket.create_connection((host, 443), seconds).close()
    except OSError:
        return False
    return True


def missing(name: str, data_dir: Path | None) -> str:
    """The one line a user needs when a data set cannot be had."""
    looked = f"not in {data_dir}/hub" if data_dir else "PAPERS_DATA is not set"
    return (
        f"data set {name} cannot be read: {looked}, and the Hugging Face Hub is out of reach; "
        f"put a copy at DIR/hub/{name} and set PAPERS_DATA=DIR (or --data-dir DIR)"
    )


def damaged(name: str, error: BaseException) -> str:
    """The one line a user needs when a data set breaks off, or a file of it is torn."""
    said = str(error).splitlines() or [""]
    return f"data set {name} breaks off or is damaged ({type(error).__name__}: {said[0][:200]}); fetch it anew"


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever a file or a connection stumbles over while a data set is read becomes one line (UserError)."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(damaged(name, error)) from None


def fingerprint(*arrays: "np.ndarray") -> str:
    """SHA-256 over type, shape and content of what was read: `sha256:...`."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return f"sha256:{digest.hexdigest()}"

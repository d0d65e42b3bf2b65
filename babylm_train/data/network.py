"""Whether the Hugging Face hub answers, found out within seconds: its own client tries for 23."""

import os
import threading

from babylm_train.errors import InputError

TIMEOUT = 3.0  # seconds


def offline() -> bool:
    """Whether HF_HUB_OFFLINE asks for the local Hugging Face cache alone."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}


def need_hub(what: str) -> None:
    """Return if the hub answers, or if HF_HUB_OFFLINE is set (its client then reads its cache only).

    Raises:
        InputError: beginning with `what`, after at most `TIMEOUT` seconds.
    """
    if offline():
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answered = threading.Event()
    # A thread, because looking up a name has no time limit of its own.
    thread = threading.Thread(target=_ask, args=(endpoint, answered), daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if not answered.is_set():
        raise InputError(
            f"{what}: {endpoint} does not answer; give a local path, "
            "or set HF_HUB_OFFLINE=1 if the local Hugging Face cache holds it"
        )


def _ask(endpoint: str, answered: threading.Event) -> None:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=TIMEOUT).close()
        answered.set()
    except HTTPError:
        answered.set()  # refused, but there: its client says why
    except (OSError, ValueError, HTTPException):
        pass

"""Whether the Hugging Face hub answers, found out within seconds: its own client tries for 23."""

import os
import threading
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from babylm_train.errors import InputError

TIMEOUT = 3.0  # seconds


def offline() -> bool:
    """Whether HF_HUB_OFFLINE asks for the local Hugging Face cache alone."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}


def need_hub(what: str) -> None:
    """Returns if the hub answers, or if HF_HUB_OFFLINE is set. Raises InputError that begins with `what`."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answers: list[bool] = []
    # A thread, because looking up a name has no time limit of its own.
    thread = threading.Thread(target=lambda: answers.append(_answers(endpoint)), daemon=True)
    if not offline():
        thread.start()
        thread.join(TIMEOUT)
        if answers != [True]:
            hint = "give a local path, or set HF_HUB_OFFLINE=1 if the local Hugging Face cache holds it"
            raise InputError(f"{what}: {endpoint} does not answer; {hint}")


def _answers(endpoint: str) -> bool:
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=TIMEOUT).close()
    except HTTPError:  # refused, but there: its client says why
        return True
    except (OSError, ValueError, HTTPException):
        return False
    return True

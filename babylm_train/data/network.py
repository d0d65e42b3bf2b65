"""Names on the Hugging Face hub, and whether it answers: within seconds, where its own client tries for 23."""

import contextlib
import os
import re
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from babylm_train.errors import InputError

TIMEOUT = 3.0  # seconds


def offline() -> bool:
    """Whether HF_HUB_OFFLINE asks for the local Hugging Face cache alone."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}


def check_hub_name(key: str, name: str) -> None:
    """Raises InputError: `name` is neither a folder nor a possible name on the hub."""
    if os.path.isfile(name) or not (os.path.isdir(name) or re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)):
        raise InputError(f"{key}: no such folder: {name}")


def need_hub(what: str) -> None:
    """Returns if the hub answers, or if HF_HUB_OFFLINE is set. Raises InputError that begins with `what`."""
    if offline():
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with contextlib.suppress(HTTPError):  # refused, but there: its client says why
            urlopen(Request(endpoint, method="HEAD"), timeout=TIMEOUT).close()
    except (OSError, ValueError, HTTPException) as error:
        hint = "give a local path, or set HF_HUB_OFFLINE=1 if the local Hugging Face cache holds it"
        raise InputError(f"{what}: {endpoint} does not answer; {hint}") from error

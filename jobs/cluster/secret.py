"""Recognize secrets, which belong in no file, command line, or log of a run."""

import re

_NAME = r"\w*(API_?KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|PRIVATE_KEY)\w*"
_NAMES = re.compile(_NAME, re.IGNORECASE)
# A variable that is set from a file or from another variable is a reference, not a secret.
_ASSIGNED = re.compile(rf"\b{_NAME}\s*=\s*[\"']?[^\s\"'$`]", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/\s:@]+:[^/\s@$]+@")  # in a URL
_VALUES = (
    _PASSWORD,
    re.compile(r"\bAKIA[0-9A-Z]{16}\b"),  # a key of AWS
    re.compile(r"-----BEGIN "),  # a private key
    re.compile(r"(?<![0-9a-zA-Z])[0-9a-f]{40}(?![0-9a-zA-Z])"),  # a key of W&B
)
_PATHS = ("_FILE", "_PATH", "_DIR")


def is_secret_name(name: str) -> bool:
    """Return whether a variable of this name usually holds a secret."""
    return bool(_NAMES.fullmatch(name)) and not name.upper().endswith(_PATHS)


def holds_password(location: str) -> bool:
    """Return whether a location is a URL with a password. A path may hold a hash of git."""
    return bool(_PASSWORD.search(location))


def holds_secret(text: str) -> bool:
    """Return whether a text looks like a secret, or assigns a variable that usually holds one."""
    assigned = _ASSIGNED.search(text)
    is_assigned = assigned is not None and is_secret_name(assigned[0].partition("=")[0].strip())
    return is_assigned or any(pattern.search(text) for pattern in _VALUES)

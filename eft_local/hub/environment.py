"""What the environment says of the hub and of the way to it, checked before anything relies on it.

huggingface_hub reads some of these variables when it is imported, and the HTTP library others when it connects. What
they cannot use ends there in a ValueError, an SSLError or a connection that fails again and again; here it is one line
that names the variable.
"""

from __future__ import annotations

import os
import re
import ssl
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from eft_local import locations
from eft_local.errors import UsageError, shown

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_SSL = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
_TIMEOUTS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_FOLDERS = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")  # the first that is set decides
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SECRET = re.compile(r"//.*@")  # a user and a password
_Check = Callable[[str], str | None]


def constants() -> Any:
    """Return huggingface_hub's constants: where its cache is, and how long to wait.

    Raises: UsageError if the environment has values that it cannot be imported with.
    """
    for name in _TIMEOUTS:
        _check(name, _timeout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # on variables of downloads that are not ours
        from huggingface_hub import constants

    return constants


def cache_folder() -> Path:
    """Return the folder of the Hugging Face cache. Raises: UsageError where there is none."""
    decides = next((name for name in _FOLDERS if name in os.environ), None)
    if decides:
        _check(decides, _folder)
    folder: str = constants().HF_HUB_CACHE
    if folder.startswith("~"):
        raise UsageError(f"{locations.NO_HOME}; set HF_HOME to a folder for models")
    return Path(folder)


def check_network() -> None:
    """Refuse what would keep every request from the hub. Raises: UsageError naming the variable and its value."""
    _check("HF_ENDPOINT", _address)
    for name in _PROXIES:
        _check(_spelt(name), _proxy)
    _check("SSL_CERT_FILE", _certificates)
    if not os.environ.get("SSL_CERT_FILE"):
        _check("SSL_CERT_DIR", _certificate_folder)
    _check("SSLKEYLOGFILE", _key_log)
    _check_client()


def token() -> str | None:
    """Return the user's token, None for nobody's. Raises: UsageError, without it, if no header can hold it."""
    hub_constants = constants()
    if hub_constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    from huggingface_hub import get_token

    source = next((name for name in _TOKENS if os.environ.get(name)), f"the file {hub_constants.HF_TOKEN_PATH}")
    try:
        found = get_token()
    except Exception as error:  # a file, or what HF_OIDC_RESOURCE asks for
        reason = "it is not text" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
        mend = "`hf auth login` writes another, HF_HUB_DISABLE_IMPLICIT_TOKEN=1 goes without"
        raise UsageError(f"the token of {source} cannot be read ({reason}); {mend}") from None
    if found is not None and re.fullmatch(r"[!-~]+", found) is None:
        raise UsageError(f"the token of {source} has letters that no token has (it is not shown here); correct it")
    return found


def way_to(address: str) -> str:
    """Return how a connection to an address goes, to be put after it: ", through the proxy of HTTPS_PROXY=…" or ""."""
    parts = urlsplit(address)
    if parts.hostname is None or proxy_bypass(parts.hostname):
        return ""
    proxies = getproxies()
    for kind in (parts.scheme, "all"):
        if kind in proxies:
            return f" through the proxy {_masked(proxies[kind])} ({_spelt(f'{kind.upper()}_PROXY')})"
    return ""


def _spelt(name: str) -> str:
    """Return how a proxy's variable is spelt here: in small letters it wins."""
    return name.lower() if name.lower() in os.environ else name


def _check(name: str, check: _Check) -> None:
    value = os.environ.get(name)
    need = check(value) if value is not None else None
    if need is not None:
        raise UsageError(f"{name}={shown(_masked(value or ''))}: {need}; correct the variable, or unset it")


def _check_client() -> None:
    """Let the HTTP library set itself up: it knows best what it cannot use."""
    from huggingface_hub import get_session

    try:
        get_session()
    except Exception as error:
        names = [name for name in (*map(_spelt, (*_PROXIES, "NO_PROXY")), *_SSL) if os.environ.get(name)]
        mend = f"correct {' or '.join(names) or 'the settings of the system for proxies'}"
        raise UsageError(f"no connection can be made from here ({_masked(str(error))}); {mend}") from None


def _masked(url: str) -> str:
    return _SECRET.sub("//…@", url)


# Each of these returns what is needed of a value, None for one that can be used.


def _timeout(value: str) -> str | None:
    try:
        return None if int(value) >= 0 else "a number of seconds is needed"
    except ValueError:
        return "a whole number of seconds is needed"


def _address(value: str) -> str | None:
    parts = _split(value)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        return "an address with http:// or https:// is needed, as https://huggingface.co"
    return None


def _proxy(value: str) -> str | None:
    if not value:
        return None
    parts = _split(value if "://" in value else f"http://{value}")
    if parts is None or not parts.hostname:
        return "a proxy's address is needed, as http://proxy:8080"
    if parts.scheme not in _PROXY_SCHEMES:
        return f"{parts.scheme} proxies cannot be used, only {', '.join(_PROXY_SCHEMES)}"
    return None


def _split(url: str) -> SplitResult | None:
    """Return an address in parts, None if it is none, also one whose port is no port."""
    try:
        parts = urlsplit(url)
        _ = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:
        return None
    return None if re.search(r"[\s\x00-\x20\x7f]", url) else parts


def _certificates(value: str) -> str | None:
    if not value:
        return None
    try:
        ssl.create_default_context(cafile=value)
    except (OSError, ValueError) as error:
        return f"no file of certificates that can be used ({getattr(error, 'strerror', None) or error})"
    return None


def _certificate_folder(value: str) -> str | None:
    there = not value or any(os.access(each, os.R_OK) for each in value.split(os.pathsep))
    return None if there else "there is no such folder that can be read"


def _key_log(value: str) -> str | None:
    """OpenSSL refuses every connection whose keys it cannot write down."""
    if not value:
        return None
    place = value if os.access(value, os.F_OK) else Path(value).parent
    is_folder = os.access(f"{value}/.", os.F_OK)
    return None if os.access(place, os.W_OK) and not is_folder else "this file cannot be written to"


def _folder(value: str) -> str | None:
    if not value:
        return "a folder is needed"
    place = Path(os.path.expandvars(locations.expanded(value)))
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        return None if place.is_dir() else f"{place} is not a folder"
    except (OSError, ValueError) as error:
        return f"no folder ({getattr(error, 'strerror', None) or error})"

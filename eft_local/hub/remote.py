"""The hub over HTTP: what a repository holds, what a file is, and its bytes from any position.

Every request goes to the hub itself first and follows its redirects by hand: the token never leaves the hub's
address, and a link that expired is simply requested again. Files that the hub keeps in Xet storage come over the
same plain link, for huggingface_hub's Xet client cannot continue where an earlier run stopped.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from eft_local.errors import DownloadError, ModelNotFoundError, UsageError
from eft_local.hub import cache, environment
from eft_local.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

_LIBRARY = "eft-local"  # how we name ourselves to the hub
_BUSY = {408, 425, 429, 500, 502, 503, 504, 520, 522, 524}
_EXPIRED = {400, 401, 403, 404, 410}  # what file servers answer to a link that is too old
_MAX_REDIRECTS = 20
_LONGEST = 40 * 10**9  # bytes requested at once: the hub's file servers refuse more than 50 GB
_LOGIN = "a proxy's user and password stand in its address, as http://USER:PASSWORD@proxy:8080"
_SHA256, _GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Hiccup(Exception):  # noqa: N818 - no failure yet: the next try may do better
    """A try that failed for a reason that may pass.

    retry_after: the seconds that the server asks to wait, None if it does not say.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Unusable(Exception):  # noqa: N818
    """What was downloaded so far does not fit the file on the hub; only starting over helps."""


@dataclass(frozen=True, slots=True)
class Repository:
    """What the hub says of a repository at a commit. sizes: bytes by path, of every file."""

    name: str
    commit: str
    sizes: Mapping[str, int]
    gated: bool
    licence: str | None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file at a commit. etag: its SHA-256, or git's SHA-1 for a small one; also its name in the cache."""

    repo: str
    commit: str
    path: str
    size: int
    etag: str

    def __str__(self) -> str:
        return f"{self.repo}/{self.path}"


@dataclass(frozen=True, slots=True)
class Hub:
    """Where the hub is, the user's token, and where files are kept.

    endpoint: address without a final slash.  folder: the Hugging Face cache.  token: None for nobody's.
    """

    endpoint: str
    folder: Path
    token: str | None = None

    @classmethod
    def configured(cls) -> Hub:
        """Return the hub of this user: HF_ENDPOINT, HF_TOKEN or the saved login, HF_HUB_CACHE and HF_HOME.

        Raises: UsageError if the environment has something that no request could be made with.
        """
        folder = cache.default_folder()
        environment.check_network()
        return cls(environment.constants().ENDPOINT, folder, environment.token())

    def repository(self, repo: str, revision: str | None) -> Repository:
        """Ask for a repository's files. Raises: Hiccup, ModelNotFoundError, DownloadError."""
        from huggingface_hub import HfApi, constants

        api = HfApi(self.endpoint, token=self.token or False, library_name=_LIBRARY, library_version=__version__)
        with self._translating_errors(repo, revision):
            info = api.model_info(
                repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            )
        card = info.card_data.get("license") if info.card_data else None
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if _is_plain(file.rfilename)}
        if info.sha is None or not _GIT_SHA1.fullmatch(info.sha):
            raise DownloadError(f"{self.endpoint} does not answer like a hub (no commit); check HF_ENDPOINT")
        return Repository(repo, info.sha, sizes, bool(info.gated), card if isinstance(card, str) else None)

    def file(self, repo: str, commit: str, path: str) -> RemoteFile:
        """Ask what a file is. Raises: Hiccup, ModelNotFoundError, DownloadError."""
        from huggingface_hub import get_hf_file_metadata
        from huggingface_hub.errors import FileMetadataError

        with self._translating_errors(repo, commit, path):
            try:
                seen = get_hf_file_metadata(
                    self._url(repo, commit, path),
                    token=self.token or False,
                    endpoint=self.endpoint,
                    library_name=_LIBRARY,
                    library_version=__version__,
                )
            except FileMetadataError as error:
                raise DownloadError(f"{self.endpoint} does not answer like a hub: {error}") from None
        etag = seen.etag or ""
        if not (_SHA256.fullmatch(etag) or _GIT_SHA1.fullmatch(etag)):
            raise DownloadError(f"{self.endpoint} reports no checksum for {repo}/{path}, so it could not be verified")
        if seen.size is None:
            raise DownloadError(f"{self.endpoint} does not report the size of {repo}/{path}; try another mirror")
        return RemoteFile(repo, commit, path, seen.size, etag)

    @contextmanager
    def stream(self, file: RemoteFile, start: int) -> Iterator[Iterator[bytes]]:
        """Open a file and yield its bytes from `start` on, as they come; of a huge file the next part of them.

        Raises: Hiccup, Unusable, ModelNotFoundError, DownloadError.
        """
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import build_hf_headers

        headers = build_hf_headers(token=self.token or False, library_name=_LIBRARY, library_version=__version__)
        headers["Accept-Encoding"] = "identity"
        if file.size - start > _LONGEST:
            headers["Range"] = f"bytes={start}-{start + _LONGEST - 1}"
        elif start:
            headers["Range"] = f"bytes={start}-"
        url = self._url(file.repo, file.commit, file.path)
        with self._translating_errors(file.repo, file.commit, file.path):
            for _ in range(_MAX_REDIRECTS):
                with get_session().stream(
                    "GET", url, headers=headers, follow_redirects=False, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
                ) as response:
                    self._check_same(file, response.headers.get("X-Linked-Etag"))
                    if not response.has_redirect_location:
                        self._check_status(response, file)
                        yield _from(response, file, start)
                        return
                    target = urljoin(url, response.headers["Location"])
                if _origin(target) != _origin(url):
                    headers.pop("authorization", None)
                url = target
        raise DownloadError(f"{self.endpoint} redirects {file} in circles; try another mirror")

    def link(self, file: RemoteFile) -> Path:
        """Let huggingface_hub link a blob that is in the cache, and return the file's path in its snapshot.

        Raises: Hiccup, ModelNotFoundError, DownloadError.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        with self._translating_errors(file.repo, file.commit, file.path):
            try:
                linked = hf_hub_download(
                    file.repo,
                    file.path,
                    revision=file.commit,
                    cache_dir=self.folder,
                    endpoint=self.endpoint,
                    token=self.token or False,
                    library_name=_LIBRARY,
                    library_version=__version__,
                )
            except LocalEntryNotFoundError as error:
                raise Hiccup(f"the hub did not answer: {error.__cause__ or error}") from None
        return Path(linked)

    def _url(self, repo: str, commit: str, path: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(repo, path, revision=commit, endpoint=self.endpoint)

    @staticmethod
    def _check_same(file: RemoteFile, etag: str | None) -> None:
        if etag is not None and etag.removeprefix("W/").strip('"') != file.etag:
            raise Unusable(f"{file} changed on the hub while it was being downloaded")

    def _check_status(self, response: Any, file: RemoteFile) -> None:
        """Raise for an answer that has not the file's bytes."""
        from huggingface_hub.utils import hf_raise_for_status

        if response.status_code in (200, 206):
            return
        if response.status_code == 416:
            raise Unusable(f"the hub has no bytes of {file} where the last try ended")
        from_hub = _origin(str(response.url)) == _origin(self.endpoint)
        if not from_hub and response.status_code in _EXPIRED:
            raise Hiccup(f"the link to {file.path} has expired ({response.status_code})")
        response.read()
        hf_raise_for_status(response)
        raise Hiccup(f"an answer without content ({response.status_code})")

    @contextmanager
    def _translating_errors(self, repo: str, revision: str | None, path: str | None = None) -> Iterator[None]:
        """Turn what huggingface_hub raises into errors of ours, or into a Hiccup when trying again may help."""
        from huggingface_hub import errors
        from socksio import SOCKSError

        try:
            yield
        except errors.OfflineModeIsEnabled:
            raise DownloadError(f"{repo} cannot be requested: HF_HUB_OFFLINE is set; unset it to download") from None
        except errors.HFValidationError as error:
            raise UsageError(f"{repo} is no repository's name: {error}") from None
        except errors.HfHubHTTPError as error:
            raise self._explained(error, repo, revision, path) from None
        except SOCKSError:  # which the HTTP library lets through
            way = environment.way_to(self.endpoint)
            raise Hiccup(
                f"the connection to {self.endpoint}{way} failed (it does not answer as a SOCKS5 proxy does)"
            ) from None
        except _transport_error() as error:
            reason = str(error).partition(" (")[0] or type(error).__name__
            failed = f"the connection to {self.endpoint}{environment.way_to(self.endpoint)} failed ({reason})"
            mend = _mending(error)
            raise (DownloadError(f"{failed}; {mend}") if mend else Hiccup(failed)) from None

    def _explained(self, error: Any, repo: str, revision: str | None, path: str | None) -> Exception:
        """Return what is to be raised for an HTTP error of the hub."""
        from huggingface_hub import errors

        status = error.response.status_code
        if isinstance(error, errors.GatedRepoError):
            if self.token is None:
                return DownloadError(
                    f"{repo} is gated: accept its conditions on its page, then `hf auth login` (or set HF_TOKEN) "
                    "and run the same command again"
                )
            return DownloadError(f"{repo} is gated, and your token has no access: accept its conditions on its page")
        if isinstance(error, errors.RevisionNotFoundError):
            return ModelNotFoundError(f"{repo} has no revision {revision}; check what follows the @")
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return ModelNotFoundError(f"{repo} has no file {path} at {revision}")
        if isinstance(error, errors.DisabledRepoError):
            return DownloadError(f"{repo} was disabled on the hub; choose another repository")
        if isinstance(error, errors.RepositoryNotFoundError) or (status == 401 and self.token is None):
            hint = "" if self.token else "; if it is private, `hf auth login` or set HF_TOKEN"
            return ModelNotFoundError(f"there is no repository {repo} on the hub: check its name{hint}")
        if status == 401:
            return DownloadError("the hub refuses your token: `hf auth login` again, or correct HF_TOKEN")
        if status == 407:
            way = environment.way_to(self.endpoint)
            return DownloadError(f"the connection to {self.endpoint}{way} was refused (407): {_LOGIN}")
        if status in _BUSY:
            return Hiccup(f"the hub is busy ({status})", _retry_after(error.response.headers))
        return DownloadError(f"the hub refuses {repo} ({status}): {error.server_message or 'it does not say why'}")


def _from(response: Any, file: RemoteFile, start: int) -> Iterator[bytes]:
    """Yield an answer's bytes from `start` on. A server that knows no ranges sends them all, again."""
    skip = 0 if response.status_code == 206 else start
    if response.status_code == 206:
        sent = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if sent is None or int(sent[1]) != start:
            raise Unusable(f"{file} was requested from byte {start}, and other bytes came")
        if sent[2] not in ("*", str(file.size)):
            raise Unusable(f"{file} has {sent[2]} bytes now, not {file.size}")
    for chunk in response.iter_bytes():
        if skip < len(chunk):
            yield chunk[skip:]
        skip = max(0, skip - len(chunk))


def _is_plain(path: str) -> bool:
    """Whether a path stays within its repository."""
    return not any(part in ("", ".", "..") for part in path.replace("\\", "/").split("/"))


def part_end(file: RemoteFile, start: int) -> int:
    """Return where the bytes end that `Hub.stream` gives from `start` on."""
    return min(file.size, start + _LONGEST)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that Retry-After asks for, as a number or as a date."""
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _mending(error: BaseException) -> str | None:
    """Return what to do about a connection that will never be made, None where trying again may help."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        set_for_others = [name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name)]
        unread = f" ({' and '.join(set_for_others)} {'are' if set_for_others[1:] else 'is'} not read)"
        return "where a company's proxy looks inside, set SSL_CERT_FILE to a file with its certificates" + (
            unread if set_for_others else ""
        )
    if any(isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER" for cause in causes):
        return "there is no TLS: perhaps the address of the hub or of the proxy begins with http://, not https://"
    kind = type(error).__name__  # of httpx or httpx2
    if kind == "ProxyError" and re.search(r"\b4\d\d\b|auth|username", str(error), re.IGNORECASE):
        return _LOGIN
    if kind in ("UnsupportedProtocol", "LocalProtocolError"):
        return "check HF_ENDPOINT and the proxies' variables"
    return None


def _transport_error() -> type[Exception]:
    """Return the base of all errors of the HTTP library that huggingface_hub uses: httpx's in 1.x, httpx2's in 2.x."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base

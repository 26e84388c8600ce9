"""Downloads from a hub on loopback that cuts, lies, refuses and changes its mind."""

from __future__ import annotations

import errno
import random
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_hub_download

from eft_local.errors import Cancelled, DownloadError, EftError, ModelNotFoundError, UsageError
from eft_local.hub import HubName, cache, remote, transfer
from eft_local.hub.pull import Event, Pulled, models_on_hub, pull
from eft_local.hub.remote import Hub
from eft_local.hub.transfer import Partial, Patience, Talk
from tests.helpers.hub_server import Fault, HubServer, Repo, git_sha1, serving, sha256

REPO = "org/Model-GGUF"
CONTENT = random.Random(1).randbytes(1_000_000)
OTHER = random.Random(2).randbytes(300_000)
SPLIT = {f"big-Q8_0-0000{number}-of-00003.gguf": bytes([number]) * 50_000 for number in (1, 2, 3)}
PATIENT = Patience(tries=4, first=0.001)
ONE_TRY = Patience(tries=1)


@pytest.fixture(autouse=True)
def _no_other_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # asks the real hub about its users
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(autouse=True, scope="module")
def _session() -> Iterator[None]:
    yield
    huggingface_hub.close_session()


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving({REPO: Repo([{"m.Q4_0.gguf": CONTENT, "m.F16.gguf": OTHER, "README.md": b"words", **SPLIT}])}) as hub:
        yield hub


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    return Hub(server.url, tmp_path / "hub")


def named(text: str) -> HubName:
    name = HubName.parse(text)
    assert name is not None
    return name


FOUR = named(f"{REPO}:Q4_0")


class Heard(list[Event]):
    """What a pull reported."""

    def said(self) -> list[str]:
        return [event.text for event in self if event.kind == "said"]


def get(hub: Hub, *names: HubName, patience: Patience = PATIENT, heard: Heard | None = None) -> list[Pulled]:
    return pull(names or [FOUR], hub, report=(heard if heard is not None else Heard()).append, patience=patience)


def unfinished(hub: Hub) -> int:
    """The bytes of downloads that are not complete."""
    return sum(part.size for part in cache.unfinished(hub.folder))


def usable(hub: Hub) -> list[str]:
    return [model.reference for model in cache.installed(hub.folder)]


# Ways that end well


@pytest.mark.parametrize("xet", [False, True])
@pytest.mark.parametrize("direct", [False, True], ids=["by link", "direct"])
def test_a_model_is_pulled_verified_and_shared(server: HubServer, hub: Hub, xet: bool, direct: bool) -> None:
    server.repos[REPO].xet, server.direct = xet, direct
    heard = Heard()
    (pulled,) = get(hub, heard=heard)
    assert pulled.path.read_bytes() == CONTENT
    assert (pulled.name, pulled.size) == (FOUR, len(CONTENT))
    assert cache.find(FOUR, hub.folder) == pulled.path
    assert server.sent() == len(CONTENT)
    assert not unfinished(hub)
    # Any other tool finds it where huggingface_hub would have put it, also without a network.
    path = hf_hub_download(REPO, "m.Q4_0.gguf", cache_dir=hub.folder, local_files_only=True)
    assert Path(path) == pulled.path
    blob = pulled.path.resolve()
    assert (blob.name, blob.stat().st_mode & 0o777) == (sha256(CONTENT), 0o666 & ~_umask())
    assert [event.kind for event in heard if event.kind != "progress"] == ["plan", "done"]
    steps = [event.done for event in heard if event.kind == "progress"]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, len(CONTENT))


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_is_here_is_not_downloaded_again(server: HubServer, hub: Hub) -> None:
    get(hub)
    sent, heard = server.sent(), Heard()
    (again,) = get(hub, heard=heard)
    assert again.path.read_bytes() == CONTENT
    assert server.sent() == sent
    assert (heard[0].all_done, heard[0].all_size) == (len(CONTENT), len(CONTENT))


def test_what_huggingface_hub_downloaded_is_used(server: HubServer, hub: Hub) -> None:
    hf_hub_download(REPO, "m.Q4_0.gguf", cache_dir=hub.folder, endpoint=server.url, token=False)
    sent = server.sent()
    get(hub)
    assert server.sent() == sent == len(CONTENT)


def test_all_parts_of_a_split_model_come(server: HubServer, hub: Hub) -> None:
    name = named(f"{REPO}/big-Q8_0-00002-of-00003.gguf")
    (pulled,) = get(hub, name)
    assert pulled.path.name == "big-Q8_0-00001-of-00003.gguf"
    assert {path.name: path.read_bytes() for path in pulled.path.parent.iterdir()} == SPLIT
    assert pulled.size == 150_000


def test_several_models_count_as_one_download(server: HubServer, hub: Hub) -> None:
    heard = Heard()
    pulled = get(hub, FOUR, named(f"{REPO}:F16"), FOUR, heard=heard)
    assert [each.path.read_bytes() for each in pulled] == [CONTENT, OTHER]
    assert {event.all_size for event in heard} == {len(CONTENT) + len(OTHER)}
    assert heard[-1].all_done == len(CONTENT) + len(OTHER)
    assert server.sent() == len(CONTENT) + len(OTHER)


def test_a_small_file_kept_by_git_is_verified_too(server: HubServer, hub: Hub) -> None:
    server.repos[REPO].in_git = True
    server.faults = [Fault(cut=4_000), Fault(flip=9_000), Fault()]
    heard = Heard()
    (pulled,) = get(hub, heard=heard)
    assert pulled.path.read_bytes() == CONTENT
    assert pulled.path.resolve().name == git_sha1(CONTENT)
    assert any("has the checksum" in line for line in heard.said())


def test_where_links_cannot_be_had_there_is_one_copy(
    server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    (pulled,) = get(hub)
    assert pulled.path.read_bytes() == CONTENT
    assert not pulled.path.is_symlink()
    assert not any((cache.repo_folder(hub.folder, REPO) / "blobs").iterdir())
    sent = server.sent()
    get(hub)
    assert server.sent() == sent


def test_offline_what_is_here_is_enough(server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.folder))
    pulled, split = get(hub, FOUR, named(f"{REPO}:Q8_0"))
    requested = len(server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull([FOUR]) == [pulled]
    assert pull([split.name]) == [split]
    with pytest.raises(DownloadError, match="F16 is not in the cache, and HF_HUB_OFFLINE is set"):
        pull([named(f"{REPO}:F16")])
    assert len(server.requests) == requested


def test_a_huge_file_is_requested_in_parts(server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LONGEST", 300_000)
    server.faults = [Fault(), Fault(cut=100_000)]
    (pulled,) = get(hub)
    assert pulled.path.read_bytes() == CONTENT
    assert [request.start for request in server.downloads()] == [0, 300_000, 400_000, 700_000]
    assert server.sent() == len(CONTENT)


def test_a_file_that_would_leave_its_folder_is_none(server: HubServer, hub: Hub) -> None:
    server.repos[REPO].commits[0] |= {"../x.Q5_0.gguf": OTHER, "a/../../y.Q5_1.gguf": OTHER, "/z.Q6_K.gguf": OTHER}
    assert {model.label for model in models_on_hub(named(REPO), hub)[1]} == {"Q8_0", "F16", "Q4_0"}


# Interruptions


def test_fifty_cuts_cost_nothing(server: HubServer, hub: Hub) -> None:
    """Each attempt is a pull of its own, as in a new process: nothing but the partial file is carried over."""
    cuts = sorted(random.Random(50).sample(range(1, len(CONTENT)), 50))
    for before, cut in zip([0, *cuts], cuts, strict=False):
        server.faults = [Fault(cut=cut - before, chunked=cut % 2 == 0)]
        with pytest.raises(DownloadError, match="continues where it stopped"):
            get(hub, patience=ONE_TRY)
        assert unfinished(hub) == cut
        assert usable(hub) == []
    (pulled,) = get(hub)
    assert pulled.path.read_bytes() == CONTENT
    assert server.sent() == len(CONTENT), "no byte was fetched twice"
    assert [request.start for request in server.downloads()] == [0, *cuts]


def test_cuts_within_a_run_are_met_with_patience_that_progress_renews(server: HubServer, hub: Hub) -> None:
    server.faults = [Fault(cut=100_000, chunked=number % 2 == 0) for number in range(9)]
    heard = Heard()
    get(hub, heard=heard)
    assert server.sent() == len(CONTENT)
    assert len(heard.said()) == 9


def test_without_progress_patience_ends(server: HubServer, hub: Hub) -> None:
    server.always = Fault(cut=0)
    with pytest.raises(DownloadError, match=r"4 times in a row; try the same command later"):
        get(hub)


def test_a_stop_keeps_what_is_there(server: HubServer, hub: Hub) -> None:
    heard = Heard()

    def stopped() -> bool:
        return any(event.done > 200_000 for event in heard)

    server.always = Fault(delay=0.001)
    with pytest.raises(Cancelled):
        pull([FOUR], hub, heard.append, stopped, PATIENT)
    kept = unfinished(hub)
    assert 200_000 < kept < len(CONTENT)
    get(hub)
    assert server.downloads()[-1].start == kept


def test_a_stop_is_heard_while_waiting(server: HubServer, hub: Hub) -> None:
    server.always = Fault(status=429, headers={"Retry-After": "200"})
    heard = Heard()
    with pytest.raises(Cancelled):
        pull([FOUR], hub, heard.append, lambda: bool(heard.said()), PATIENT)


def test_a_slow_server_is_waited_for(server: HubServer, hub: Hub) -> None:
    server.always = Fault(delay=0.02)
    get(hub, named(f"{REPO}:F16"))
    assert len(server.downloads()) == 1


def test_a_silent_server_is_asked_again(server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    server.faults = [Fault(delay=1.0)]
    heard = Heard()
    get(hub, heard=heard)
    assert server.downloads()[-1].start > 0
    assert "timed out" in heard.said()[0]


# Servers that are busy, or have their own ideas


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("at_hub", [False, True])
def test_a_busy_server_is_asked_again(server: HubServer, hub: Hub, status: int, at_hub: bool) -> None:
    server.faults = [Fault(status=status, at_hub=at_hub)] * 3
    heard = Heard()
    get(hub, heard=heard)
    assert heard.said() == [f"the hub is busy ({status})"] * 3
    waits = [event.seconds for event in heard if event.kind == "said"]
    assert waits == [0.001, 0.002, 0.004]


def test_the_server_says_how_long_to_wait(server: HubServer, hub: Hub) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=-5), usegmt=True)
    server.faults = [Fault(status=429, headers={"Retry-After": value}) for value in ("0", soon, "nonsense")]
    heard = Heard()
    get(hub, heard=heard)
    assert [event.seconds for event in heard if event.kind == "said"] == [0, 0, 0.004]
    server.faults = [Fault(status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(DownloadError, match="asks to wait 3600 s"):
        get(hub, named(f"{REPO}:F16"))


def test_the_api_is_asked_again_too(server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = Hub.repository
    tries = []

    def failing(self: Hub, repo: str, revision: str | None) -> object:
        tries.append(repo)
        if len(tries) < 3:
            return answered(Hub("http://127.0.0.1:9", self.folder), repo, revision)
        return answered(self, repo, revision)

    monkeypatch.setattr(Hub, "repository", failing)
    heard = Heard()
    get(hub, heard=heard)
    assert len(tries) == 3
    assert all(line.startswith("the connection to http://127.0.0.1:9 failed") for line in heard.said())


def test_a_link_that_expired_is_requested_again(server: HubServer, hub: Hub) -> None:
    server.faults = [Fault(cut=400_000), Fault(status=403), Fault(status=404)]
    heard = Heard()
    get(hub, heard=heard)
    assert server.links == 6, "a new link for each of four tries, and one to plan, and one for huggingface_hub"
    assert [line for line in heard.said() if "expired" in line] == [
        "the link to m.Q4_0.gguf has expired (403)",
        "the link to m.Q4_0.gguf has expired (404)",
    ]
    assert server.sent() == len(CONTENT)


def test_a_mirror_without_ranges_loses_nothing(server: HubServer, hub: Hub) -> None:
    server.always = Fault(ignore_range=True)
    server.faults = [Fault(cut=700_000), Fault(cut=100_000, ignore_range=True), Fault(cut=800_000, ignore_range=True)]
    sizes = []

    for _ in range(3):
        with pytest.raises(DownloadError):
            get(hub, patience=ONE_TRY)
        sizes.append(unfinished(hub))
    assert sizes == [700_000, 700_000, 800_000]
    (pulled,) = get(hub)
    assert pulled.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "fault",
    [Fault(status=416), Fault(shift=5), Fault(extra=b"more"), Fault(flip=999_999)],
    ids=["416", "other range", "too long", "wrong byte"],
)
def test_what_does_not_fit_is_dropped_and_fetched_once_more(server: HubServer, hub: Hub, fault: Fault) -> None:
    server.faults = [Fault(cut=500_000), fault]
    heard = Heard()
    (pulled,) = get(hub, heard=heard)
    assert pulled.path.read_bytes() == CONTENT
    assert heard.said()[1].endswith(": starting over")
    assert server.downloads()[-1].start == 0


@pytest.mark.parametrize("fault", [Fault(flip=999_999), Fault(extra=b"x"), Fault(flip=999_500, chunked=True)])
@pytest.mark.parametrize("resumed", [False, True], ids=["at once", "resumed"])
def test_a_wrong_checksum_never_becomes_a_file(server: HubServer, hub: Hub, fault: Fault, resumed: bool) -> None:
    if resumed:
        server.faults = [Fault(cut=999_000)]
        with pytest.raises(DownloadError):
            get(hub, patience=ONE_TRY)
    server.always = fault
    with pytest.raises(DownloadError, match="nothing was kept"):
        get(hub)
    assert usable(hub) == []
    assert cache.find(FOUR, hub.folder) is None
    assert list((cache.repo_folder(hub.folder, REPO) / "blobs").iterdir()) == []
    server.always = Fault()
    (pulled,) = get(hub)
    assert pulled.path.read_bytes() == CONTENT


@pytest.mark.parametrize("damage", [b"x", b""], ids=["a wrong byte", "longer than the file"])
def test_a_damaged_partial_file_costs_one_more_try(server: HubServer, hub: Hub, damage: bytes) -> None:
    server.faults = [Fault(cut=500_000)]
    with pytest.raises(DownloadError):
        get(hub, patience=ONE_TRY)
    (part,) = cache.unfinished(hub.folder)
    part.path.write_bytes(damage + part.path.read_bytes()[1:] if damage else CONTENT + b"more")
    (pulled,) = get(hub)
    assert pulled.path.read_bytes() == CONTENT


def test_a_truncated_file_on_the_hub_is_an_error(server: HubServer, hub: Hub) -> None:
    server.always = Fault(cut=990_000, chunked=True)
    with pytest.raises(DownloadError, match="continues where it stopped"):
        get(hub, patience=ONE_TRY)
    assert usable(hub) == []


def test_a_change_between_two_tries_starts_over_and_says_so(server: HubServer, hub: Hub) -> None:
    server.faults = [Fault(cut=500_000)]
    with pytest.raises(DownloadError):
        get(hub, patience=ONE_TRY)
    server.repos[REPO].commits.append({"m.Q4_0.gguf": OTHER})
    heard = Heard()
    (pulled,) = get(hub, heard=heard)
    assert pulled.path.read_bytes() == OTHER
    assert heard.said() == [f"{REPO}/m.Q4_0.gguf changed on the hub since the last try: starting over"]
    assert not unfinished(hub)


def test_a_change_after_the_pull_is_pulled_beside_it(server: HubServer, hub: Hub) -> None:
    (before,) = get(hub)
    server.repos[REPO].commits.append({"m.Q4_0.gguf": OTHER})
    (after,) = get(hub)
    assert (before.path.read_bytes(), after.path.read_bytes()) == (CONTENT, OTHER)
    assert cache.find(FOUR, hub.folder) == after.path
    pinned = named(f"{FOUR}@{server.commit(REPO, 0)}")
    assert cache.find(pinned, hub.folder) == before.path
    (again,) = get(hub, pinned)
    assert again.path == before.path


def test_a_change_during_the_download_is_noticed(server: HubServer, hub: Hub) -> None:
    heard = Heard()
    server.faults = [Fault(cut=500_000)]

    def report(event: Event) -> None:
        heard.append(event)
        if event.kind == "said":
            server.repos[REPO].commits[0]["m.Q4_0.gguf"] = OTHER  # a hub that rewrites history

    with pytest.raises(DownloadError, match="changed on the hub while it was being downloaded; nothing was kept"):
        pull([FOUR], hub, report, patience=PATIENT)
    assert usable(hub) == []


def test_two_pulls_of_one_file_download_it_once(server: HubServer, hub: Hub) -> None:
    server.always = Fault(delay=0.005)
    heard, pulled = [Heard(), Heard()], []
    threads = [threading.Thread(target=lambda each=each: pulled.extend(get(hub, heard=each))) for each in heard]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert [each.path.read_bytes() for each in pulled] == [CONTENT] * 2
    assert server.sent() == len(CONTENT)
    assert heard[1].said() == [f"{REPO}/m.Q4_0.gguf is being downloaded by another process: waiting for it"]


# Refusals


def refusal(hub: Hub, text: str) -> EftError:
    with pytest.raises(EftError) as caught:
        get(hub, named(text))
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("text", "kind", "reported"),
    [
        ("org/Missing:Q4_0", ModelNotFoundError, "there is no repository org/Missing on the hub"),
        (f"{REPO}:Q5_0", ModelNotFoundError, f'"{REPO}:Q5_0" is not on the hub; there are {REPO}:Q8_0 (150.0 kB)'),
        (f"{REPO}/no.gguf", ModelNotFoundError, "is not on the hub; there are"),
        (f"{REPO}:Q4_0@v9", ModelNotFoundError, f"{REPO} has no revision v9"),
        (REPO, UsageError, "names a repository, not a model; name one of"),
    ],
)
def test_what_is_not_there_is_reported(hub: Hub, text: str, kind: type[EftError], reported: str) -> None:
    error = refusal(hub, text)
    assert type(error) is kind
    assert reported in str(error)


def test_a_gated_repository_is_reported_before_anything_is_downloaded(server: HubServer, hub: Hub) -> None:
    server.repos["org/Gated"] = Repo([{"m.Q4_0.gguf": CONTENT}], gated=True)
    gated = named("org/Gated:Q4_0")
    with pytest.raises(DownloadError, match=r"org/Gated is gated: accept its conditions .* `hf auth login`"):
        get(hub, named(f"{REPO}:F16"), gated)
    assert server.sent() == 0
    with pytest.raises(DownloadError, match="is gated, and your token has no access"):
        get(Hub(hub.endpoint, hub.folder, "outsider"), gated)
    (pulled,) = get(Hub(hub.endpoint, hub.folder, "insider"), gated)
    assert pulled.path.read_bytes() == CONTENT


def test_a_private_repository_needs_a_token_and_a_wrong_one_is_reported(server: HubServer, hub: Hub) -> None:
    server.repos["org/Private"] = Repo([{"m.Q4_0.gguf": OTHER}], private=True)
    private = named("org/Private:Q4_0")
    with pytest.raises(ModelNotFoundError, match="if it is private, `hf auth login` or set HF_TOKEN"):
        get(hub, private)
    with pytest.raises(DownloadError, match="the hub refuses your token"):
        get(Hub(hub.endpoint, hub.folder, "wrong"), private)
    get(Hub(hub.endpoint, hub.folder, "insider"), private)


def test_the_token_never_leaves_the_hub(server: HubServer, hub: Hub) -> None:
    get(Hub(hub.endpoint, hub.folder, "insider"))
    seen = {(request.at, request.authorization) for request in server.requests}
    assert seen == {("hub", "Bearer insider"), ("cdn", None)}


def test_what_is_no_hub_is_reported(server: HubServer, hub: Hub) -> None:
    error = refusal(Hub(f"{server.url}/nothing", hub.folder), f"{REPO}:Q4_0")
    assert isinstance(error, EftError)
    unreachable = Hub("http://127.0.0.1:9", hub.folder)
    with pytest.raises(DownloadError, match=r"the connection to http://127.0.0.1:9 failed .* 4 times in a row"):
        get(unreachable)


@pytest.mark.parametrize("etag", ["../../../evil", '"weak"', "f" * 63, ""])
def test_an_etag_that_is_no_checksum_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, etag: str, tmp_path: Path
) -> None:
    answered = huggingface_hub.get_hf_file_metadata

    def lying(*args: object, **options: object) -> object:
        seen = answered(*args, **options)  # type: ignore[arg-type]
        return SimpleNamespace(etag=etag, size=seen.size)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lying)
    with pytest.raises(DownloadError, match="reports no checksum"):
        get(hub)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


# The disk


def test_too_little_room_is_reported_before_anything_is_downloaded(
    server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=400_000))
    with pytest.raises(DownloadError) as caught:
        get(hub)
    assert str(caught.value) == (
        f"1.0 MB are to be downloaded to {hub.folder}, and 400.0 kB are free; "
        "make room for 600.0 kB, or set HF_HOME to a folder on another disk"
    )
    assert server.sent() == 0
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    server.faults = [Fault(cut=700_000)]
    with pytest.raises(DownloadError):
        get(hub, patience=ONE_TRY)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=400_000))
    get(hub)  # what is there already needs no room


def test_a_disk_that_fills_up_is_reported_and_the_rest_comes_later(
    server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended = Partial.append

    def full(self: Partial, data: bytes) -> None:
        if self.size < 300_000:
            appended(self, data)
            return
        with transfer.disk_errors(self.path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Partial, "append", full)
    with pytest.raises(DownloadError, match=r"the disk is full at .*blobs; make room, then the same command continues"):
        get(hub)
    monkeypatch.setattr(Partial, "append", appended)
    kept = unfinished(hub)
    assert kept >= 300_000
    (pulled,) = get(hub)
    assert pulled.path.read_bytes() == CONTENT
    assert server.downloads()[-1].start == kept


def test_a_folder_that_cannot_be_written_is_reported(server: HubServer, hub: Hub) -> None:
    hub.folder.mkdir()
    (hub.folder / f"models--{REPO.replace('/', '--')}").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot write"):
        get(hub)


# Looking


def test_what_a_repository_holds(server: HubServer, hub: Hub) -> None:
    repository, models = models_on_hub(named(REPO), hub)
    assert (repository.commit, repository.gated, repository.licence) == (server.commit(REPO), False, "apache-2.0")
    assert [(model.label, model.size) for model in models] == [("Q8_0", 150_000), ("F16", 300_000), ("Q4_0", 10**6)]


@pytest.mark.parametrize("failures", [1, 3])
def test_patience_waits_longer_each_time(failures: int) -> None:
    said: list[float] = []
    left = [transfer.Hiccup("busy")] * failures

    def attempt() -> str:
        if left:
            raise left.pop()
        return "done"

    talk = Talk(said=lambda line, seconds: said.append(seconds))
    assert Patience(tries=4, first=0.001, longest=0.003).keep_trying(attempt, talk) == "done"
    assert said == [0.001, 0.002, 0.003][:failures]

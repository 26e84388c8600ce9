"""`eft pull`, `ls`, `show`, `rm` as processes of their own, against a hub on loopback and then without any."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import CHATML, ModelSpec, bpe, write_model
from eft_local.cli.pull import Pace
from tests.helpers.hub_server import Fault, HubServer, Repo, serving, sha256

EFT = [sys.executable, "-c", "from eft_local.cli import main; main()"]
TIMEOUT = 60.0
TOKENS = bpe(add_bos=False)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals are POSIX")

RECIPE = """description = "A trio in SmolLM2's shape, but tiny."
context = 128
threads = 1
[base]
model = "HuggingFaceTB/Large-GGUF:Q8_0"
[antiexpert]
model = "HuggingFaceTB/Small-GGUF:F32@main"
[experts.instruct]
model = "HuggingFaceTB/Small-Instruct-GGUF/small-instruct-f32.gguf"
prompt = "chat"
[about]
licence = "Apache-2.0"
download_gb = 0.001
tested = false
"""
LARGE, SMALL, INSTRUCT = "HuggingFaceTB/Large-GGUF", "HuggingFaceTB/Small-GGUF", "HuggingFaceTB/Small-Instruct-GGUF"


class Ran(NamedTuple):
    """What a process left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The repositories of a trio: tied embeddings, grouped heads, one vocabulary, a chat template in the tuned one."""
    folder = tmp_path_factory.mktemp("files")

    def content(name: str, **spec: Any) -> bytes:
        return write_model(folder / name, ModelSpec(tokens=TOKENS, **spec)).read_bytes()

    small = Shape(n_embd=48, n_head=3, n_head_kv=1, tied=True)
    large = Shape(n_embd=96, n_head=6, n_head_kv=6, n_layer=3, tied=True)
    return {
        LARGE: {
            "large.Q8_0.gguf": content("l8", shape=large, seed=1, quantization="Q8_0"),
            "large.F32.gguf": content("l32", shape=large, seed=1),
        },
        SMALL: {"small.F32.gguf": content("s", shape=small, seed=2)},
        INSTRUCT: {"small-instruct-f32.gguf": content("i", shape=small, seed=3, template=CHATML)},
    }


@pytest.fixture
def server(files: dict[str, dict[str, bytes]]) -> Iterator[HubServer]:
    with serving({name: Repo([dict(content)], xet=name == LARGE) for name, content in files.items()}) as hub:
        yield hub


class Home:
    """A user with an empty home: their recipes, their Hugging Face cache, and what they type."""

    def __init__(self, folder: Path, server: HubServer) -> None:
        self.hub = folder / "hf" / "hub"
        self.recipes = folder / "eft" / "recipes"
        self.recipes.mkdir(parents=True)
        (self.recipes / "smol.toml").write_text(RECIPE)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        own = {
            "EFT_HOME": str(folder / "eft"),
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": server.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        self.environment = kept | own | {"NO_PROXY": "127.0.0.1", "COLUMNS": "120"}

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        def hear_ctrl_c() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)

        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
        return subprocess.Popen([*EFT, *arguments], env=self.environment, preexec_fn=hear_ctrl_c, **streams)

    def eft(self, *arguments: str, **environment: str) -> Ran:
        ran = subprocess.run(
            [*EFT, *arguments],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
        return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


@pytest.fixture
def home(tmp_path: Path, server: HubServer) -> Home:
    return Home(tmp_path, server)


def paths_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def test_from_an_empty_cache_to_an_answer_and_then_offline(home: Home, server: HubServer) -> None:
    ask = ("ask", "-r", "smol", "hello", "-n", "6", "--seed", "1")
    before = home.eft(*ask)
    assert (before.code, before.out) == (3, "")
    assert before.err == (
        f"eft: 3 models are missing (base: {LARGE}:Q8_0, antiexpert: {SMALL}:F32@main, "
        f"instruct: {INSTRUCT}/small-instruct-f32.gguf); get them with: eft pull smol\n"
    )
    pulled = home.eft("pull", "smol")
    assert pulled.code == 0
    names = (f"{LARGE}:Q8_0", f"{SMALL}:F32@main", f"{INSTRUCT}/small-instruct-f32.gguf")
    assert [line.split("  ")[0] for line in pulled.out.splitlines()] == list(names)
    assert pulled.err.count("complete and verified") == 3
    requested = len(server.requests)
    online = home.eft(*ask)
    offline = home.eft(*ask, HF_HUB_OFFLINE="1")
    assert online == offline
    assert (online.code, online.err) == (0, "")
    assert online.out.strip()
    assert len(server.requests) == requested, "answering asks nobody"
    again = home.eft("pull", "smol", HF_HUB_OFFLINE="1")
    assert (again.code, again.out) == (0, pulled.out)


def test_json_reports_the_plan_the_progress_and_the_result(
    home: Home, files: Mapping[str, Mapping[str, bytes]]
) -> None:
    ran = home.eft("pull", f"{LARGE}:Q8_0", f"{SMALL}:f32", "--json")
    assert (ran.code, ran.err) == (0, "")
    first, *rest, last = ran.lines
    total = len(files[LARGE]["large.Q8_0.gguf"]) + len(files[SMALL]["small.F32.gguf"])
    assert first == {"event": "plan", "file": None, "done": 0, "size": 0, "all_done": 0, "all_size": total}
    assert [line["file"] for line in rest if line["event"] == "done"] == [
        f"{LARGE}/large.Q8_0.gguf",
        f"{SMALL}/small.F32.gguf",
    ]
    assert all({"bytes_per_second", "seconds_left"} <= line.keys() for line in rest if line["event"] == "progress")
    assert rest[-1]["all_done"] == total
    models = last["models"]
    assert last["event"] == "result"
    assert [model["reference"] for model in models] == [f"{LARGE}:Q8_0", f"{SMALL}:f32"]
    assert [Path(model["path"]).stat().st_size for model in models] == [model["size"] for model in models]


def test_what_is_here_is_not_said_to_have_been_verified_again(home: Home) -> None:
    first, again = (home.eft("pull", f"{SMALL}:F32") for _ in range(2))
    assert first.err.splitlines()[-1] == f"{SMALL}/small.F32.gguf: complete and verified"
    assert again.err.splitlines()[-1] == f"{SMALL}/small.F32.gguf: already downloaded"
    assert again.out == first.out


def big(server: HubServer, size: int = 3_000_000) -> bytes:
    """Put a larger file on the hub, which comes slowly."""
    content = random.Random(size).randbytes(size)
    server.repos["org/Big"] = Repo([{"big.Q4_0.gguf": content}])
    server.always = Fault(delay=0.002)
    return content


def parts(home: Home) -> list[Path]:
    return list(home.hub.glob("models--*/blobs/*.incomplete"))


def wait_for(home: Home, size: int) -> None:
    until = time.monotonic() + TIMEOUT
    while not any(part.stat().st_size >= size for part in parts(home)):
        assert time.monotonic() < until
        time.sleep(0.005)


def test_ctrl_c_and_kill_keep_what_came_and_the_same_command_continues(home: Home, server: HubServer) -> None:
    content = big(server)
    kept = []
    for number, end in enumerate((signal.SIGINT, signal.SIGKILL, signal.SIGINT), start=1):
        process = home.start("pull", "org/Big:Q4_0")
        wait_for(home, number * 500_000)
        process.send_signal(end)
        _, err = process.communicate(timeout=TIMEOUT)
        if end == signal.SIGINT:
            assert process.returncode == 130
            assert err.decode().splitlines()[-1] == "eft: stopped; the same command continues where it stopped"
        (part,) = parts(home)
        kept.append(part.stat().st_size)
        assert home.eft("ls", "--json").out.count('"reference"') == 0
    server.always = Fault()
    assert home.eft("pull", "org/Big:Q4_0").code == 0
    assert [request.start for request in server.downloads()] == [0, *kept]
    assert kept == sorted(set(kept))
    assert (home.hub / "models--org--Big" / "blobs" / sha256(content)).read_bytes() == content


def test_a_kill_loses_nothing_that_had_come(home: Home, server: HubServer) -> None:
    """What has come is in the file, not in a buffer: each process is killed where the hub says no more."""
    content = big(server, 1_000_000)
    stops = sorted(random.Random(8).sample(range(1, len(content)), 8))
    for start, stop in zip([0, *stops], stops, strict=False):
        server.always = Fault(piece=1448, stall=stop - start)
        process = home.start("pull", "org/Big:Q4_0")
        wait_for(home, stop)
        process.kill()
        process.communicate(timeout=TIMEOUT)
    server.always = Fault()
    assert home.eft("pull", "org/Big:Q4_0").code == 0
    assert [request.start for request in server.downloads()] == [0, *stops]
    assert server.sent() == len(content), "no byte was fetched twice"
    assert (home.hub / "models--org--Big" / "blobs" / sha256(content)).read_bytes() == content


def test_two_processes_download_a_file_once(home: Home, server: HubServer) -> None:
    content = big(server, 1_000_000)
    processes = [home.start("pull", "org/Big:Q4_0") for _ in range(2)]
    outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0][0] == outputs[1][0]
    assert server.sent() == len(content)


def test_a_wrong_checksum_is_one_line_and_no_file(home: Home, server: HubServer) -> None:
    server.always = Fault(flip=100)
    ran = home.eft("pull", f"{SMALL}:F32")
    assert (ran.code, ran.out) == (1, "")
    assert re.search(r"eft: .* has the checksum .*; nothing was kept, try again later or another mirror\n$", ran.err)
    assert home.eft("show", f"{SMALL}:F32").code == 3
    assert not [path for path in paths_in(home.hub) if "blobs" in path]


@pytest.mark.parametrize(
    ("what", "code", "reported"),
    [
        ("org/Missing:Q4_0", 3, "there is no repository org/Missing on the hub"),
        (LARGE, 2, f"{LARGE} names a repository, not a model; name one of {LARGE}:Q8_0"),
        (f"{LARGE}:Q5_0", 3, f"there are {LARGE}:Q8_0"),
        (f"{SMALL}:F32@v2", 3, "has no revision v2"),
        ("smoll", 2, 'recipe "smoll" is unknown; the nearest one is "smol"'),
        ("./none.toml", 2, "none.toml: no such recipe"),
        ("demo:base:x", 2, "names neither a recipe nor a model on the hub"),
        ("./folder/x.gguf", 2, "names neither a recipe nor a model on the hub"),
        ("org/Gated:F32", 1, "org/Gated is gated: accept its conditions on its page, then `hf auth login`"),
    ],
)
def test_what_cannot_be_pulled_is_one_line(home: Home, server: HubServer, what: str, code: int, reported: str) -> None:
    server.repos["org/Gated"] = Repo([{"x.F32.gguf": b"x"}], gated=True)
    ran = home.eft("pull", what)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("eft: ")
    assert ran.err.count("\n") == 1
    assert reported in ran.err


def test_a_token_opens_what_is_gated(home: Home, server: HubServer) -> None:
    server.repos[SMALL].gated = True
    assert home.eft("pull", f"{SMALL}:F32", HF_TOKEN="insider").code == 0
    assert {request.authorization for request in server.requests if request.at == "cdn"} == {None}


def test_a_proxy_is_used(home: Home, server: HubServer) -> None:
    """A proxy gets whole addresses, those of hosts that only it can find too."""
    ran = home.eft("pull", f"{SMALL}:F32", NO_PROXY="", HTTP_PROXY=server.url, HF_ENDPOINT="http://hub.test")
    assert ran.code == 0
    assert {request.host for request in server.requests} == {"hub.test", server.cdn.removeprefix("http://")}


def test_the_demo_needs_no_download(home: Home, server: HubServer) -> None:
    ran = home.eft("pull", "demo")
    assert ran == (0, "", "nothing to download: these models are already downloaded\n")
    assert server.requests == []


def test_a_terminal_shows_bars_and_ends_clean(home: Home, server: HubServer) -> None:
    big(server, 1_000_000)
    server.faults = [Fault(cut=400_000, delay=0.005)]
    ours, theirs = pty.openpty()
    process = home.start("pull", "org/Big:Q4_0", stderr=theirs)
    os.close(theirs)
    shown = b""
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    out, _ = process.communicate(timeout=TIMEOUT)
    text = shown.decode()
    assert process.returncode == 0
    assert out.decode().startswith("org/Big:Q4_0  1.0 MB  ")
    assert "big.Q4_0.gguf" in text
    assert "MB/s" in text
    assert "1.0 MB to download" in text
    assert "the connection" in text
    assert "org/Big/big.Q4_0.gguf: complete and verified" in text


# ls, show, rm


@pytest.fixture
def pulled(home: Home) -> Home:
    """A home that has pulled the trio."""
    assert home.eft("pull", "smol").code == 0
    return home


def test_ls_names_sizes_and_recipes(pulled: Home, files: Mapping[str, Mapping[str, bytes]]) -> None:
    begun = pulled.hub / "models--org--Other" / "blobs" / "feed.00000000.incomplete"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(bytes(1500))
    reported = json.loads(pulled.eft("ls", "--json").out)
    sizes = {model["reference"]: model["size"] for model in reported["models"]}
    assert sizes == {
        f"{LARGE}:Q8_0": len(files[LARGE]["large.Q8_0.gguf"]),
        f"{SMALL}:F32": len(files[SMALL]["small.F32.gguf"]),
        f"{INSTRUCT}:F32": len(files[INSTRUCT]["small-instruct-f32.gguf"]),
    }
    assert all(model["recipes"] == ["smol"] for model in reported["models"])
    assert [(each["repo"], each["size"]) for each in reported["unfinished"]] == [("org/Other", 1500)]
    lines = pulled.eft("ls").out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == sorted(sizes, key=str.lower)
    assert all(line.endswith("  smol") for line in lines[:3])
    assert lines[3] == "org/Other: 1.5 kB of a download that is not complete"


def test_ls_of_nothing_says_where_it_looked(home: Home) -> None:
    ran = home.eft("ls")
    assert ran == (0, "", f"no models in {home.hub} yet; `eft recipes` lists recipes to pull\n")


def test_show_reports_what_a_model_says_of_itself(pulled: Home) -> None:
    ran = pulled.eft("show", f"{INSTRUCT}:F32")
    assert ran.code == 0
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in ran.out.splitlines())
    assert rows["architecture"] == "llama"
    assert rows["shape"] == "2 layers of 48, 3 heads (1 of keys and values)"
    assert rows["context"] == "512 tokens in training"
    assert rows["tokens"] == f"{len(TOKENS.texts)} (gpt-2, bos '<|endoftext|>', eos '<|im_end|>')"
    assert rows["licence"] == "the file names none"
    reported = json.loads(pulled.eft("show", f"{INSTRUCT}:F32", "--json").out)
    assert reported["chat_template"] == CHATML
    assert (reported["weights"].keys(), reported["parameters"]) == ({"F32"}, sum(reported["weights"].values()))
    assert pulled.eft("show", f"{INSTRUCT}:F32", "--template").out == CHATML.rstrip("\n") + "\n"
    assert pulled.eft("show", f"{SMALL}:F32", "--template").code == 1


def test_show_reports_what_a_recipe_needs(home: Home) -> None:
    before = home.eft("show", "smol").out
    assert before.count("not downloaded") == 3
    assert "get the models: eft pull smol" in before
    assert "licence   Apache-2.0" in before
    assert "tested    not run by us" in before
    home.eft("pull", "smol")
    reported = json.loads(home.eft("show", "smol", "--json").out)
    assert [role["role"] for role in reported["roles"]] == ["base", "antiexpert", "experts.instruct"]
    assert reported["is_here"] is True
    assert "not downloaded" not in home.eft("show", "smol").out


def test_show_asks_the_hub_what_a_repository_holds(pulled: Home, server: HubServer) -> None:
    ran = pulled.eft("show", LARGE)
    head, small, large = ran.out.splitlines()
    assert head == f"{LARGE} at {server.commit(LARGE)[:12]} (apache-2.0)"
    assert small.split()[0] == f"{LARGE}:Q8_0"
    assert small.endswith("downloaded")
    assert large.split()[0] == f"{LARGE}:F32"
    assert not large.endswith("downloaded")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\3\0\0\0" + b"\xff" * 16, b"not a model"])
def test_show_of_a_broken_file_is_one_line(home: Home, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    ran = home.eft("show", str(tmp_path / "x.gguf"))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"eft: {tmp_path / 'x.gguf'} is not a usable GGUF file: ")
    assert ran.err.count("\n") == 1


def test_rm_shows_what_goes_and_deletes_just_that(pulled: Home, files: Mapping[str, Mapping[str, bytes]]) -> None:
    before = paths_in(pulled.hub)
    looked = pulled.eft("rm", f"{LARGE}:Q8_0", "--dry-run")
    assert looked.code == 0
    assert "large.Q8_0.gguf" in looked.out
    assert "used by smol" in looked.out
    assert paths_in(pulled.hub) == before
    requested = pulled.eft("rm", f"{LARGE}:Q8_0")
    assert requested.code == 2
    assert "add --yes" in requested.err
    assert paths_in(pulled.hub) == before
    reported = json.loads(pulled.eft("rm", f"{LARGE}:Q8_0", "--yes", "--json").out)
    assert reported["freed"] == len(files[LARGE]["large.Q8_0.gguf"])
    gone = before - paths_in(pulled.hub)
    assert gone
    assert all(path.startswith("models--HuggingFaceTB--Large-GGUF/") for path in gone)
    assert pulled.eft("ask", "-r", "smol", "hello").code == 3
    assert pulled.eft("rm", "smol", "-y").code == 0
    assert not list(pulled.hub.glob("models--*"))
    assert pulled.eft("rm", "smol", "-y") == (0, "", "there is nothing to delete\n")


def test_rm_asks_on_a_terminal_and_takes_no_for_an_answer(pulled: Home) -> None:
    before = paths_in(pulled.hub)
    for answer, code in ((b"n\n", 1), (b"y\n", 0)):
        ours, theirs = pty.openpty()
        process = pulled.start("rm", f"{SMALL}:F32", stdin=theirs)
        os.write(ours, answer)
        out, err = process.communicate(timeout=TIMEOUT)
        os.close(theirs)
        os.close(ours)
        assert process.returncode == code
        assert b"will be free" in out
        assert b"Delete this? [y/N]" in err
        assert (paths_in(pulled.hub) == before) is (code == 1)


def test_rm_of_what_is_not_there_is_reported(home: Home, server: HubServer) -> None:
    missing = home.eft("rm", f"{SMALL}:F32", "-y")
    assert missing.code == 3
    assert f"{SMALL}:F32 is no model in the cache" in missing.err
    assert home.eft("rm", "-y").code == 2
    big(server)
    server.always = Fault(cut=1000)
    process = home.start("pull", "org/Big:Q4_0")
    wait_for(home, 1000)
    process.kill()
    process.communicate(timeout=TIMEOUT)
    ran = home.eft("rm", "--unfinished", "-y")
    assert ran.code == 0
    assert "will be free" in ran.out
    assert paths_in(home.hub) - {"CACHEDIR.TAG"} == {path for path in paths_in(home.hub) if path.startswith(".locks")}


def test_pace_is_of_the_last_seconds() -> None:
    times = iter([0.0, 1.0, 2.0, 12.0, 20.0])
    pace = Pace(10.0, lambda: next(times))
    assert (pace.bytes_per_second, pace.seconds_left(10)) == (None, None)
    pace.add(100)
    assert pace.bytes_per_second is None
    pace.add(300)
    assert (pace.bytes_per_second, pace.seconds_left(400)) == (200, 2)
    pace.add(300)
    assert pace.bytes_per_second == 100
    pace.add(800)
    assert pace.bytes_per_second == 50
    pace.add(800)
    assert pace.bytes_per_second is None


# plan


def test_plan_reads_headers_of_what_is_not_downloaded_and_no_more(home: Home, server: HubServer) -> None:
    spec = ModelSpec(Shape(n_embd=512, n_ff=2048, n_layer=4, n_head=8, n_head_kv=8), TOKENS, zero=True)
    content = write_model(home.recipes / "heavy.gguf", spec).read_bytes()
    (home.recipes / "heavy.gguf").unlink()
    assert len(content) > 60_000_000
    server.repos["org/Heavy"] = Repo([{"heavy.F32.gguf": content}])
    ran = home.eft("plan", "org/Heavy:F32", "--json", "--bandwidth", "10")
    assert ran.code == 0, ran.err
    reported = json.loads(ran.out)
    (model,) = reported["models"]
    assert model["weights"] == pytest.approx(len(content), rel=0.01)
    assert reported["away"] == ["org/Heavy:F32"]
    assert server.sent() < len(content) / 4
    assert paths_in(home.hub) == set()  # it is not in the cache
    assert home.eft("ask", "-r", "smol", "hello").code == 3
    again = server.sent()
    assert home.eft("plan", "org/Heavy:F32").out.splitlines()[-1] == (
        "planned from headers on the hub: org/Heavy:F32; eft pull gets the models"
    )
    assert server.sent() == again  # the header is kept


def test_plan_of_a_recipe_is_the_same_before_and_after_the_pull(home: Home) -> None:
    before = json.loads(home.eft("plan", "smol", "--json", "--bandwidth", "10", "--memory", "8").out)
    assert len(before["away"]) == 3
    home.eft("pull", "smol")
    after = json.loads(home.eft("plan", "smol", "--json", "--bandwidth", "10", "--memory", "8").out)
    assert after["away"] == []
    assert before | {"away": []} == after


def test_plan_without_the_hub_names_what_is_missing_and_the_command_that_gets_it(home: Home, server: HubServer) -> None:
    ran = home.eft("plan", "smol", HF_HUB_OFFLINE="1")
    assert (ran.code, ran.out) == (3, "")
    line = ran.err.splitlines()[-1]
    assert line.startswith(f"eft: 3 models are missing (base: {LARGE}:Q8_0, antiexpert: {SMALL}:F32@main, ")
    assert line.endswith("get them with: eft pull smol")
    assert home.eft("plan", "org/Missing:Q4_0").code == 3
    assert server.sent() == 0

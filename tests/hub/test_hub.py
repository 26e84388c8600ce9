"""Models on the hub: how they are named, and what is in the cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eft_local import locations
from eft_local.errors import ModelNotFoundError, OutputError, UsageError
from eft_local.hub import HubName, cache
from eft_local.hub.names import models_of, size_text
from eft_local.hub.references import hub_names, model_of, resolve_model
from eft_local.hub.removal import removal
from eft_local.recipe import Recipe
from tests.helpers.hub_server import sha256

GB = 10**9
REPO = "org/Model-GGUF"


def named(text: str) -> HubName:
    name = HubName.parse(text)
    assert name is not None
    return name


# Names


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/repo", ("org/repo", None, None, None)),
        ("org/repo:Q4_K_M", ("org/repo", "Q4_K_M", None, None)),
        ("org/repo:q8_0@main", ("org/repo", "q8_0", None, "main")),
        ("org/repo-1.5_b/x.gguf", ("org/repo-1.5_b", None, "x.gguf", None)),
        ("org/repo/Q4/x-00001-of-00002.gguf@refs/pr/1", ("org/repo", None, "Q4/x-00001-of-00002.gguf", "refs/pr/1")),
        ("org/repo@0123abc", ("org/repo", None, None, "0123abc")),
    ],
)
def test_what_a_reference_says(text: str, parts: tuple[str | None, ...]) -> None:
    name = named(text)
    assert (name.repo, name.label, name.file, name.revision) == parts
    assert str(name) == text


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("hf.co/org/repo:Q4_K_M", "org/repo:Q4_K_M"),
        ("HF.co/org/repo:q8_0", "org/repo:q8_0"),
        ("huggingface.co/org/repo", "org/repo"),
        ("https://huggingface.co/org/repo", "org/repo"),
        ("https://www.huggingface.co/org/repo/", "org/repo"),
        ("http://hf.co/org/repo:Q4_K_M", "org/repo:Q4_K_M"),
        ("https://huggingface.co/org/repo:Q4_K_M@v1", "org/repo:Q4_K_M@v1"),
        ("https://huggingface.co/org/repo/tree/main", "org/repo"),
        ("https://huggingface.co/org/repo/tree/v1/UD", "org/repo@v1"),
        ("https://huggingface.co/org/repo/resolve/main/x.gguf", "org/repo/x.gguf"),
        ("https://huggingface.co/org/repo/resolve/main/Q4/x.gguf?download=true", "org/repo/Q4/x.gguf"),
        ("https://huggingface.co/org/repo/blob/0123abc/x%20y.gguf#L1", "org/repo/x y.gguf@0123abc"),
        ("https://huggingface.co/org/repo/raw/refs%2Fpr%2F1/x.gguf", "org/repo/x.gguf@refs/pr/1"),
        ("https://huggingface.co/org/repo?show_file_info=x-Q4_0.gguf", "org/repo/x-Q4_0.gguf"),
    ],
)
def test_an_address_of_the_hub_names_what_it_shows(text: str, reference: str) -> None:
    assert str(named(text)) == reference
    assert named(text) == named(reference)


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/org", "https://huggingface.co/datasets/org/repo", "https://[", "https://hf.co//[x",
        "https://huggingface.co/org/repo/discussions/3", "hf.co/../x", "https://hf.co/a/b/blob/main/../x.gguf",
        "ftp://hf.co/a/b", "https://hf.co.example.org/a/b", "https://hf.co/a/b?show_file_info=../../x.gguf",
        "x.gguf", "folder/x.gguf", "./a/b/x.gguf", "/a/b/x.gguf", "~/a/b.gguf", "a/../x.gguf", "a/b/../x.gguf",
        "../a/b", "a/b/c.toml", "a/b.toml", "a/b@../x", "a--b/c", "a/b//c.gguf", "a/b:", "a/b@", "C:/a/b.gguf",
        "C:\\a\\b.gguf", "demo:base", "", "a/b:Q4/x.gguf", "ä/b:Q4_0", "a/b c:Q4_0", "a/.b:Q4_0", "https://example.org/a/b.gguf",
    ],
)  # fmt: skip
def test_what_can_only_be_a_path_names_nothing_on_the_hub(text: str) -> None:
    assert HubName.parse(text) is None


@pytest.mark.parametrize(
    ("file", "label"),
    [
        ("Qwen3-8B-Base.Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("gemma-3-4b-pt-q4_0.gguf", "Q4_0"),
        ("x-IQ3_XXS.gguf", "IQ3_XXS"),
        ("x-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("x.bf16.gguf", "BF16"),
        ("Q8_0/x.gguf", None),
        ("x-7B.gguf", None),
        ("big-Q6_K-00001-of-00001.gguf", "Q6_K"),
    ],
)
def test_the_label_is_the_quantisation_in_the_file_name(file: str, label: str | None) -> None:
    (model,) = models_of({file: 1})
    assert model.label == label


def test_a_split_model_is_one_model() -> None:
    sizes = {f"b/m-Q4_0-0000{number}-of-00003.gguf": number * GB for number in (3, 1, 2)}
    (model,) = models_of(sizes | {"README.md": 5, "mmproj-m-Q4_0.gguf": 7})
    assert model.files == tuple(sorted(sizes))
    assert (model.first, model.size, model.missing) == ("b/m-Q4_0-00001-of-00003.gguf", 6 * GB, 0)
    del sizes["b/m-Q4_0-00002-of-00003.gguf"]
    with pytest.raises(ModelNotFoundError, match="split, and 1 of its parts are not on the hub"):
        named("o/r:Q4_0").choose(models_of(sizes))


def test_a_reference_means_one_model_or_lists_what_there_is() -> None:
    models = models_of({"m.Q4_K_M.gguf": GB, "m.Q8_0.gguf": 2 * GB, "a/m.F16.gguf": 4 * GB, "b/m.F16.gguf": 4 * GB})
    assert named("o/r:q8_0").choose(models).first == "m.Q8_0.gguf"
    assert named("o/r/a/m.F16.gguf").choose(models).first == "a/m.F16.gguf"
    listed = "o/r:Q4_K_M (1.0 GB), o/r:Q8_0 (2.0 GB), o/r/a/m.F16.gguf (4.0 GB), o/r/b/m.F16.gguf (4.0 GB)"
    with pytest.raises(UsageError) as unnamed:
        named("o/r").choose(models)
    assert str(unnamed.value) == f"o/r names a repository, not a model; name one of {listed}"
    with pytest.raises(UsageError) as several:
        named("o/r:F16").choose(models)
    assert str(several.value) == (
        '"o/r:F16" names 2 models; name one of o/r/a/m.F16.gguf (4.0 GB), o/r/b/m.F16.gguf (4.0 GB)'
    )
    for missing in ("o/r:Q4_K", "o/r/m.gguf"):
        with pytest.raises(ModelNotFoundError) as caught:
            named(missing).choose(models)
        assert str(caught.value) == f'"{missing}" is not on the hub; there are {listed}'
    with pytest.raises(ModelNotFoundError, match="o/r has no GGUF models"):
        named("o/r:F16").choose([])


def test_sizes_are_reported_as_the_hub_reports_them() -> None:
    reported = [size_text(size) for size in (0, 999, 1000, 144_810_464, 999_960_000, 42_520_000_000, 10**15)]
    assert reported == ["0 B", "999 B", "1.0 kB", "144.8 MB", "1.0 GB", "42.5 GB", "1000.0 TB"]


# The cache


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, the one that is configured."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("EFT_HOME", str(tmp_path / "home"))
    return folder


def add(folder: Path, repo: str, commit: str, files: dict[str, bytes], ref: str | None = "main") -> Path:
    """Put files into a cache as huggingface_hub does."""
    root = cache.repo_folder(folder, repo)
    snapshot = root / "snapshots" / (commit * 40)
    for path, content in files.items():
        blob, link = root / "blobs" / sha256(content), snapshot / path
        for place in (blob, link):
            place.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if ref:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / ref).write_text(commit * 40)
    return snapshot


def test_a_pulled_model_is_found_by_label_file_and_revision(hub_cache: Path) -> None:
    snapshot = add(hub_cache, REPO, "a", {"m.Q8_0.gguf": b"eight", "sub/m.Q4_0.gguf": b"four"})
    old = add(hub_cache, REPO, "b", {"m.Q8_0.gguf": b"before"}, ref="v1")
    expected = snapshot / "m.Q8_0.gguf"
    for text in (f"{REPO}:Q8_0", f"{REPO}/m.Q8_0.gguf", f"{REPO}:q8_0@main", f"{REPO}:Q8_0@{'a' * 40}"):
        assert cache.find(named(text)) == expected
        assert resolve_model(text, None) == expected
    assert cache.find(named(f"{REPO}:Q4_0")) == snapshot / "sub/m.Q4_0.gguf"
    assert cache.find(named(f"{REPO}:Q8_0@v1")) == old / "m.Q8_0.gguf"
    for text in (f"{REPO}:Q5_0", f"{REPO}:Q8_0@v2", "org/Other:Q8_0", f"{REPO}:Q4_0@v1"):
        assert cache.find(named(text)) is None


def test_main_without_the_model_leaves_it_to_the_snapshot_that_has_it(hub_cache: Path) -> None:
    older = add(hub_cache, REPO, "a", {"m.Q8_0.gguf": b"older"})
    newer = add(hub_cache, REPO, "b", {"m.Q8_0.gguf": b"newer"})
    add(hub_cache, REPO, "c", {"m.Q4_0.gguf": b"four"})
    os.utime(older, (1, 1))
    assert cache.find(named(f"{REPO}:Q8_0")) == newer / "m.Q8_0.gguf"
    assert cache.find(named(f"{REPO}:Q8_0@main")) is None


def test_half_a_split_model_is_not_there(hub_cache: Path) -> None:
    add(hub_cache, REPO, "a", {"m-Q4_0-00001-of-00002.gguf": b"1"})
    assert cache.find(named(f"{REPO}:Q4_0")) is None
    snapshot = add(hub_cache, REPO, "a", {"m-Q4_0-00002-of-00002.gguf": b"2"})
    for text in (f"{REPO}:Q4_0", f"{REPO}/m-Q4_0-00002-of-00002.gguf"):
        assert cache.find(named(text)) == snapshot / "m-Q4_0-00001-of-00002.gguf"
    (snapshot / "m-Q4_0-00002-of-00002.gguf").resolve().unlink()
    assert cache.find(named(f"{REPO}:Q4_0")) is None


def test_a_file_of_the_user_wins_over_the_hub(hub_cache: Path, tmp_path: Path) -> None:
    add(hub_cache, REPO, "a", {"m.gguf": b"hub"})
    reference = f"{REPO}/m.gguf"
    assert resolve_model(reference, tmp_path).is_relative_to(hub_cache)
    for folder in (locations.models(), tmp_path):
        mine = folder / reference
        mine.parent.mkdir(parents=True)
        mine.touch()
        assert resolve_model(reference, tmp_path) == mine


RECIPE = """name = "trio"
[base]
model = "org/Large:Q4_K_M"
[antiexpert]
model = "demo:small"
[experts.tuned]
model = "org/Small/s.gguf@v1"
"""


def test_a_model_that_is_not_pulled_is_one_line_that_names_the_command(hub_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model("org/Large:Q4_K_M@main", tmp_path)
    assert str(caught.value) == (
        'model "org/Large:Q4_K_M@main" is not downloaded yet; get it with: eft pull org/Large:Q4_K_M@main'
    )
    assert caught.value.exit_code == 3
    with pytest.raises(ModelNotFoundError, match="names a repository, not a model; `eft show org/Large` lists"):
        resolve_model("org/Large", tmp_path)


@pytest.mark.parametrize(
    ("place", "reported"),
    [("recipes", "trio"), ("else where", "'{tmp_path}/else where/trio.toml'"), (None, "org/Large:Q4_K_M")],
)
def test_a_recipe_is_pulled_by_its_name_its_file_or_model_by_model(
    hub_cache: Path, tmp_path: Path, place: str | None, reported: str
) -> None:
    recipe = Recipe.from_text(RECIPE)
    if place:
        folder = locations.recipes() if place == "recipes" else tmp_path / place
        folder.mkdir(parents=True)
        (folder / "trio.toml").write_text(RECIPE)
        recipe = Recipe.from_toml(folder / "trio.toml")
    assert {place: str(name) for place, name in hub_names(recipe).items()} == {
        "base": "org/Large:Q4_K_M",
        "experts.tuned": "org/Small/s.gguf@v1",
    }
    with pytest.raises(ModelNotFoundError) as caught:
        model_of(recipe, recipe.base)
    assert str(caught.value).endswith(f"get it with: eft pull {reported.format(tmp_path=tmp_path)}")
    assert model_of(recipe, recipe.antiexpert or recipe.base).name == "small.gguf"


def test_what_is_installed(hub_cache: Path) -> None:
    add(hub_cache, "org/Other", "a", {"x.gguf": b"x", "README.md": b"words"})
    add(hub_cache, REPO, "a", {"m.Q8_0.gguf": b"before"}, ref=None)
    add(hub_cache, REPO, "b", {"m.Q8_0.gguf": b"eight", "m.Q4_0.gguf": b"four"}, ref=None)
    main = add(hub_cache, REPO, "c", {"m.Q8_0.gguf": b"eight"})
    (hub_cache / "datasets--org--x" / "snapshots").mkdir(parents=True)
    begun = cache.repo_folder(hub_cache, REPO) / "blobs" / "feed.12345678.incomplete"
    begun.write_bytes(b"half")
    found = {model.reference: model for model in cache.installed()}
    assert list(found) == [f"{REPO}:Q4_0", f"{REPO}:Q8_0", f"{REPO}:Q8_0@{'a' * 40}", "org/Other/x.gguf"]
    eight = found[f"{REPO}:Q8_0"]
    assert eight.path == main / "m.Q8_0.gguf"
    assert eight.revisions == ("c" * 40, "b" * 40)
    assert [(model.model.size, len(model.paths)) for model in found.values()] == [(4, 1), (5, 2), (6, 1), (1, 1)]
    for reference, model in found.items():
        assert cache.find(named(reference)) == model.path
    assert [(part.repo, part.path, part.size) for part in cache.unfinished()] == [(REPO, begun, 4)]


def test_an_empty_or_missing_cache_has_nothing(hub_cache: Path) -> None:
    assert cache.installed() == cache.unfinished() == []
    assert cache.installed(hub_cache / "none") == cache.unfinished(hub_cache / "none") == []
    assert cache.find(named("a/b:Q4_0"), hub_cache / "none") is None


# Deleting


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def test_deleting_frees_what_it_says_and_leaves_the_rest(hub_cache: Path) -> None:
    add(hub_cache, REPO, "a", {"m.Q8_0.gguf": b"eight!", "m.Q4_0.gguf": b"four", "copy.Q5_0.gguf": b"four"}, ref=None)
    add(hub_cache, REPO, "b", {"m.Q8_0.gguf": b"eight!", "README.md": b"words"})
    add(hub_cache, "org/Other", "a", {"m.Q8_0.gguf": b"eight!"})
    found = {model.reference: model for model in cache.installed()}
    before = files_in(hub_cache)
    plan = removal([found[f"{REPO}:Q4_0"]])
    assert (plan.freed, files_in(hub_cache)) == (0, before), "its content is copy.Q5_0.gguf's too"
    plan = removal([found[f"{REPO}:Q8_0"], found[f"{REPO}:Q4_0"]])
    assert plan.freed == 6
    plan.execute()
    root = f"models--{REPO.replace('/', '--')}"
    assert before - files_in(hub_cache) == {
        f"{root}/snapshots/{'a' * 40}/m.Q8_0.gguf",
        f"{root}/snapshots/{'b' * 40}/m.Q8_0.gguf",
        f"{root}/snapshots/{'a' * 40}/m.Q4_0.gguf",
        f"{root}/blobs/{sha256(b'eight!')}",
    }
    assert [model.reference for model in cache.installed()] == [f"{REPO}:Q5_0", "org/Other:Q8_0"]


def test_the_last_model_takes_its_repository_along(hub_cache: Path) -> None:
    add(hub_cache, REPO, "a", {"sub/m.gguf": b"model"})
    begun = cache.repo_folder(hub_cache, REPO) / "blobs" / "feed.incomplete"
    begun.write_bytes(b"half")
    (model,) = cache.installed()
    removal([model]).execute()
    assert files_in(hub_cache) == {f"{cache.repo_folder(hub_cache, REPO).name}/blobs/feed.incomplete"}
    plan = removal([], cache.unfinished())
    assert plan.freed == 4
    plan.execute()
    assert list(hub_cache.iterdir()) == []


def test_a_damaged_cache_is_reported_not_half_deleted(hub_cache: Path) -> None:
    snapshot = add(hub_cache, REPO, "a", {"m.gguf": b"model", "lost.bin": b"lost"})
    (snapshot / "lost.bin").resolve().unlink()
    with pytest.raises(OutputError, match="the cache is damaged there"):
        removal(cache.installed())
    assert (snapshot / "m.gguf").read_bytes() == b"model"

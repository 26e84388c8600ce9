"""How a model on the hub is named: `org/repo:Q4_K_M` or `org/repo/folder/file.gguf`, and `@revision` after either.

What other programs and browsers call it is understood too: `hf.co/org/repo:Q4_K_M`, and the address of the page of a
repository, a folder or a file.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from eft_local.errors import ModelNotFoundError, UsageError, shown

_PART = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_NAME = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?::(?P<label>[\w.-]+)|/(?P<file>[^@:\\]+\.gguf))?(?:@(?P<revision>[\w./-]+))?",
    re.ASCII,
)
_HOST = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/+", re.IGNORECASE)
_PAGES = ("resolve", "blob", "raw", "tree")  # of a file's content, of a file, of its text, of a folder
_MAIN = "main"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
# The quantisation in a file's name, as converters and quantisers write it: Q4_K_M, IQ3_XXS, UD-Q4_K_XL, bf16, …
_LABEL = re.compile(
    r"(?:^|[-._])((?:UD-)?I?Q\d(?:_(?:K|S|M|L|XS|XL|XXS|NL|\d))*|TQ\d_\d|MXFP4(?:_MOE)?|B?F16|F32|FP16|FP32)(?=[-._]|$)",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(r"(?:mmproj|imatrix)", re.IGNORECASE)  # what stands beside a model: image encoders, statistics


def size_text(size: int) -> str:
    """Return bytes as the hub shows them: decimal units, one digit."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if round(amount, 1) < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model in a repository: its files (more than one if it is split), and the bytes of all of them.

    label: the quantisation that the file's name states, upper case.
    missing: how many parts of a split model the repository, or the cache, lacks.
    """

    files: tuple[str, ...]
    size: int
    label: str | None
    missing: int = 0

    @property
    def first(self) -> str:
        """The file that is loaded: llama.cpp finds the other parts beside it."""
        return self.files[0]


@dataclass(frozen=True, slots=True)
class HubName:
    """What a reference to the hub says. Without label and file it names a repository, not a model."""

    repo: str
    label: str | None = None
    file: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """Return what a text names on the hub, or None: it can only be a path."""
        match = _NAME.fullmatch(_without_host(text))
        if match is None:
            return None
        repo, file, revision = match["repo"], match["file"], match["revision"]
        if match["label"] is None and file is None and repo.lower().endswith((".gguf", ".toml")):
            return None  # folder/file.gguf
        parts = [*repo.split("/"), *(file or "x").split("/"), *(revision or "x").split("/")]
        if "--" in repo or any(not part.strip(".") or ".." in part for part in parts):
            return None
        return cls(repo, match["label"], file, revision)

    def __str__(self) -> str:
        model = f":{self.label}" if self.label else f"/{self.file}" if self.file else ""
        return f"{self.repo}{model}" + (f"@{self.revision}" if self.revision else "")

    def choose(self, models: Sequence[HubModel], place: str = "on the hub") -> HubModel:
        """Return the one model that is meant.

        place: where these models are, for errors.
        Raises: ModelNotFoundError, UsageError if several are meant, or none in particular; both list what there is.
        """
        if not models:
            raise ModelNotFoundError(f"{self.repo} has no GGUF models {place}; choose another repository")
        matching = [model for model in models if self._means(model)]
        if len(matching) == 1:
            return self._whole(matching[0], place)
        listed = ", ".join(f"{name} ({size_text(model.size)})" for name, model in self.references(models).items())
        if not (self.label or self.file):
            raise UsageError(f"{self.repo} names a repository, not a model; name one of {listed}")
        if matching:
            several = ", ".join(f"{self.repo}/{model.first} ({size_text(model.size)})" for model in matching)
            raise UsageError(f"{shown(str(self))} names {len(matching)} models; name one of {several}")
        raise ModelNotFoundError(f"{shown(str(self))} is not {place}; there are {listed}")

    def _means(self, model: HubModel) -> bool:
        if self.file:
            return self.file in model.files
        return self.label is not None and self.label.upper() == model.label

    def _whole(self, model: HubModel, place: str) -> HubModel:
        if model.missing:
            raise ModelNotFoundError(f"{self} is split, and {model.missing} of its parts are not {place}")
        return model

    def references(self, models: Sequence[HubModel]) -> dict[str, HubModel]:
        """Return for each model of this repository the shortest reference that means it alone."""
        labels = Counter(model.label for model in models)
        revision = f"@{self.revision}" if self.revision else ""

        def model_part(model: HubModel) -> str:
            return f":{model.label}" if model.label and labels[model.label] == 1 else f"/{model.first}"

        return {f"{self.repo}{model_part(model)}{revision}": model for model in models}


def _without_host(text: str) -> str:
    """Return what an address of the hub names, in our own words; any other text as it is."""
    host = _HOST.match(text)
    if host is None:
        return text
    address = urlsplit(f"/{text[host.end() :]}")
    places = [unquote(part) for part in address.path.strip("/").split("/")]
    file = parse_qs(address.query).get("show_file_info", [""])[0]  # the page that shows a GGUF file's header
    revision = _MAIN
    if len(places) > 3 and places[2] in _PAGES:
        revision, path = places[3], "/".join(places[4:])
        file = path if path.endswith(".gguf") else file
        del places[2:]
    name = "/".join([*places, file] if file else places)
    return name if revision == _MAIN else f"{name}@{revision}"


def models_of(sizes: Mapping[str, int]) -> list[HubModel]:
    """Return the models among a repository's files, the smallest first. sizes: bytes by path."""
    splits: dict[tuple[str, int], list[str]] = defaultdict(list)
    models = []
    for path in sorted(sizes):
        name = path.rpartition("/")[2]
        if not name.endswith(".gguf") or _NO_MODEL.match(name):
            continue
        shard = _SHARD.fullmatch(path)
        if shard and 1 <= int(shard["number"]) <= int(shard["count"]):
            splits[shard["stem"], int(shard["count"])].append(path)
        else:
            models.append(HubModel((path,), sizes[path], _label(path.removesuffix(".gguf"))))
    for (stem, count), files in splits.items():
        size = sum(sizes[file] for file in files)
        models.append(HubModel(tuple(files), size, _label(stem), missing=count - len(files)))
    return sorted(models, key=lambda model: (model.size, model.files))


def _label(stem: str) -> str | None:
    found: list[str] = _LABEL.findall(stem.rpartition("/")[2])
    return found[-1].upper() if found else None

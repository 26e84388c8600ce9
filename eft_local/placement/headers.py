"""What must be known of a recipe's models before any of them is loaded, read from the headers of their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eft_local.backends.llamacpp import ChatTemplate
from eft_local.backends.vocabulary import Common, common_tokens
from eft_local.gguf.adapter import check_adapter
from eft_local.gguf.checks import check_gguf
from eft_local.gguf.header import HeaderVocabulary, Pretokenizer, pretokenizer_warnings, read_vocabulary
from eft_local.gguf.reader import Gguf
from eft_local.notices import notice
from eft_local.placement.survey import RoleFiles
from eft_local.prompts.render import template_for
from eft_local.recipe import Recipe, Role


@dataclass(frozen=True, slots=True)
class Headers:
    """vocabularies: by role; those on one file share its.  files: while these are held, none is read again.
    common: what the tokens of roles that are combined have in common; None if none are.
    """

    vocabularies: Mapping[str, HeaderVocabulary]
    common: Common | None
    files: tuple[Gguf, ...]


def check_headers(
    recipe: Recipe, roles: Mapping[str, Role], files_by_role: Mapping[str, RoleFiles], *, combined: bool
) -> Headers:
    """Return the headers of models after checking that these can do what a recipe wants of them.

    roles: what runs, by name, and `files_by_role` on which files.
    combined: whether their logits are combined, so that their tokens must agree ([compare] stands apart).
    Warns, once, of tokenizers that split texts in other ways than they were trained to, or than the base's.
    Raises: ModelFileError, UnsupportedModelError, PromptError, VocabularyMismatchError.
    """
    paths = {files.model.resolve(): files.model for files in files_by_role.values()}
    held = tuple(map(check_gguf, paths.values()))
    read = {resolved: read_vocabulary(path) for resolved, path in paths.items()}
    vocabularies = {name: read[files.model.resolve()] for name, files in files_by_role.items()}
    together = {name: each for name, each in vocabularies.items() if combined and name not in recipe.compare}
    common = common_tokens(together) if together else None
    for name, files in files_by_role.items():
        if files.adapter:
            check_adapter(files.adapter, files.model)
        _check_template(recipe, roles[name], files, vocabularies[name])
    _warn_of_pretokenizers(together)
    for name, each in vocabularies.items():
        _warn_of_pretokenizers({name: each})
    return Headers(vocabularies, common, held)


def _warn_of_pretokenizers(vocabularies: Mapping[str, HeaderVocabulary]) -> None:
    named = {name: Pretokenizer(each.path, each.model, each.pre) for name, each in vocabularies.items()}
    for warning in pretokenizer_warnings(named):
        notice("%s", warning)


def _check_template(recipe: Recipe, role: Role, files: RoleFiles, header: HeaderVocabulary) -> None:
    """Raises: PromptError if there is no template, or it does not parse."""

    def compiled(source: str) -> ChatTemplate:
        return ChatTemplate(source, bos="", eos="", origin=files.model.name)

    template_for(role.prompt, header.chat_template, compiled, recipe.folder, str(files.model))

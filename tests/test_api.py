"""The public names."""

import inspect
import re

import pytest

import eft_local


def test_all_is_exactly_what_can_be_imported():
    assert sorted(eft_local.__all__) == eft_local.__all__
    for name in eft_local.__all__:
        assert getattr(eft_local, name) is not None
    assert set(eft_local.__all__) == {*eft_local._HOMES, "__version__"}
    assert dir(eft_local) == eft_local.__all__
    namespace: dict[str, object] = {}
    exec("from eft_local import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(eft_local.__all__)


def test_names_come_from_where_they_are_defined():
    for name, home in eft_local._HOMES.items():
        public = getattr(eft_local, name)
        assert public.__name__ == name
        assert public.__module__.startswith(home) or name == "Sampling"


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Emulater"):
        _ = eft_local.Emulater


def test_the_version_is_a_release_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+", eft_local.__version__)


def public_callables():
    for name in eft_local.__all__:
        public = getattr(eft_local, name)
        if inspect.isclass(public):
            yield name, public
            for member, value in vars(public).items():
                function = getattr(value, "__func__", getattr(value, "fget", value))
                if not member.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{member}", function


@pytest.mark.parametrize(("name", "public"), list(public_callables()))
def test_public_things_have_docstrings(name, public):
    text = inspect.getdoc(public) or ""
    assert len(text) > 15
    assert not text.startswith(f"{name}("), "dataclass' own signature is no docstring"


def test_errors_are_drawn_in_the_tree():
    from eft_local import errors

    found = [each for each in vars(errors).values() if inspect.isclass(each)]
    classes = [each for each in found if each.__module__ == errors.__name__]
    assert len(classes) > 10
    for each in classes:
        assert issubclass(each, eft_local.EftError)
        drawn = re.search(rf"\b{each.__name__} +(?:exit code )?(\d+)", errors.__doc__)
        assert drawn, f"{each.__name__} is not in the tree"
        assert int(drawn[1]) == each.exit_code

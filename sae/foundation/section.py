"""What all settings share: frozen values, unknown keys refused with the nearest known one, readable numbers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

NOT_REPEATED = "not_repeated"  # the type of an error whose value is not repeated


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def absolute(self) -> Self:
        """The same settings with absolute paths, which mean the same from every folder."""
        return self.with_paths(lambda path: path.expanduser().absolute())

    def with_paths(self, changed: Callable[[Path], Path]) -> Self:
        """The same settings with other paths."""
        values = {name: _with_paths(getattr(self, name), changed) for name in type(self).model_fields}
        return self.model_copy(update=values)


def _with_paths(value: Any, changed: Callable[[Path], Path]) -> Any:
    if isinstance(value, Section):
        return value.with_paths(changed)
    if isinstance(value, Path):
        return changed(value)
    return tuple(_with_paths(item, changed) for item in value) if type(value) is tuple else value


def _whole_number(value: Any) -> Any:
    """`value` as an int if it is a whole number, also one written as 2e6, 2_000_000 or "2e6"; a bool is refused."""
    if isinstance(value, bool):
        raise PydanticCustomError("whole_number", "a whole number is wanted, not true or false")
    if isinstance(value, str):
        try:
            value = float(value.replace("_", ""))
        except ValueError:
            return value

    if isinstance(value, float):
        if not math.isfinite(value) or value != int(value):
            raise PydanticCustomError("whole_number", "a whole number is wanted")
        return int(value)

    return value


Count = Annotated[int, BeforeValidator(_whole_number)]


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys allowed at the last element of `location`, found by walking the config classes."""
    classes: list[type[BaseModel]] = [model]
    for part in location[:-1]:
        following = []
        for cls in classes:
            if part in cls.model_fields:
                following += classes_in(cls.model_fields[part].annotation)
        tagged = [c for c in classes if any(_tag_is(f.annotation, part) for f in c.model_fields.values())]
        classes = following or tagged or classes
    return sorted({name for cls in classes for name in cls.model_fields})


def classes_in(annotation: Any) -> list[type[BaseModel]]:
    """Every config class inside a type such as `tuple[A | B, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for arg in getattr(annotation, "__args__", ()) for cls in classes_in(arg)]


def _tag_is(annotation: Any, tag: Any) -> bool:
    return tag in getattr(annotation, "__args__", ()) and isinstance(tag, str)


def _tags(model: type[BaseModel]) -> set[str]:
    """The values of every Literal field of one value below `model`: pydantic puts them into the place of an error."""
    tags: set[str] = set()
    for field in model.model_fields.values():
        for cls in classes_in(field.annotation):
            tags |= _tags(cls)
        values = getattr(field.annotation, "__args__", ())
        if len(values) == 1 and isinstance(values[0], str):
            tags.add(values[0])
    return tags


def _about_tag(key: str, context: Any) -> str:
    """The line for an entry with a missing or unknown kind."""
    which = f"{key}.{context['discriminator'].strip(chr(39))}"
    if "tag" not in context:
        return f"{which}: missing; this key is required"
    known = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
    near = difflib.get_close_matches(str(context["tag"]), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{which}: {context['tag']!r} is not known; {hint}known: {', '.join(known)}"


def describe_problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per problem: the dotted key, what was given, what is allowed, the nearest key for a typo."""
    lines = []
    problems = error.errors(include_url=False)
    places = [tuple(problem["loc"]) for problem in problems]
    tags = _tags(model)

    for problem, location in zip(problems, places, strict=True):
        if problem["type"] == "too_short" and any(p[: len(location)] == location != p for p in places):
            continue  # too short only because its entries were refused
        key = ".".join(str(part) for part in location if part not in tags) or "config"
        if problem["type"] == "extra_forbidden":
            allowed_keys = _known_keys(model, location)
            near = difflib.get_close_matches(str(location[-1]), allowed_keys, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(allowed_keys)}"
            lines.append(f"{key}: unknown key; {hint}")
        elif problem["type"].startswith("union_tag"):
            lines.append(_about_tag(key, problem.get("ctx")))
        elif problem["type"] == "missing":
            lines.append(f"{key}: missing; this key is required")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            value = problem.get("input")
            is_shown = problem["type"] != NOT_REPEATED and not isinstance(value, dict | list | tuple | BaseModel)
            given_value_note = f" (given: {value!r})" if is_shown else ""
            lines.append(f"{key}: {message[0].lower() + message[1:]}{given_value_note}")

    return lines


def without_password(address: str) -> str:
    """The address; raises an error if it holds a name or password: settings are kept in the run and published."""
    if "://" in address and "@" in urlsplit(address).netloc:
        message = "the address holds a name or password, which would be written into the run's files. Leave it out"
        raise PydanticCustomError(NOT_REPEATED, message)
    return address

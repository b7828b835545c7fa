"""How often a schema may look at one place of a value: the guard against small schemas that take forever.

Without references a schema is a tree, and each of its parts looks at a place at most once. A `$ref` makes it a
graph: `d0: allOf [d1, d1]`, `d1: allOf [d2, d2]` … doubles with every step, in place or one level deeper in the
value at each. So the paths that lead to one place are counted before the schema is ever used (dynamic programming
over part and depth), and a schema is refused when there are too many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

MAX_LOOKS = 1_000
"""At one place of a value, by all parts of the schema together."""
MAX_DEPTH = 32
"""Of a value that is checked, in levels of JSON."""
_MAX_STEPS = 50_000
"""Of the count itself: about 50 ms."""

_IN_PLACE_ONE = ("not", "if", "then", "else")
_IN_PLACE_LIST = ("allOf", "anyOf", "oneOf")
_IN_PLACE_NAMED = ("dependentSchemas", "dependencies")
_BELOW_ONE = (
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
    "additionalItems",
    "unevaluatedItems",
    "contains",
)
_BELOW_NAMED = ("patternProperties",)


class CostProblem(Exception):
    """`path`: where in the schema; the text says what is wrong there."""

    def __init__(self, path: tuple[str, ...], reason: str) -> None:
        super().__init__(reason)
        self.path = path


def check_cost(schema: dict[str, Any]) -> None:
    """Raises `CostProblem` when a schema refers to something outside itself, to itself without end, or looks at one
    place too often. Whatever isn't valid by its meta-schema is skipped: the validator says so."""
    references = list(_references(schema, ()))
    for path, target in references:
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            raise CostProblem(path, "has to point into this schema, such as #/$defs/name")
        if _target(schema, target) is None:
            raise CostProblem(path, "points to nothing in this schema")
    if references:
        count = _Count(schema)
        try:
            looks = max(count.looks(schema, depth) for depth in range(MAX_DEPTH))
        except RecursionError:
            raise CostProblem((), "is nested too deeply") from None
        if looks > MAX_LOOKS:
            raise CostProblem((), "would check the same value too many times; use fewer references")


def _references(part: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(part, dict):
        return
    for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
        if keyword in part:
            yield (*path, keyword), part[keyword]
    if path and isinstance(part.get("$id"), str):
        raise CostProblem((*path, "$id"), "may only stand at the top of the schema")
    for name, child in _children(part):
        yield from _references(child, (*path, *name))


def _children(part: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for keyword in (*_IN_PLACE_ONE, *_BELOW_ONE, "items"):
        if isinstance(part.get(keyword), dict):
            yield (keyword,), part[keyword]
    for keyword in (*_IN_PLACE_LIST, "prefixItems", "items"):
        if isinstance(part.get(keyword), list):
            yield from (((keyword, str(at)), child) for at, child in enumerate(part[keyword]))
    for keyword in (*_IN_PLACE_NAMED, *_BELOW_NAMED, "properties", "$defs", "definitions"):
        if isinstance(part.get(keyword), dict):
            yield from (((keyword, name), child) for name, child in part[keyword].items())


class _Count:
    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._known: dict[tuple[int, int], int | None] = {}

    def looks(self, part: Any, depth: int) -> int:
        """At most so many parts look at one place `depth` levels below the place that `part` looks at."""
        if not isinstance(part, dict):
            return 0
        key = (id(part), depth)
        if key in self._known:
            known = self._known[key]
            if known is None:
                raise CostProblem((), "refers to itself without end")
            return known
        if len(self._known) > _MAX_STEPS:
            raise CostProblem((), "is too large to have references")
        self._known[key] = None
        looks = sum(self.looks(child, depth) for child in self._in_place(part))
        looks += self._below(part, depth - 1) if depth else 1
        # Only whether it is too much matters, not how much.
        looks = min(looks, MAX_LOOKS + 1)
        self._known[key] = looks
        return looks

    def _in_place(self, part: dict[str, Any]) -> Iterator[Any]:
        for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            if keyword in part:
                yield _target(self._schema, part[keyword])
        for keyword in _IN_PLACE_ONE:
            yield part.get(keyword)
        for keyword in _IN_PLACE_LIST:
            if isinstance(part.get(keyword), list):
                yield from part[keyword]
        for keyword in _IN_PLACE_NAMED:
            if isinstance(part.get(keyword), dict):
                yield from part[keyword].values()

    def _below(self, part: dict[str, Any], depth: int) -> int:
        looks = sum(self.looks(part.get(keyword), depth) for keyword in _BELOW_ONE)
        for keyword in _BELOW_NAMED:
            if isinstance(part.get(keyword), dict):
                looks += sum(self.looks(child, depth) for child in part[keyword].values())
        # A place has one name or one position, so one of these at most looks at it.
        properties, items, prefix = part.get("properties"), part.get("items"), part.get("prefixItems")
        if isinstance(properties, dict):
            looks += max((self.looks(child, depth) for child in properties.values()), default=0)
        positions = (items if isinstance(items, list) else [items]) + (prefix if isinstance(prefix, list) else [])
        return looks + max(self.looks(child, depth) for child in positions or [None])


def _target(schema: dict[str, Any], reference: str) -> Any:
    """What a JSON Pointer (RFC 6901) points to; None: nothing that could be a schema."""
    found: Any = schema
    for token in reference.removeprefix("#").split("/")[1:]:
        token = unquote(token).replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(token)
        elif isinstance(found, list) and token.isdecimal() and int(token) < len(found):
            found = found[int(token)]
        else:
            return None
    return found

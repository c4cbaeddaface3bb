"""Bodies to values: read once, by the project's own reader, and beside the loop where they are large."""

import asyncio
import concurrent.futures
import itertools
from collections.abc import Iterator
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from internvl_jax.errors import InputError
from internvl_jax.validation import parse_json

_CLIENTS_OWN = ("schema", "json", "metadata", "logit_bias")
_FIELDS = 256  # of an object; the largest that has a meaning has a fifth of them
_NESTED = 1 << 14  # objects and lists: messages, parts and what they have; the loop looks at each more than once
_KINDS = (dict, list)
_LARGE = 1 << 16  # bytes; what Python does for each value of a larger body would hold up everybody's streams
_READER = concurrent.futures.ThreadPoolExecutor(1, "bodies")  # one at a time: threads of Python share one interpreter


class CheckedRoute(APIRoute):
    """A route whose requests read their bodies as this project does."""

    def get_route_handler(self) -> Any:
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            return await handle(_CheckedRequest(request.scope, request.receive))

        return checked


class _CheckedRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            if len(body) < _LARGE:
                return read_body(body)
            return await asyncio.get_running_loop().run_in_executor(_READER, read_body, body)
        except InputError as error:
            raise HTTPException(400, str(error)) from None


def read_body(body: bytes) -> Any:
    """The value of a body, without fields that are null.

    Raises:
      InputError: it is no JSON, has too many objects or lists, or an object of so many fields that most are none.
    """
    return _without_null(parse_json(body, "the body"), itertools.count(1))


def _without_null(value: Any, nested: Iterator[int]) -> Any:
    """null stands for a field that isn't there, but in what belongs to the client."""
    if not isinstance(value, _KINDS):
        return value
    if next(nested) > _NESTED:
        raise InputError(f"the body has more than {_NESTED:,} objects and lists; send fewer messages or parts.")
    if isinstance(value, list):
        return [_without_null(each, nested) if isinstance(each, _KINDS) else each for each in value]
    if len(value) > _FIELDS:  # each one that isn't known would be an error of its own
        raise InputError(f"the body has an object of {len(value):,} fields; the largest has at most {_FIELDS}.")
    return {
        name: each if name in _CLIENTS_OWN else _without_null(each, nested)
        for name, each in value.items()
        if each is not None
    }

"""Fills in a variant's sampling parameters where a request sets none. Pure.

What the agent sets stays. The parameters come before FULGURITE_MAX_TOKENS and `sampling.train`,
which change what they give, too.
"""

from __future__ import annotations

import msgspec

from fulgurite.events import Sampling
from services.gateway.dialects.dialect import ApiRequest, Dialect
from services.gateway.dialects.plain import PlainDialect
from services.gateway.upstream.route import Route


def fill_parameters(
    request: ApiRequest, sampling: Sampling, route: Route, dialect: Dialect, defaults: Sampling
) -> tuple[ApiRequest, Sampling]:
    """The request with the parameters that it lacks, and its effective sampling.

    `defaults`: what the engine uses where a request says nothing.
    """
    missing = {
        name: int(value) if value.is_integer() else value
        for name, value in route.parameters
        if request.body.get(name) is None
    }
    if not missing or isinstance(dialect, PlainDialect):
        return request, sampling
    filled = msgspec.structs.replace(request, body={**request.body, **missing})
    return filled, dialect.sampling(filled, defaults)

"""What a person may do from the console's pages: the same events as the command line's.

Each action checks what the command checks, and returns a sentence about what it did.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from fulgurite.errors import FulguriteError
from fulgurite.events import DeadLetter, RouteTarget
from fulgurite.selection.variants import name_variant
from fulgurite.versions import parse_version
from services.common.kafka.codec import make_codec
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.redriving import read_letters, redrive
from services.common.kafka.settings import KafkaSettings
from services.common.policies.route_log import former_targets, last_routes, write_route
from services.common.policies.route_targets import read_published
from services.console.pages.actions import Action, ActionRefused

Given = Mapping[str, str]
"""What the button names and what the person entered."""


def operator_actions(kafka: KafkaSettings) -> dict[str, Action]:
    """The actions by the names that buttons have."""
    actions: dict[str, Callable[[KafkaSettings, Given], str]] = {
        "promote": promote,
        "canary": start_canary,
        "roll_back": roll_back,
        "redrive": redrive_letter,
        "redrive_stage": redrive_all,
    }
    return {name: partial(_refusing, action, kafka) for name, action in actions.items()}


def promote(kafka: KafkaSettings, given: Given) -> str:
    """Have one version serve an alias, as `fulgurite policy promote` does."""
    target = _checked_target(kafka, given["version"])
    alias = _alias(given)
    _write(kafka, alias, (target,), given, f"promoted {target.version}")
    return f"{target.version} serves {alias} now. Gateways follow within a second."


def start_canary(kafka: KafkaSettings, given: Given) -> str:
    """Give a version a share of an alias, as `fulgurite routes set` does."""
    alias, share = _alias(given), _share(given)
    target = _checked_target(kafka, given["version"])
    before = last_routes(kafka).get(alias)
    targets = with_canary(before.targets if before is not None else (), target, share)
    _write(kafka, alias, targets, given, f"canary {target.version}")
    return f"{target.version} gets {share:.0%} of the rollouts of {alias} that begin from now on."


def with_canary(
    targets: tuple[RouteTarget, ...], canary: RouteTarget, share: float
) -> tuple[RouteTarget, ...]:
    """A route's targets with a share for another variant, the same in every context cell; the
    others keep their proportions. Without a route, the newest version of the policy has the rest.

    Raises ActionRefused if no other target has a share.
    """
    name = name_variant(canary)
    others = [one for one in targets if name_variant(one) != name and one.weight > 0]
    if targets and not others:
        raise ActionRefused(
            f"{name} is all that the route has, so nothing can keep the rest: promote another "
            f"version, then start {name} as a canary"
        )
    others = others or [RouteTarget(policy=canary.policy, weight=1.0)]
    rest = _scaled([one.weight for one in others], 1 - share)
    cells = {
        cell: _scaled(_weights_in(cell, others), 1 - share)
        for cell in sorted({cell for one in others for cell in one.cell_weights})
    }
    scaled = [
        msgspec.structs.replace(
            one,
            weight=rest[place],
            cell_weights={cell: weights[place] for cell, weights in cells.items()},
        )
        for place, one in enumerate(others)
    ]
    before = next((one for one in targets if name_variant(one) == name), canary)
    return (
        *scaled,
        msgspec.structs.replace(before, weight=share, cell_weights=dict.fromkeys(cells, share)),
    )


def _weights_in(cell: str, targets: Sequence[RouteTarget]) -> list[float]:
    """Weights of targets in a context cell. Where all are 0, the gateway uses those outside it."""
    found = [one.cell_weights.get(cell, one.weight) for one in targets]
    return found if any(found) else [one.weight for one in targets]


def _scaled(weights: Sequence[float], total: float) -> list[float]:
    """Weights in the same proportions that add up to `total`."""
    scale = total / sum(weights)
    return [weight * scale for weight in weights]


def roll_back(kafka: KafkaSettings, given: Given) -> str:
    """Return an alias to what served it before, as `fulgurite policy rollback` does.

    `policy`: what serves it where it has no route; without it, the policy of the alias's name.
    """
    alias = _alias(given)
    published, route = read_published(kafka), last_routes(kafka).get(alias)
    targets = former_targets(published, route, given.get("policy", alias))
    for target in targets:
        if target.upstream is None:
            published.check(target, {target.policy})
    _write(kafka, alias, targets, given, "rolled back")
    names = ", ".join(one.version or one.upstream or one.policy for one in targets)
    return f"{alias} is back at {names or 'its newest version'}."


def redrive_letter(kafka: KafkaSettings, given: Given) -> str:
    """Send one dead letter's event back, as `fulgurite dlq redrive` does."""
    name = given["letter"]
    letter = read_letters(kafka, make_codec()).get(name)
    if letter is None:
        raise ActionRefused(f"the log has no dead letter {name}")
    return _redrive(kafka, [letter])


def redrive_all(kafka: KafkaSettings, given: Given) -> str:
    """Send all events of a stage back."""
    stage = given["stage"]
    letters = [one for one in read_letters(kafka, make_codec()).values() if one.stage == stage]
    if not letters:
        raise ActionRefused(f"the log has no dead letter of {stage}")
    return _redrive(kafka, letters)


def _refusing(
    action: Callable[[KafkaSettings, Given], str], kafka: KafkaSettings, given: Given
) -> str:
    """Act, and say why where that is not possible."""
    try:
        return action(kafka, given)
    except (ValueError, FulguriteError, LogUnavailable) as error:
        raise ActionRefused(str(error)) from error


def _checked_target(kafka: KafkaSettings, name: str) -> RouteTarget:
    version = parse_version(name)
    target = RouteTarget(policy=version.policy, version=str(version), weight=1.0)
    read_published(kafka).check(target, {version.policy})
    return target


def _alias(given: Given) -> str:
    alias = given.get("alias", "").strip()
    if not alias:
        raise ActionRefused("name the alias")
    return alias


def _share(given: Given) -> float:
    text = given.get("share", "")
    try:
        share = float(text)
    except ValueError as error:
        raise ActionRefused(f"{text!r} is not a share from 0 to 1") from error
    if not 0 < share < 1:
        raise ActionRefused(f"the share is {share:g}; a canary gets more than 0 and less than 1")
    return share


def _write(
    kafka: KafkaSettings,
    alias: str,
    targets: tuple[RouteTarget, ...],
    given: Given,
    what: str,
) -> None:
    reason = given.get("reason", "").strip() or f"{what} in the console"
    write_route(kafka, alias, targets, reason, author=f"{getpass.getuser()} (console)")


def _redrive(kafka: KafkaSettings, letters: list[DeadLetter]) -> str:
    done = redrive(kafka, make_codec(), letters)
    sent = [one for one in done if one.topic is not None]
    refused = [one for one in done if one.topic is None]
    if not sent:
        raise ActionRefused(f"nothing was sent back: {refused[0].why}")
    more = f"; {len(refused)} could not be: {refused[0].why}" if refused else ""
    return f"{len(sent)} sent back to {', '.join(sorted({str(one.topic) for one in sent}))}{more}"

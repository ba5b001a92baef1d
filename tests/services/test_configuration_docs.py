"""docs/reference/settings.md names every setting of every service with its default, and none that
is gone.
"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from services.aggregator.settings import AggregatorSettings
from services.applier.settings import ApplierSettings
from services.common.kafka.client import KafkaSettings
from services.gateway.settings import GatewaySettings
from services.judge.settings import JudgeSettings
from services.learner.settings import LearnerSettings
from services.learner.trainer_settings import TrainerSettings
from services.rewarder.settings import RewarderSettings
from services.rewards.settings import RewardWorkerSettings
from services.runner.settings import RunnerSettings

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "settings.md").read_text()
SECTIONS: dict[str, type[BaseSettings]] = {
    "Kafka, for every service": KafkaSettings,
    "Gateway": GatewaySettings,
    "Applier": ApplierSettings,
    "Aggregator": AggregatorSettings,
    "Rewarder": RewarderSettings,
    "Reward worker": RewardWorkerSettings,
    "Judge": JudgeSettings,
    "Learner": LearnerSettings,
    "Trainer, within the learner": TrainerSettings,
    "Runner (`fulgurite run`)": RunnerSettings,
}


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_lists_exactly_the_services_settings(title: str) -> None:
    settings = SECTIONS[title]
    prefix = str(settings.model_config.get("env_prefix", ""))
    names = {
        str(field.validation_alias or prefix + name.upper())
        for name, field in settings.model_fields.items()
    }
    section = PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"^\| `([A-Z0-9_]+)` \|", section, re.MULTILINE)) == names


WRITTEN_OUT = {
    "FULGURITE_LEARNER_ID": "*made*",
    "FULGURITE_DEFAULT_SAMPLING": "temperature 1, no truncation",
}
"""Defaults that are no value: said in words."""


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_has_the_services_own_defaults(title: str) -> None:
    settings = SECTIONS[title]
    prefix = str(settings.model_config.get("env_prefix", ""))
    section = PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    documented = dict(re.findall(r"^\| `([A-Z0-9_]+)` \|([^|]*)\|", section, re.MULTILINE))
    defaults = {
        str(field.validation_alias or prefix + name.upper()): field
        for name, field in settings.model_fields.items()
    }
    wrong = {
        name: (documented[name].strip(), shown(field))
        for name, field in defaults.items()
        if not agrees(name, documented[name], field)
    }
    assert not wrong, f"documented, and true: {wrong}"


def agrees(name: str, documented: str, field: FieldInfo) -> bool:
    if field.is_required():
        return documented.strip() == "*needed*"
    if name in WRITTEN_OUT:
        return documented.strip() == WRITTEN_OUT[name]
    return documented.strip().strip("`") == shown(field)


def shown(field: FieldInfo) -> str:
    """As an environment variable would have it; nothing where nothing is set."""
    if field.is_required():
        return "*needed*"
    default = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if isinstance(default, Enum):
        default = default.value
    return "" if default is None or default == {} or default == () else str(default)

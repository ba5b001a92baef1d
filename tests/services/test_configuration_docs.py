"""docs/configuration.md names every setting of every service, and none that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from services.aggregator.settings import AggregatorSettings
from services.applier.settings import ApplierSettings
from services.gateway.settings import GatewaySettings
from services.kafka import KafkaSettings
from services.learner.settings import LearnerSettings
from services.learner.trainer_settings import TrainerSettings
from services.rewarder.judge_settings import JudgeSettings
from services.rewarder.settings import RewarderSettings, RewardWorkerSettings
from services.runner.settings import RunnerSettings

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
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
    names = {str(field.validation_alias or prefix + name.upper()) for name, field in settings.model_fields.items()}
    section = PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"^\| `([A-Z0-9_]+)` \|", section, re.MULTILINE)) == names

"""Starts the learner: `python -m services.learner.main`.

Workers that are lost (`engine.placement = "ray"`) are replaced, and training resumes from the
newest checkpoint. Exits with 0 when stopped, with 78 (EX_CONFIG) if a person must change something
first, with 69 (EX_UNAVAILABLE) if a restart may help.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from contextlib import ExitStack

import msgspec

from fulgurite.topics import TRAJECTORIES
from services.common.kafka.codec import make_codec
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import TopicLayoutError, check_topics, topic_names
from services.common.runtime import logs
from services.common.runtime.ending import run_service
from services.common.runtime.model_folder import model_problem
from services.learner.config import RunConfig
from services.learner.config_file import former_in, load, variable
from services.learner.errors import (
    ConfigInvalid,
    LearnerError,
    ModelUnusable,
    TopicMissing,
    WorkersLost,
)
from services.learner.files import only_learner
from services.learner.learner import Learner
from services.learner.policy_log import PolicyLog
from services.learner.settings import LearnerSettings
from services.learner.source import TrajectorySource

_LOSSES_AT_A_VERSION = 2
"""How often workers may be lost before the next version is made: a batch that ends them each time
would do so for ever.
"""

logger = logs.get()


def main() -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    settings = LearnerSettings()
    logs.configure("learner", settings.log_level)
    kafka = KafkaSettings()
    try:
        config = load(settings.run)
        for name, key in former_in(os.environ).items():
            logger.warning(
                "a variable of an earlier release; the next one ignores it",
                variable=name,
                use=variable(key),
            )
        check_start(config, kafka)
        with only_learner(settings.data_dir, config.policy.name):
            return _run(settings, config, kafka)
    except (LearnerError, TopicLayoutError) as error:
        logger.error("the learner cannot continue", error=str(error), kind=type(error).__name__)
        return os.EX_CONFIG
    except LogUnavailable as error:
        logger.error("the learner stopped; restart it to resume", error=str(error))
        return os.EX_UNAVAILABLE


def check_start(config: RunConfig, kafka: KafkaSettings) -> None:
    """Check the model and the topics, before anything large is imported.

    Raises ConfigInvalid, ModelUnusable, TopicMissing, TopicLayoutError, LogUnavailable.
    """
    if config.policy.frozen:
        raise ConfigInvalid(
            f"policy.frozen = true: no learner trains {config.policy.name}. Name another policy, "
            "or remove `frozen`"
        )
    problem = model_problem(config.policy.model)
    if problem is not None:
        raise ModelUnusable(f"policy.model = {problem}")
    check_topics(kafka)
    topic = msgspec.structs.replace(TRAJECTORIES, name=config.policy.topic)
    found = topic_names(kafka)
    if kafka.topic(topic) not in found:
        names = ", ".join(
            sorted(
                name.removeprefix(kafka.topic_prefix)
                for name in found
                if name.startswith(kafka.topic_prefix)
            )
        )
        raise TopicMissing(
            f"policy.topic = {config.policy.topic}: there is no topic {kafka.topic(topic)} on "
            f"{kafka.bootstrap_servers}. Choose one of {names}, or write one with "
            "`fulgurite replay --into`."
        )


def _run(settings: LearnerSettings, config: RunConfig, kafka: KafkaSettings) -> int:
    """Train until stopped; with new workers, from the newest checkpoint, where some are lost."""
    losses: Counter[str] = Counter()
    while True:
        try:
            _train(settings, config, kafka, losses)
        except WorkersLost as error:
            if max(losses.values(), default=0) > _LOSSES_AT_A_VERSION:
                raise
            logger.error("workers lost; the learner starts new ones", error=str(error))
        else:
            return 0


def _train(
    settings: LearnerSettings, config: RunConfig, kafka: KafkaSettings, losses: Counter[str]
) -> None:
    """Resume, and train until stopped. Raises WorkersLost, and counts it by version."""
    # torch and verl take seconds to import, so settings and topics are checked before.
    from services.learner.trainer import Trainer

    policy = config.policy
    codec = make_codec()
    learner: Learner | None = None
    try:
        with ExitStack() as stack:
            producer = EventProducer(kafka, codec, f"learner-{policy.name}")
            stack.callback(producer.close)
            trainer = Trainer(config)
            stack.callback(trainer.close)
            source = TrajectorySource(kafka, codec, policy.topic, policy.name, policy.rows_of)
            stack.callback(source.close)
            policy_log = PolicyLog(kafka, codec, producer, policy.name, settings.learner_id)
            stack.callback(policy_log.close)
            learner = Learner(settings, config, trainer, source, policy_log, producer, codec)
            _stop_on_signals(learner)
            learner.resume()
            learner.run()
    except WorkersLost:
        losses["before a version" if learner is None else str(learner.version)] += 1
        raise
    logger.info("stopped", version=str(learner.version))


def _stop_on_signals(learner: Learner) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: learner.stop())


if __name__ == "__main__":
    sys.exit(run_service("learner", main))

"""Puts an offline run together, as `services.learner.main` does a learner: model, log, files."""

from __future__ import annotations

import signal
from collections.abc import Callable

from services.common.kafka.codec import make_codec
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.learner.config import RunConfig
from services.learner.files import only_learner
from services.learner.offline import Chosen, Method, OfflineRun, Step
from services.learner.policy_log import PolicyLog
from services.learner.settings import LearnerSettings
from services.learner.versions import PolicyVersions


def train_offline(
    settings: LearnerSettings,
    config: RunConfig,
    kafka: KafkaSettings,
    method: Method,
    chosen: Chosen,
    *,
    topic: str | None,
    on_step: Callable[[Step], None],
) -> OfflineRun:
    """Train on what was chosen, and publish; returns the run when it has ended.

    SIGINT and SIGTERM end it after the current optimizer step, a second one at once. Raises
    LearnerError, LogUnavailable.
    """
    with only_learner(settings.data_dir, config.policy.name):
        # torch and verl take seconds to import.
        from services.learner.trainer import Trainer

        codec = make_codec()
        trainer = Trainer(config)
        producer = EventProducer(kafka, codec, f"learner-{config.policy.name}")
        policy_log = PolicyLog(kafka, codec, producer, config.policy.name, settings.learner_id)
        versions = PolicyVersions(settings, config, trainer, policy_log, codec)
        run = OfflineRun(
            config, method, chosen.units, trainer, versions, topic=topic, on_step=on_step
        )

        def stop(number: int, _frame: object) -> None:
            run.stop()
            signal.signal(number, signal.SIG_DFL)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        try:
            run.resume()
            run.run()
        finally:
            policy_log.close()
            producer.close()
            trainer.close()
    return run

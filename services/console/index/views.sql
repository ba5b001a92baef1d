-- The views of the index, over the tables of tables.sql. docs/reference/tables.md lists them.

-- One row per reward that counts for a rollout's final attempt. Of several with one name and target: final before provisional, then the last. A fallback counts only where all rewards are fallbacks.
CREATE VIEW counted_rewards AS
SELECT
    reward.rollout_id,                  -- The rollout that is rewarded.
    reward.group_id,                    -- Group of rollouts.
    reward.name,                        -- Name of the reward.
    reward.call_id,                     -- Set when one action is rewarded.
    reward.choice,                      -- Choice within the call.
    reward.value,                       -- Null when it could not be computed.
    reward.final,                       -- Whether no later value is expected.
    reward.fallback,                    -- Whether it counts only for lack of other rewards.
    reward.source,                      -- `rest`, or the reward function with its content hash.
    reward.error,                       -- Why there is no value.
    reward.metadata,                    -- JSON with any content.
    reward.event_time                   -- When it was given.
FROM rewards AS reward
JOIN rollouts AS rollout ON rollout.rollout_id = reward.rollout_id AND (reward.attempt IS NULL OR reward.attempt = rollout.attempt)
LEFT JOIN (SELECT call_id, rollout_id, attempt, choices FROM calls SEMI JOIN (SELECT call_id FROM rewards WHERE call_id IS NOT NULL) USING (call_id)) AS call ON call.call_id = reward.call_id AND call.rollout_id = rollout.rollout_id AND call.attempt = rollout.attempt
WHERE rollout.attempt IS NOT NULL
  AND (reward.call_id IS NULL OR (call.call_id IS NOT NULL AND (call.choices = 0 OR coalesce(reward.choice, 0) < call.choices)))
QUALIFY row_number() OVER (
    PARTITION BY reward.rollout_id, reward.name, reward.call_id, reward.choice
    ORDER BY reward.fallback, reward.final DESC, reward.event_time DESC, reward.event_id DESC
) = 1 AND reward.fallback = bool_and(reward.fallback) OVER (PARTITION BY reward.rollout_id);

-- One row per version of a policy that counts, from its update.
CREATE VIEW versions AS
SELECT
    policy,                             -- The policy.
    version,                            -- `policy@epoch.step`.
    epoch,                              -- Epoch of the learner.
    step,                               -- Optimizer steps of the epoch.
    parent_version,                     -- The version it was trained from.
    event_time AS published_at,         -- When it was published.
    learner_id,                         -- Name of the learner.
    trained_actions,                    -- Actions that carried loss.
    offline_method,                     -- `sft` or `dpo`; null: online.
    artifact_uri,                       -- Where the weights are stored.
    artifact_sha256,                    -- Hex digest of the file.
    artifact_bytes,                     -- Size of the file.
    artifact_format,                    -- `full` or `lora`.
    metrics                             -- Metrics of the step, by name.
FROM updates
WHERE kind = 'update' AND counts AND version IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY version ORDER BY "offset" DESC) = 1;

-- One row per metric of each version.
CREATE VIEW version_metrics AS
SELECT
    policy,                             -- The policy.
    version,                            -- `policy@epoch.step`.
    epoch,                              -- Epoch of the learner.
    step,                               -- Optimizer steps of the epoch.
    published_at,                       -- When it was published.
    entry.key AS metric,                -- Name of the metric (docs/reference/metrics.md).
    entry.value AS value                -- Its value.
FROM (SELECT *, unnest(map_entries(metrics)) AS entry FROM versions);

-- One row per target of the route in force for each alias.
CREATE VIEW current_routes AS
SELECT
    alias,                              -- Model name that agents ask for.
    coalesce(target.policy, '') AS policy, -- The policy; empty for an upstream.
    target.version AS version,          -- Null: the newest update.
    target.upstream AS upstream,        -- Upstream that answers; null: the policy does.
    target.weight AS weight,            -- Relative share.
    target.weight / nullif(sum(target.weight) OVER (PARTITION BY alias), 0) AS share, -- Share, from 0 to 1.
    target.parameters AS parameters,    -- Sampling parameters where a request sets none.
    target.prompt AS prompt,            -- Version of the alias's prompt; null: the one in force.
    event_time AS since,                -- When the route was written.
    author,                             -- Who wrote it.
    reason                              -- For people: why.
FROM (
    SELECT *, unnest(targets) AS target
    FROM (SELECT * FROM routes QUALIFY row_number() OVER (PARTITION BY alias ORDER BY "offset" DESC) = 1)
);

-- One row per backend and policy: the last version that it reported as applied, with later failures. What it put away does not count.
CREATE VIEW serving AS
SELECT
    backend,                            -- Name of the backend.
    policy,                             -- The policy.
    arg_max(version, "offset") FILTER (outcome = 'applied') AS version, -- What it serves.
    max(event_time) FILTER (outcome = 'applied') AS since, -- Since when.
    arg_max(engine_id, "offset") AS engine_id, -- The engine's last id.
    arg_max(outcome, "offset") AS last_outcome, -- Outcome of its last report.
    arg_max(error, "offset") FILTER (outcome = 'failed') AS last_error, -- Its last error.
    max(event_time) FILTER (outcome = 'failed') AS last_failed_at -- When that was.
FROM applied
WHERE outcome <> 'retired'
GROUP BY backend, policy;

-- One row per topic: how far the index is behind.
CREATE VIEW lag AS
SELECT
    topic,                              -- Topic, without the deployment's prefix.
    sum(end_offset - next_offset)::BIGINT AS records, -- Records that are in the log and not in the index.
    max(last_record_at) AS last_record_at, -- Time of the newest record in the index.
    max(asked_at) AS asked_at           -- When the ends were last asked for.
FROM positions
GROUP BY topic;

-- One row per group with a rollout: size, spread of rewards, and what became of it.
CREATE VIEW group_summaries AS
SELECT
    rollout.group_id,                   -- Group of rollouts.
    any_value(rollout.run_id) AS run_id, -- The run.
    any_value(rollout.mode) AS mode,    -- `live`, `train` or `val`.
    any_value(rollout.alias) AS alias,  -- Model name.
    any_value(rollout.policy) AS policy, -- Trained policy.
    any_value(rollout.task) AS task,    -- JSON of the task.
    min(rollout.began_at) AS began_at,  -- Start of its first rollout.
    max(rollout.ended_at) AS ended_at,  -- End of its last rollout so far.
    count(*)::INTEGER AS rollouts,      -- Number of rollouts.
    count(*) FILTER (rollout.outcome <> 'open')::INTEGER AS ended, -- Of these, ended.
    count(rollout.failure)::INTEGER AS failed, -- Of these, with a failure.
    count(rollout.reward)::INTEGER AS scored, -- Of these, with a reward.
    avg(rollout.reward) AS mean_reward, -- Mean of their rewards: the usual baseline.
    stddev_pop(rollout.reward) AS reward_deviation, -- Standard deviation of their rewards.
    max(rollout.reward) - min(rollout.reward) AS reward_spread, -- Greatest less smallest; at most 1e-6: no signal.
    any_value(rollout.group_revision) AS group_revision -- The closing that counts; null: not closed.
FROM rollouts AS rollout
GROUP BY rollout.group_id;

-- One row per run and version: the curve of a run. Held-out scores are the rows with mode `val`.
CREATE VIEW run_versions AS
SELECT
    run_id,                             -- The run.
    mode,                               -- `live`, `train` or `val`.
    policy,                             -- Trained policy.
    version,                            -- Version of the rollout's first answer.
    try_cast(regexp_extract(version, '@(\d+)\.\d+$', 1) AS INTEGER) AS epoch, -- Epoch of that version.
    try_cast(regexp_extract(version, '\.(\d+)$', 1) AS INTEGER) AS step, -- Step of that version.
    count(*)::INTEGER AS rollouts,      -- Number of rollouts.
    count(reward)::INTEGER AS scored,   -- Of these, with a reward.
    avg(reward) AS mean_reward,         -- Mean reward.
    stddev_samp(reward) / sqrt(count(reward)) AS standard_error, -- Standard error of that mean; 1.96 of it to each side is the 95% interval.
    count(failure)::INTEGER AS failed,  -- Rollouts with a failure.
    sum(prompt_tokens)::BIGINT AS prompt_tokens, -- Prompt tokens of their calls.
    sum(completion_tokens)::BIGINT AS completion_tokens, -- Generated tokens of their calls.
    min(began_at) AS began_at,          -- Start of the first.
    max(ended_at) AS ended_at           -- End of the last.
FROM rollouts
GROUP BY run_id, mode, policy, version;

-- One row per run: what it did so far.
CREATE VIEW runs AS
SELECT
    run_id,                             -- The run.
    min(began_at) AS began_at,          -- Start of its first rollout.
    max(coalesce(ended_at, began_at)) AS last_at, -- Its last sign of life.
    count(DISTINCT group_id)::INTEGER AS groups, -- Number of groups.
    count(*)::INTEGER AS rollouts,      -- Number of rollouts.
    count(*) FILTER (outcome = 'open')::INTEGER AS open, -- Of these, open.
    count(failure)::INTEGER AS failed,  -- Of these, with a failure.
    count(reward)::INTEGER AS scored,   -- Of these, with a reward.
    avg(reward) FILTER (mode = 'train') AS mean_train_reward, -- Mean reward of mode `train`.
    avg(reward) FILTER (mode = 'val') AS mean_val_reward, -- Mean reward of mode `val`.
    sum(prompt_tokens)::BIGINT AS prompt_tokens, -- Prompt tokens of its calls.
    sum(completion_tokens)::BIGINT AS completion_tokens, -- Generated tokens of its calls.
    any_value(alias) AS alias,          -- Model name.
    any_value(policy) AS policy         -- Trained policy.
FROM rollouts
WHERE run_id IS NOT NULL
GROUP BY run_id;

-- One row per action of a successful call: what became of it, as `fulgurite ledger` counts it. The table `funnel` has its counts.
CREATE VIEW action_outcomes AS
WITH learned AS (
    SELECT call_id, choice, group_id, term, reason, version
    FROM outcomes
    WHERE source = 'learner' AND policy NOT IN (SELECT policy FROM updates WHERE elsewhere)
), filtered AS (
    SELECT outcome.call_id, outcome.choice, outcome.group_id, outcome.term, outcome.reason, outcome.version
    FROM outcomes AS outcome
    LEFT JOIN closings AS closing USING (group_id)
    WHERE outcome.source <> 'learner'
      AND (outcome.group_revision IS NULL OR closing.group_revision IS NULL OR outcome.group_revision = closing.group_revision)
), acted AS (
    SELECT
        call.*,
        unnest(range(call.choices))::INTEGER AS choice,
        call.mode = 'train' OR (call.mode = 'live' AND call.training_use IN ('live', 'quota')) AS is_counted
    FROM calls AS call
    WHERE call.outcome = 'success'
)
SELECT
    acted.call_id,                      -- The call.
    acted.choice,                       -- Choice within the call.
    acted.group_id,                     -- Group of rollouts.
    acted.rollout_id,                   -- One run of an agent on one task.
    acted.mode,                         -- `live`, `train` or `val`.
    acted.agent,                        -- Role of the agent.
    acted.alias,                        -- Model name that the agent asked for.
    acted.policy,                       -- Trained policy.
    acted.version_first AS version,     -- Version that answered.
    acted.started_at,                   -- When the call was made.
    CASE
        WHEN acted.policy IS NULL OR NOT acted.is_counted THEN 'recorded'
        WHEN learned.term IS NOT NULL THEN learned.term
        WHEN filtered.term IS NOT NULL THEN filtered.term
        WHEN dead.call_id IS NOT NULL THEN 'dead_lettered'
        ELSE 'open'
    END AS term,                        -- `trained`, `filtered`, `stale`, `amended`, `dead_lettered`, `open`, or `recorded`: no part of the ledger.
    CASE
        WHEN acted.mode = 'live' AND acted.training_use IN ('excluded', 'unknown') THEN 'left_out'
        WHEN NOT acted.is_counted THEN acted.mode
        WHEN acted.policy IS NULL THEN 'no_policy'
        WHEN learned.term IS NOT NULL THEN learned.reason
        WHEN filtered.term IS NOT NULL THEN filtered.reason
        WHEN dead.call_id IS NOT NULL THEN NULL
        WHEN episode.episode_id IS NULL THEN 'no_episode'
        WHEN closing.group_id IS NULL THEN 'group_not_closed'
        WHEN waiting.call_id IS NOT NULL THEN 'waits_for_learner'
        ELSE 'group_to_be_closed_anew'
    END AS reason,                      -- Reason of the filter; what an open action waits for; why it is only recorded: `live`, `val`, `left_out`, `no_policy`.
    learned.version AS trained_version, -- Version that was trained on it, or after which its group was settled.
    waiting.credit                      -- Return under the credit rule; null for an action without loss.
FROM acted
LEFT JOIN learned ON learned.group_id = acted.group_id AND learned.call_id = acted.call_id AND learned.choice = acted.choice
LEFT JOIN filtered ON filtered.group_id = acted.group_id AND filtered.call_id = acted.call_id AND filtered.choice = acted.choice
LEFT JOIN (SELECT DISTINCT call_id, choice FROM dead_actions) AS dead ON dead.call_id = acted.call_id AND dead.choice = acted.choice
LEFT JOIN (SELECT group_id, call_id, choice, credit FROM actions JOIN closings USING (group_id, group_revision) WHERE loss) AS waiting ON waiting.group_id = acted.group_id AND waiting.call_id = acted.call_id AND waiting.choice = acted.choice
LEFT JOIN episodes AS episode ON episode.rollout_id = acted.rollout_id AND episode.attempt = acted.attempt
LEFT JOIN closings AS closing ON closing.group_id = acted.group_id;

-- One row per action that carries loss, with its advantage under a plain group baseline.
CREATE VIEW action_advantages AS
SELECT
    action.trajectory_id,               -- The trajectory.
    action.rollout_id,                  -- One run of an agent on one task.
    action.group_id,                    -- Group of rollouts.
    action.call_id,                     -- The call.
    action.choice,                      -- Choice within the call.
    action.turn,                        -- Actions before it on its path.
    action.agent,                       -- Role of the agent.
    action.version,                     -- Version that generated it.
    action.reward,                      -- Reward of the action.
    action.credit,                      -- Return under the credit rule.
    action.mask,                        -- Why it must not be trained, if so.
    action.credit - summary.mean_reward AS advantage -- Credit less the group's mean reward, not divided by the deviation; null for rules other than `identical`, which the learner compares otherwise.
FROM actions AS action
JOIN trajectories AS trajectory USING (trajectory_id)
JOIN closings AS closing ON closing.group_id = action.group_id AND closing.group_revision = action.group_revision
LEFT JOIN group_summaries AS summary ON summary.group_id = action.group_id AND trajectory.credit_rule = 'identical'
WHERE action.loss;

-- One row per run, alias, role and the role that started it.
CREATE VIEW agents AS
SELECT
    rollout.run_id,                     -- The run; null for undeclared traffic.
    call.alias,                         -- Model name that it asks for.
    call.agent,                         -- Role; empty if it has none.
    call.parent_agent,                  -- The agent that started it.
    count(*)::INTEGER AS calls,         -- Number of calls.
    count(DISTINCT call.rollout_id)::INTEGER AS rollouts, -- Number of rollouts with a call of it.
    count(*) FILTER (call.outcome <> 'success')::INTEGER AS failed_calls, -- Calls without success.
    sum(call.prompt_tokens)::BIGINT AS prompt_tokens, -- Prompt tokens.
    sum(call.completion_tokens)::BIGINT AS completion_tokens, -- Generated tokens.
    avg(call.milliseconds) AS mean_milliseconds, -- Mean time of a call.
    max(call.started_at) AS last_at     -- Its last call.
FROM calls AS call
LEFT JOIN rollouts AS rollout USING (rollout_id)
GROUP BY rollout.run_id, call.alias, call.agent, call.parent_agent;

-- One row per day (UTC), run, alias and backend: tokens, and money where the price file has a price.
CREATE VIEW costs AS
SELECT
    date_trunc('day', call.started_at) AS day, -- Day.
    rollout.run_id,                     -- The run; null for undeclared traffic.
    call.alias,                         -- Model name that the agent asked for.
    call.backend,                       -- Name of the upstream that answered.
    count(*)::INTEGER AS calls,         -- Number of calls.
    sum(call.prompt_tokens)::BIGINT AS prompt_tokens, -- Prompt tokens that are known.
    sum(call.cached_tokens)::BIGINT AS cached_tokens, -- Of these, from a prefix cache, as far as known.
    sum(call.completion_tokens)::BIGINT AS completion_tokens, -- Generated tokens that are known.
    sum(
        (coalesce(call.prompt_tokens, 0) - coalesce(call.cached_tokens, 0)) * coalesce(own.input, theirs.input)
        + coalesce(call.cached_tokens, 0) * coalesce(own.cached_input, theirs.cached_input)
        + coalesce(call.completion_tokens, 0) * coalesce(own.output, theirs.output)
    ) / 1e6 AS money,                   -- Price of these tokens; null without a price. Tokens whose caching is unknown cost the full price.
    any_value(coalesce(own.currency, theirs.currency)) AS currency -- Its currency.
FROM calls AS call
LEFT JOIN rollouts AS rollout USING (rollout_id)
LEFT JOIN prices AS own ON own.name = call.alias
LEFT JOIN prices AS theirs ON theirs.name = call.backend
GROUP BY 1, rollout.run_id, call.alias, call.backend;

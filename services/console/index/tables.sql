-- The tables of the index. A table's first comment says what a row is; a column's comment what it
-- holds. docs/reference/tables.md is generated from this file. Times are UTC, without a time zone.
-- Names are those of the events (docs/reference/events.md). `partition` and `offset` are the place
-- of the record that the row was made of.

-- One row per call of a model, from `llm.calls`.
CREATE TABLE calls (
    call_id VARCHAR NOT NULL,           -- Completion id, as in the reply; names rollout and group.
    event_id VARCHAR NOT NULL,          -- Id of the event.
    group_id VARCHAR NOT NULL,          -- Group of rollouts of one task sample.
    rollout_id VARCHAR NOT NULL,        -- One run of an agent on one task.
    attempt INTEGER NOT NULL,           -- Try at the rollout, from 0.
    mode VARCHAR NOT NULL,              -- `live`, `train` or `val`.
    training_use VARCHAR NOT NULL,      -- What training may do with its episode.
    agent VARCHAR NOT NULL,             -- Role of the agent; empty if it has none.
    parent_agent VARCHAR,               -- The agent that started this one.
    identity VARCHAR NOT NULL,          -- How the rollout was found.
    api VARCHAR NOT NULL,               -- `chat.completions`, `completions`, ...
    alias VARCHAR NOT NULL,             -- Model name that the agent asked for.
    policy VARCHAR,                     -- Trained policy behind the alias; null for other upstreams.
    backend VARCHAR NOT NULL,           -- Name of the upstream that answered.
    version_first VARCHAR,              -- Version at the first token, `policy@epoch.step`.
    version_last VARCHAR,               -- Version at the last token.
    variant VARCHAR,                    -- What answered, as a route names it.
    propensity DOUBLE,                  -- Share with which the rollout was given this variant.
    prompt_version VARCHAR,             -- Prompt version it was served with, `prompt@N`; null: as sent.
    stream BOOLEAN NOT NULL,            -- Whether the client asked for a stream.
    outcome VARCHAR NOT NULL,           -- `success`, `upstream_error`, `upstream_timeout`, `client_disconnected` or `refused`.
    status_code INTEGER,                -- HTTP status towards the client.
    failure VARCHAR,                    -- Failure kind, if anything went wrong.
    error VARCHAR,                      -- Error text of the upstream or the gateway, shortened.
    prompt_tokens BIGINT,               -- Tokens of the full prompt; null if unknown.
    cached_tokens BIGINT,               -- Of these, from a prefix cache; null if the upstream does not say.
    completion_tokens BIGINT,           -- Generated tokens of all choices; null if unknown.
    choices INTEGER NOT NULL,           -- Number of generated choices.
    finish_reason VARCHAR,              -- Of the first choice.
    question VARCHAR,                   -- Last user message of the request, shortened; null where the request is stored as a delta, which a rollout's first call is not.
    answer VARCHAR,                     -- The first choice as text, tool calls included, shortened.
    tools_called VARCHAR[] NOT NULL,    -- Names of the tools that the first choice calls, in order.
    mean_logprob DOUBLE,                -- Mean log-probability of the first choice's tokens.
    temperature DOUBLE NOT NULL,        -- Effective sampling temperature.
    started_at TIMESTAMP NOT NULL,      -- When the gateway received the request.
    first_token_at TIMESTAMP,           -- First byte of the answer.
    finished_at TIMESTAMP NOT NULL,     -- Answer complete or given up.
    milliseconds BIGINT NOT NULL,       -- From `started_at` to `finished_at`.
    traceparent VARCHAR,                -- W3C trace context of the request.
    partition SMALLINT NOT NULL,        -- Partition of `llm.calls`.
    "offset" BIGINT NOT NULL            -- Offset there: `payloads` has the record's bytes.
);

-- One row per status of a rollout or group, heartbeats left out, from `agent.status`.
CREATE TABLE statuses (
    event_id VARCHAR NOT NULL,          -- Id of the event.
    event_time TIMESTAMP NOT NULL,      -- When it happened.
    group_id VARCHAR NOT NULL,          -- Group of rollouts.
    rollout_id VARCHAR,                 -- Null for events of the whole group.
    attempt INTEGER NOT NULL,           -- Try at the rollout, from 0.
    mode VARCHAR NOT NULL,              -- `live`, `train` or `val`.
    kind VARCHAR NOT NULL,              -- `declared`, `started`, `finished`, `failed` or `timed_out`.
    source VARCHAR NOT NULL,            -- `gateway`, `runner`, `agent` or `aggregator`.
    failure VARCHAR,                    -- Failure kind, with `failed` and `timed_out`.
    message VARCHAR,                    -- Free text for people, shortened.
    exit_code INTEGER,                  -- Exit code of the agent's process.
    will_retry BOOLEAN NOT NULL,        -- Whether another attempt follows.
    partition SMALLINT NOT NULL,        -- Partition of `agent.status`.
    "offset" BIGINT NOT NULL            -- Offset there.
);

-- One row per declared group, from the `declared` events of `agent.status`.
CREATE TABLE groups (
    group_id VARCHAR NOT NULL,          -- Group of rollouts of one task sample.
    declared_at TIMESTAMP NOT NULL,     -- When it was declared.
    run_id VARCHAR,                     -- The run it belongs to.
    mode VARCHAR NOT NULL,              -- `live`, `train` or `val`.
    alias VARCHAR NOT NULL,             -- Model name that its agents ask for.
    policy VARCHAR,                     -- Trained policy behind the alias.
    task VARCHAR NOT NULL,              -- JSON of the task.
    rollout_ids VARCHAR[] NOT NULL,     -- Its rollouts, by index.
    deadline TIMESTAMP NOT NULL,        -- When it is closed with what it has.
    expected_rewards VARCHAR[] NOT NULL, -- Names of the rewards that each rollout waits for.
    reward_weights MAP(VARCHAR, DOUBLE) NOT NULL, -- Weights of named rewards; a missing name weighs 1.
    credit_rule VARCHAR NOT NULL,       -- Rule that spreads rewards over actions.
    max_attempts INTEGER NOT NULL,      -- Tries per rollout.
    partition SMALLINT NOT NULL,        -- Partition of `agent.status`, and of every topic keyed by group.
    "offset" BIGINT NOT NULL            -- Offset there.
);

-- One row per attempt that has ended: the newest revision of its episode, from `episodes`.
CREATE TABLE episodes (
    episode_id VARCHAR NOT NULL,        -- `rollout/attempt`.
    revision VARCHAR NOT NULL,          -- Hash of its inputs.
    revisions INTEGER NOT NULL,         -- Number of revisions that the log has had, this one included.
    group_id VARCHAR NOT NULL,          -- Group of rollouts.
    rollout_id VARCHAR NOT NULL,        -- One run of an agent on one task.
    attempt INTEGER NOT NULL,           -- Try at the rollout, from 0.
    mode VARCHAR NOT NULL,              -- `live`, `train` or `val`.
    outcome VARCHAR NOT NULL,           -- `finished`, `failed` or `timed_out`.
    failure VARCHAR,                    -- Why it failed.
    message VARCHAR,                    -- Free text of the closing status, shortened.
    will_retry BOOLEAN NOT NULL,        -- Whether another attempt follows.
    inputs INTEGER NOT NULL,            -- Number of input events; of two revisions the one with more is newer.
    calls INTEGER NOT NULL,             -- Number of its calls.
    started_at TIMESTAMP NOT NULL,      -- First input.
    ended_at TIMESTAMP NOT NULL,        -- Closing input.
    partition SMALLINT NOT NULL,        -- Partition of `episodes`.
    "offset" BIGINT NOT NULL            -- Offset there.
);

-- One row per reward event, from `agent.rewards`. `counted_rewards` has those that count.
CREATE TABLE rewards (
    event_id VARCHAR NOT NULL,          -- Id of the event.
    event_time TIMESTAMP NOT NULL,      -- When it was given.
    group_id VARCHAR NOT NULL,          -- Group of rollouts.
    rollout_id VARCHAR NOT NULL,        -- The rollout that is rewarded.
    attempt INTEGER,                    -- The attempt that is rewarded; null: the final one.
    call_id VARCHAR,                    -- Set when one action is rewarded.
    choice INTEGER,                     -- Choice within the call.
    name VARCHAR NOT NULL,              -- Name of the reward.
    value DOUBLE,                       -- Null when it could not be computed.
    final BOOLEAN NOT NULL,             -- Whether no later value of this name is expected.
    fallback BOOLEAN NOT NULL,          -- Whether it counts only for a rollout that has no other reward.
    source VARCHAR NOT NULL,            -- `rest`, or the reward function with its content hash.
    error VARCHAR,                      -- Why a reward function gave no value, shortened.
    metadata VARCHAR,                   -- JSON with any content, such as a judge's words; shortened.
    partition SMALLINT NOT NULL,        -- Partition of `agent.rewards`.
    "offset" BIGINT NOT NULL            -- Offset there.
);

-- One row per closing that counts: the newest `GroupClosed` of each group, from `trajectories`.
CREATE TABLE closings (
    group_id VARCHAR NOT NULL,          -- Group of rollouts.
    group_revision VARCHAR NOT NULL,    -- Its trajectories, tombstones and ledger entries bear it.
    supersedes VARCHAR,                 -- Revision before it; null for the group's first.
    closings INTEGER NOT NULL,          -- Number of closings that the log has had, this one included.
    mode VARCHAR NOT NULL,              -- `live`, `train` or `val`.
    closed_at TIMESTAMP NOT NULL,       -- Record time of its `GroupClosed`.
    episodes INTEGER NOT NULL,          -- Number of episodes that it was made of.
    rewards INTEGER NOT NULL,           -- Number of rewards that were known.
    rows INTEGER NOT NULL,              -- Number of its trajectories and tombstones.
    entries INTEGER NOT NULL,           -- Number of its ledger entries.
    partition SMALLINT NOT NULL,        -- Partition of `trajectories`.
    "offset" BIGINT NOT NULL            -- Offset of its `GroupClosed`.
);

-- One row per trajectory of the closings that count, and of those being written, from `trajectories`.
CREATE TABLE trajectories (
    trajectory_id VARCHAR NOT NULL,     -- Derived from group revision, episode revision and row.
    group_id VARCHAR NOT NULL,          -- Group of rollouts.
    group_revision VARCHAR NOT NULL,    -- The closing it belongs to.
    rollout_id VARCHAR NOT NULL,        -- One run of an agent on one task.
    attempt INTEGER NOT NULL,           -- Try at the rollout, from 0.
    mode VARCHAR NOT NULL,              -- `live`, `train` or `val`.
    policy VARCHAR,                     -- Trained policy.
    episode_revision VARCHAR NOT NULL,  -- Revision of the episode it was built from.
    row_index INTEGER NOT NULL,         -- Row within the episode, from 0.
    rows_in_episode INTEGER NOT NULL,   -- Rows of this episode.
    group_size INTEGER NOT NULL,        -- Declared rollouts of the group.
    group_members_scored INTEGER NOT NULL, -- Episodes with a reward.
    tokens INTEGER NOT NULL,            -- Length of the token stream.
    episode_reward DOUBLE,              -- Combined reward of the episode.
    rewards MAP(VARCHAR, DOUBLE) NOT NULL, -- Rewards by name.
    credit_rule VARCHAR NOT NULL,       -- Rule that made `credit`.
    break_kind VARCHAR,                 -- Why this row does not extend the one before.
    failure VARCHAR,                    -- Failure of the episode.
    event_time TIMESTAMP NOT NULL,      -- Time of the group's last episode.
    partition SMALLINT NOT NULL,        -- Partition of `trajectories`.
    "offset" BIGINT NOT NULL            -- Offset there.
);

-- One row per action of these trajectories. An action carries loss in at most one of them.
CREATE TABLE actions (
    trajectory_id VARCHAR NOT NULL,     -- The trajectory.
    group_id VARCHAR NOT NULL,          -- Group of rollouts.
    group_revision VARCHAR NOT NULL,    -- The closing it belongs to.
    rollout_id VARCHAR NOT NULL,        -- One run of an agent on one task.
    call_id VARCHAR NOT NULL,           -- The call.
    choice INTEGER NOT NULL,            -- Choice within the call.
    start_token INTEGER NOT NULL,       -- Its first token in the trajectory's stream (`start`).
    end_token INTEGER NOT NULL,         -- One past its last token (`end`).
    reward DOUBLE NOT NULL,             -- Reward of the action, never normalised.
    credit DOUBLE NOT NULL,             -- Return under the named rule, before any baseline.
    loss BOOLEAN NOT NULL,              -- Whether it carries loss in this trajectory.
    mask VARCHAR,                       -- Why it must not be trained, if so.
    version VARCHAR,                    -- Version that generated its first token.
    agent VARCHAR NOT NULL,             -- Role of the agent.
    turn INTEGER,                       -- Actions before it on its path.
    partition SMALLINT NOT NULL,        -- Partition of `trajectories`.
    "offset" BIGINT NOT NULL            -- Offset of the trajectory there.
);

-- One row per member of a closed group that has no trajectory, from `trajectories`.
CREATE TABLE tombstones (
    event_id VARCHAR NOT NULL,          -- Id of the event.
    group_id VARCHAR NOT NULL,          -- Group of rollouts.
    group_revision VARCHAR NOT NULL,    -- The closing it belongs to.
    rollout_id VARCHAR NOT NULL,        -- One run of an agent on one task.
    attempt INTEGER NOT NULL,           -- Try at the rollout, from 0.
    mode VARCHAR NOT NULL,              -- `live`, `train` or `val`.
    policy VARCHAR,                     -- Trained policy.
    group_size INTEGER NOT NULL,        -- Declared rollouts of the group.
    group_members_scored INTEGER NOT NULL, -- Episodes with a reward.
    reason VARCHAR NOT NULL,            -- Why it has no trajectory.
    episode_reward DOUBLE,              -- Its reward, if it has one: it stays in the baseline.
    failure VARCHAR,                    -- Failure of the episode.
    event_time TIMESTAMP NOT NULL,      -- Time of the group's last episode.
    partition SMALLINT NOT NULL,        -- Partition of `trajectories`.
    "offset" BIGINT NOT NULL            -- Offset there.
);

-- One row per rollout, declared or seen: what the tables above say of it, kept up to date.
CREATE TABLE rollouts (
    rollout_id VARCHAR NOT NULL,        -- One run of an agent on one task.
    group_id VARCHAR NOT NULL,          -- Group of rollouts.
    run_id VARCHAR,                     -- The run; null for undeclared traffic.
    mode VARCHAR NOT NULL,              -- `live`, `train` or `val`.
    alias VARCHAR,                      -- Model name: as declared, else of its first call.
    policy VARCHAR,                     -- Trained policy: as declared, else of its first call.
    task VARCHAR,                       -- JSON of the task; null for undeclared traffic.
    began_at TIMESTAMP NOT NULL,        -- First status or call of its own, else the declaration.
    ended_at TIMESTAMP,                 -- End of its final attempt; null while it is open.
    attempts INTEGER NOT NULL,          -- Number of attempts that were begun.
    attempt INTEGER,                    -- Its final attempt; null while it is open.
    outcome VARCHAR NOT NULL,           -- `open`, or the final attempt's `finished`, `failed` or `timed_out`.
    failure VARCHAR,                    -- Failure of its final attempt.
    message VARCHAR,                    -- Free text of the closing status, shortened.
    calls INTEGER NOT NULL,             -- Number of calls, failed ones included.
    failed_calls INTEGER NOT NULL,      -- Number of calls without success.
    prompt_tokens BIGINT NOT NULL,      -- Sum over its calls.
    completion_tokens BIGINT NOT NULL,  -- Sum over its calls.
    agents VARCHAR[] NOT NULL,          -- Roles of its calls, sorted; the empty role is left out.
    versions VARCHAR[] NOT NULL,        -- Versions that answered, in order of first use.
    version VARCHAR,                    -- The first of its final attempt, of the declared policy if that answered.
    variant VARCHAR,                    -- What answered its first call, as a route names it.
    prompt_version VARCHAR,             -- Prompt version of its first call.
    question VARCHAR,                   -- Last user message of its first call, shortened.
    answer VARCHAR,                     -- Text of its last successful answer, shortened.
    reward DOUBLE,                      -- Weighted sum of the rewards that count; null if it has none or is open.
    reward_reason VARCHAR,              -- Why an ended rollout has no reward: `no_reward` or `reward_failed`.
    rewards MAP(VARCHAR, DOUBLE) NOT NULL, -- Rewards that count, by name.
    group_revision VARCHAR,             -- The closing that has it; null: not closed yet, or mode `val`.
    closed_reward DOUBLE,               -- Its reward in that closing, failure rules applied.
    tombstone VARCHAR,                  -- Why that closing has no trajectory of it.
    partition SMALLINT NOT NULL,        -- Partition of every topic keyed by group.
);

-- One row per rollout, role, version, term and reason: its actions, as `action_outcomes` has them, kept up to date. Sum `actions` for the funnel.
CREATE TABLE funnel (
    group_id VARCHAR NOT NULL,          -- Group of rollouts.
    rollout_id VARCHAR NOT NULL,        -- One run of an agent on one task.
    run_id VARCHAR,                     -- The run; null for undeclared traffic.
    mode VARCHAR NOT NULL,              -- `live`, `train` or `val`.
    agent VARCHAR NOT NULL,             -- Role of the agent.
    alias VARCHAR NOT NULL,             -- Model name that the agent asked for.
    policy VARCHAR,                     -- Trained policy.
    version VARCHAR,                    -- Version that answered.
    term VARCHAR NOT NULL,              -- `trained`, `filtered`, `stale`, `amended`, `dead_lettered`, `open`, or `recorded`: no part of the ledger.
    reason VARCHAR,                     -- Why, as in `action_outcomes`.
    actions INTEGER NOT NULL,           -- Number of actions.
    credited INTEGER NOT NULL,          -- Of these, with a credit: those that carry loss.
    credit DOUBLE                       -- Sum of their credits; null without any.
);

-- One row per action and entry of `training.ledger` that may count: a learner's last one, and one per closing. `action_outcomes` has the one that counts.
CREATE TABLE outcomes (
    call_id VARCHAR NOT NULL,           -- The call.
    choice INTEGER NOT NULL,            -- Choice within the call.
    group_id VARCHAR NOT NULL,          -- Group of the action.
    group_revision VARCHAR,             -- The closing that the entry belongs to.
    policy VARCHAR NOT NULL,            -- The policy.
    term VARCHAR NOT NULL,              -- `trained`, `filtered`, `stale` or `amended`.
    reason VARCHAR,                     -- Set with `filtered`: why.
    version VARCHAR,                    -- Version trained on it, or after which its group was settled.
    source VARCHAR NOT NULL,            -- `aggregator`, `rewarder` or `learner`.
    event_time TIMESTAMP NOT NULL,      -- When the entry was written.
    partition SMALLINT NOT NULL,        -- Partition of `training.ledger`.
    "offset" BIGINT NOT NULL            -- Offset there.
);

-- One row per entry of `training.ledger`.
CREATE TABLE ledger (
    event_id VARCHAR NOT NULL,          -- Id of the event.
    event_time TIMESTAMP NOT NULL,      -- When it was written.
    policy VARCHAR NOT NULL,            -- The policy.
    group_id VARCHAR NOT NULL,          -- Group of the actions.
    group_revision VARCHAR,             -- The closing they belong to.
    term VARCHAR NOT NULL,              -- `trained`, `filtered`, `stale` or `amended`.
    reason VARCHAR,                     -- Set with `filtered`: why.
    version VARCHAR,                    -- Version trained on them, or after which the group was settled.
    source VARCHAR NOT NULL,            -- `aggregator`, `rewarder`, `learner`, or `offline`.
    actions INTEGER NOT NULL,           -- Number of actions.
    partition SMALLINT NOT NULL,        -- Partition of `training.ledger`.
    "offset" BIGINT NOT NULL            -- Offset there.
);

-- One row per claimed epoch and per version, from `policy.updates`.
CREATE TABLE updates (
    event_id VARCHAR NOT NULL,          -- Id of the event.
    event_time TIMESTAMP NOT NULL,      -- When it was written.
    policy VARCHAR NOT NULL,            -- The policy.
    kind VARCHAR NOT NULL,              -- `claim` or `update`.
    counts BOOLEAN NOT NULL,            -- False for what a superseded learner published.
    elsewhere BOOLEAN NOT NULL,         -- Whether its learner reads a replayed topic, so that the ledger leaves it out.
    epoch INTEGER NOT NULL,             -- Epoch of the learner that writes.
    step INTEGER NOT NULL,              -- Optimizer steps of the epoch.
    version VARCHAR,                    -- `policy@epoch.step`, with updates.
    parent_version VARCHAR,             -- The version it was trained from.
    learner_id VARCHAR NOT NULL,        -- Name of the learner.
    artifact_uri VARCHAR,               -- Where the weights are stored.
    artifact_sha256 VARCHAR,            -- Hex digest of the file.
    artifact_bytes BIGINT,              -- Size of the file.
    artifact_format VARCHAR,            -- `full` or `lora`.
    topic VARCHAR,                      -- Topic it was trained on.
    trained_actions BIGINT NOT NULL,    -- Actions that carried loss.
    metrics MAP(VARCHAR, DOUBLE) NOT NULL, -- Metrics of the step (docs/reference/metrics.md).
    config VARCHAR,                     -- JSON of the learner's settings, with claims.
    offline_method VARCHAR,             -- `sft` or `dpo`; null: online.
    "offset" BIGINT NOT NULL            -- Offset in `policy.updates`, which has one partition.
);

-- One row per route, from `policy.routes`.
CREATE TABLE routes (
    event_id VARCHAR NOT NULL,          -- Id of the event.
    event_time TIMESTAMP NOT NULL,      -- When it was written.
    alias VARCHAR NOT NULL,             -- Model name that agents ask for.
    targets STRUCT(policy VARCHAR, version VARCHAR, upstream VARCHAR, weight DOUBLE, parameters MAP(VARCHAR, DOUBLE), cell_weights MAP(VARCHAR, DOUBLE), prompt VARCHAR)[] NOT NULL, -- Targets, in the order of the event.
    reason VARCHAR NOT NULL,            -- For people: promotion, canary, rollback ...
    author VARCHAR NOT NULL,            -- Who wrote it.
    selection VARCHAR,                  -- Event id of the selector's decision that it applies; null: no selector wrote it.
    "offset" BIGINT NOT NULL            -- Offset in `policy.routes`, which has one partition.
);

-- One row per claim, decision on shares and verdict of a selector, from `selection.decisions`.
CREATE TABLE selections (
    event_id VARCHAR NOT NULL,          -- Id of the event.
    event_time TIMESTAMP NOT NULL,      -- When it was decided.
    alias VARCHAR NOT NULL,             -- Model name that agents ask for.
    kind VARCHAR NOT NULL,              -- `claim`, `shares` or `verdict`.
    mode VARCHAR NOT NULL,              -- `shadow`, `proposal` or `automatic`.
    epoch INTEGER NOT NULL,             -- Epoch of the selector.
    selector_id VARCHAR NOT NULL,       -- Name of the selector.
    targets VARCHAR NOT NULL,           -- JSON list of the variants with their shares.
    variants VARCHAR NOT NULL,          -- JSON list of what the log says of each variant.
    differences VARCHAR NOT NULL,       -- JSON list: the best variant against each other one.
    winner VARCHAR,                     -- Of a verdict: the best variant.
    reason VARCHAR NOT NULL,            -- For people: why.
    "offset" BIGINT NOT NULL            -- Offset in `selection.decisions`, which has one partition.
);

-- One row per report of a backend, from `policy.applied`.
CREATE TABLE applied (
    event_id VARCHAR NOT NULL,          -- Id of the event.
    event_time TIMESTAMP NOT NULL,      -- When it was reported.
    policy VARCHAR NOT NULL,            -- The policy.
    backend VARCHAR NOT NULL,           -- Name of the backend.
    engine_id VARCHAR NOT NULL,         -- Changes when the engine restarts.
    version VARCHAR NOT NULL,           -- The version this is about.
    previous VARCHAR,                   -- What was served before.
    outcome VARCHAR NOT NULL,           -- `applied`, `failed` or `retired`.
    error VARCHAR,                      -- Why it failed, shortened.
    probe_error DOUBLE,                 -- Largest absolute difference of the probe's log-probabilities.
    seconds DOUBLE NOT NULL,            -- Seconds that it took.
    "offset" BIGINT NOT NULL            -- Offset in `policy.applied`, which has one partition.
);

-- One row per prompt version or rollback, from `prompt.updates`.
CREATE TABLE prompts (
    event_id VARCHAR NOT NULL,          -- Id of the event.
    event_time TIMESTAMP NOT NULL,      -- When it was written.
    alias VARCHAR NOT NULL,             -- Model name that agents ask for.
    role VARCHAR,                       -- Role whose calls it is for; null: every role without its own.
    kind VARCHAR NOT NULL,              -- `set`, `rollback`, `candidate`, `refused`, `proposed` or `promoted`.
    version VARCHAR,                    -- `prompt@N`; of a rollback the version it returns to.
    parent VARCHAR,                     -- The version in force before.
    system VARCHAR,                     -- Replaces the system prompt.
    prefix VARCHAR,                     -- Put before the system prompt.
    sections MAP(VARCHAR, VARCHAR) NOT NULL, -- Name to what stands in that section.
    demonstrations VARCHAR NOT NULL,    -- JSON list of the messages inserted after the system prompt.
    tools MAP(VARCHAR, VARCHAR) NOT NULL, -- Name of a tool to its description.
    reason VARCHAR NOT NULL,            -- For people: why.
    author VARCHAR NOT NULL,            -- Who wrote it.
    tuning VARCHAR,                     -- Id of the tuning that wrote it; null: a person did.
    "offset" BIGINT NOT NULL            -- Offset in `prompt.updates`, which has one partition.
);

-- One row per tuning of a prompt that began, from `prompt.updates`.
CREATE TABLE prompt_tunings (
    event_id VARCHAR NOT NULL,          -- Id of the event.
    event_time TIMESTAMP NOT NULL,      -- When it began.
    alias VARCHAR NOT NULL,             -- Model name that agents ask for.
    role VARCHAR,                       -- Role whose prompt is tuned; null: every role without its own.
    tuning VARCHAR NOT NULL,            -- Id of the tuning.
    method VARCHAR NOT NULL,            -- `demonstrations` or `gepa`.
    baseline VARCHAR,                   -- The version that candidates are compared with; null: what the agent sends.
    train_tasks INTEGER NOT NULL,       -- Number of training tasks.
    validation_tasks INTEGER NOT NULL,  -- Number of validation tasks.
    author VARCHAR NOT NULL,            -- Who started it.
    "offset" BIGINT NOT NULL            -- Offset in `prompt.updates`.
);

-- One row per prompt version and task of a tuning, from `prompt.updates`.
CREATE TABLE prompt_scores (
    event_id VARCHAR NOT NULL,          -- Id of the event.
    event_time TIMESTAMP NOT NULL,      -- When it was known.
    alias VARCHAR NOT NULL,             -- Model name that agents ask for.
    tuning VARCHAR NOT NULL,            -- Id of the tuning.
    version VARCHAR,                    -- Version that served the rollouts; null: what the agent sends.
    stage VARCHAR NOT NULL,             -- `training`, `validation` or `comparison`.
    task VARCHAR NOT NULL,              -- Hash of the task.
    group_id VARCHAR NOT NULL,          -- Group of the rollouts.
    rewards DOUBLE[] NOT NULL,          -- Rewards of the rollouts that have one.
    unscored INTEGER NOT NULL,          -- Number of rollouts without a reward.
    calls INTEGER NOT NULL,             -- Number of their calls.
    prompt_tokens BIGINT NOT NULL,      -- Tokens of their prompts, as far as they are known.
    completion_tokens BIGINT NOT NULL,  -- Tokens that were generated, as far as they are known.
    money DOUBLE,                       -- What they cost by the price file; null without one.
    "offset" BIGINT NOT NULL            -- Offset in `prompt.updates`.
);

-- One row per event that could not be processed, from `dead.letters`.
CREATE TABLE dead_letters (
    event_id VARCHAR NOT NULL,          -- Id of the event.
    event_time TIMESTAMP NOT NULL,      -- When it was given up.
    stage VARCHAR NOT NULL,             -- Service and step that gave up.
    error_type VARCHAR NOT NULL,        -- Name of the error.
    error VARCHAR NOT NULL,             -- What was wrong, shortened.
    topic VARCHAR NOT NULL,             -- Topic of the event, without the deployment's prefix.
    source_partition SMALLINT NOT NULL, -- Its partition there.
    source_offset BIGINT NOT NULL,      -- Its offset there.
    key VARCHAR,                        -- Its key.
    bytes BIGINT,                       -- Size of its value; null if the value was too large to keep.
    actions INTEGER NOT NULL,           -- Number of actions lost with it.
    partition SMALLINT NOT NULL,        -- Partition of `dead.letters`.
    "offset" BIGINT NOT NULL            -- Offset there.
);

-- One row per action that was lost with a dead letter.
CREATE TABLE dead_actions (
    call_id VARCHAR NOT NULL,           -- The call.
    choice INTEGER NOT NULL,            -- Choice within the call.
    event_id VARCHAR NOT NULL           -- The dead letter.
);

-- One row per block of records as they are in the log, compressed (zstd).
CREATE TABLE payloads (
    topic VARCHAR NOT NULL,             -- `llm.calls` or `dead.letters`.
    partition SMALLINT NOT NULL,        -- Its partition.
    first_offset BIGINT NOT NULL,       -- Offset of the block's first record.
    last_offset BIGINT NOT NULL,        -- Offset of the block's last record.
    written_at TIMESTAMP NOT NULL,      -- Record time of the block's last record.
    data BLOB NOT NULL                  -- Read it with `services.console.index.payloads`.
);

-- One row per partition of each topic: how far the index has read it.
CREATE TABLE positions (
    topic VARCHAR NOT NULL,             -- Topic, without the deployment's prefix.
    partition SMALLINT NOT NULL,        -- Its partition.
    topic_id VARCHAR,                   -- Kafka's id of the topic, which another topic of its name does not have; null: read from an archive.
    next_offset BIGINT NOT NULL,        -- Every record below it is in the index, or was there.
    end_offset BIGINT NOT NULL,         -- End of the partition when it was last asked for.
    last_record_at TIMESTAMP,           -- Time of the last record that was read.
    asked_at TIMESTAMP                  -- When the end was last asked for.
);

-- One row per range of the log that the index could not have: retention removed it before it was read.
CREATE TABLE gaps (
    topic VARCHAR NOT NULL,             -- Topic, without the deployment's prefix.
    partition SMALLINT NOT NULL,        -- Its partition.
    from_offset BIGINT NOT NULL,        -- First missing offset.
    to_offset BIGINT NOT NULL,          -- First offset that was there again.
    found_at TIMESTAMP NOT NULL         -- When it was noticed.
);

-- One row per record that the index could not decode.
CREATE TABLE unreadable (
    topic VARCHAR NOT NULL,             -- Topic, without the deployment's prefix.
    partition SMALLINT NOT NULL,        -- Its partition.
    "offset" BIGINT NOT NULL,           -- Its offset.
    written_at TIMESTAMP NOT NULL,      -- Its record time.
    error VARCHAR NOT NULL              -- What was wrong, shortened.
);

-- One row per price of tokens, from the price file (FULGURITE_CONSOLE_PRICES).
CREATE TABLE prices (
    name VARCHAR NOT NULL,              -- Alias or backend; an alias goes before a backend.
    currency VARCHAR NOT NULL,          -- Currency of the prices.
    input DOUBLE NOT NULL,              -- Price of a million prompt tokens.
    cached_input DOUBLE NOT NULL,       -- Price of a million prompt tokens from a prefix cache.
    output DOUBLE NOT NULL              -- Price of a million generated tokens.
);

-- One row: what this file is.
CREATE TABLE about (
    layout INTEGER NOT NULL,            -- Version of these tables; another one is rebuilt from the log.
    topic_prefix VARCHAR NOT NULL,      -- Prefix of the deployment's topics.
    created_at TIMESTAMP NOT NULL       -- When the file was made.
);

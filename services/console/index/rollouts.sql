-- Makes the rows of `rollouts` of the groups in `touched`, which has one column: group_id. `calls`,
-- `rewards` and `rollouts` stand for the rows of these groups, also within the view
-- `counted_rewards`, whose text is put in its place.
WITH calls AS (
    SELECT * FROM main.calls SEMI JOIN touched USING (group_id)
), status AS (
    SELECT * FROM statuses SEMI JOIN touched USING (group_id) WHERE rollout_id IS NOT NULL
), episode AS (
    SELECT * FROM episodes SEMI JOIN touched USING (group_id)
), rewards AS (
    SELECT * FROM main.rewards SEMI JOIN touched USING (group_id)
), declared AS (
    SELECT * FROM groups SEMI JOIN touched USING (group_id)
), closing AS (
    SELECT * FROM closings SEMI JOIN touched USING (group_id)
), member AS (
    SELECT unnest(rollout_ids) AS rollout_id, group_id, partition FROM declared
    UNION
    SELECT rollout_id, group_id, partition FROM calls
    UNION
    SELECT rollout_id, group_id, partition FROM status
    UNION
    SELECT rollout_id, group_id, partition FROM episode
), calls_of AS (
    SELECT
        rollout_id,
        count(*) AS calls,
        count(*) FILTER (outcome <> 'success') AS failed_calls,
        coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
        coalesce(sum(completion_tokens), 0) AS completion_tokens,
        list_sort(list(DISTINCT agent) FILTER (agent <> '')) AS agents,
        first(mode ORDER BY started_at, call_id) AS mode,
        first(alias ORDER BY started_at, call_id) AS alias,
        first(policy ORDER BY started_at, call_id) AS policy,
        first(variant ORDER BY started_at, call_id) AS variant,
        first(prompt_version ORDER BY started_at, call_id) AS prompt_version,
        first(question ORDER BY started_at, call_id) AS question,
        last(answer ORDER BY started_at, call_id) FILTER (outcome = 'success') AS answer
    FROM calls
    GROUP BY rollout_id
), versions_of AS (
    SELECT rollout_id, list(version ORDER BY first_at, version) AS versions
    FROM (
        SELECT rollout_id, version_first AS version, min((started_at, call_id)) AS first_at
        FROM calls
        WHERE version_first IS NOT NULL
        GROUP BY rollout_id, version_first
    )
    GROUP BY rollout_id
), begun AS (
    SELECT rollout_id, min(happened_at) AS began_at, count(DISTINCT attempt) AS attempts, any_value(mode) AS mode
    FROM (
        SELECT rollout_id, attempt, started_at AS happened_at, mode FROM calls
        UNION ALL
        SELECT rollout_id, attempt, event_time, mode FROM status
        UNION ALL
        SELECT rollout_id, attempt, started_at, mode FROM episode
    )
    GROUP BY rollout_id
), final AS (
    -- The last attempt, unless another one follows.
    SELECT episode.*
    FROM episode
    LEFT JOIN declared USING (group_id)
    QUALIFY row_number() OVER (PARTITION BY episode.rollout_id ORDER BY episode.attempt DESC) = 1
        AND (NOT episode.will_retry OR episode.attempt + 1 >= coalesce(declared.max_attempts, 1))
), rollouts AS (
    SELECT rollout_id, attempt FROM final
), answered AS (
    -- Of the final attempt, and of the declared policy, where these have one.
    SELECT
        call.rollout_id,
        first(call.version_first ORDER BY
            coalesce(call.attempt = final.attempt, false) DESC,
            coalesce(call.policy = declared.policy, false) DESC,
            call.started_at,
            call.call_id
        ) AS version
    FROM calls AS call
    LEFT JOIN final ON final.rollout_id = call.rollout_id
    LEFT JOIN declared ON declared.group_id = call.group_id
    WHERE call.version_first IS NOT NULL
    GROUP BY call.rollout_id
), counted AS (
    SELECT
        found.rollout_id,
        found.name,
        found.value,
        found.value * coalesce(declared.reward_weights[found.name], 1) AS weighted
    FROM counted_rewards AS found
    LEFT JOIN declared ON declared.group_id = found.group_id
), combined AS (
    SELECT
        rollout_id,
        list(DISTINCT name) AS names,
        count(*) = count(value) AND sum(abs(value)) <= 1e12 AND sum(abs(weighted)) <= 1e12 AS is_usable,
        sum(weighted) AS total
    FROM counted
    GROUP BY rollout_id
), named AS (
    SELECT rollout_id, map_from_entries(list((name, value) ORDER BY name)) AS rewards
    FROM (SELECT rollout_id, name, sum(value) AS value FROM counted WHERE value IS NOT NULL GROUP BY ALL)
    GROUP BY rollout_id
), trained AS (
    SELECT trajectory.rollout_id, any_value(trajectory.episode_reward) AS reward
    FROM trajectories AS trajectory
    JOIN closing USING (group_id, group_revision)
    GROUP BY trajectory.rollout_id
), untrained AS (
    SELECT tombstone.rollout_id, any_value(tombstone.reason) AS reason, any_value(tombstone.episode_reward) AS reward
    FROM tombstones AS tombstone
    JOIN closing USING (group_id, group_revision)
    GROUP BY tombstone.rollout_id
)
SELECT
    member.rollout_id,
    member.group_id,
    declared.run_id,
    coalesce(calls_of.mode, begun.mode, declared.mode) AS mode,
    coalesce(declared.alias, calls_of.alias) AS alias,
    coalesce(declared.policy, calls_of.policy) AS policy,
    declared.task,
    coalesce(begun.began_at, declared.declared_at) AS began_at,
    final.ended_at,
    coalesce(begun.attempts, 0) AS attempts,
    final.attempt,
    coalesce(final.outcome, 'open') AS outcome,
    final.failure,
    final.message,
    coalesce(calls_of.calls, 0) AS calls,
    coalesce(calls_of.failed_calls, 0) AS failed_calls,
    coalesce(calls_of.prompt_tokens, 0) AS prompt_tokens,
    coalesce(calls_of.completion_tokens, 0) AS completion_tokens,
    coalesce(calls_of.agents, []) AS agents,
    coalesce(versions_of.versions, []) AS versions,
    answered.version,
    calls_of.variant,
    calls_of.prompt_version,
    calls_of.question,
    calls_of.answer,
    CASE WHEN combined.is_usable AND list_has_all(combined.names, coalesce(declared.expected_rewards, [])) THEN combined.total END AS reward,
    CASE
        WHEN final.attempt IS NULL THEN NULL
        WHEN combined.is_usable IS FALSE THEN 'reward_failed'
        WHEN combined.names IS NULL OR NOT list_has_all(combined.names, coalesce(declared.expected_rewards, [])) THEN 'no_reward'
    END AS reward_reason,
    coalesce(named.rewards, MAP {}) AS rewards,
    closing.group_revision,
    coalesce(trained.reward, untrained.reward) AS closed_reward,
    untrained.reason AS tombstone,
    member.partition
FROM member
LEFT JOIN declared USING (group_id)
LEFT JOIN closing USING (group_id)
LEFT JOIN calls_of USING (rollout_id)
LEFT JOIN versions_of USING (rollout_id)
LEFT JOIN answered USING (rollout_id)
LEFT JOIN begun USING (rollout_id)
LEFT JOIN final ON final.rollout_id = member.rollout_id
LEFT JOIN combined ON combined.rollout_id = member.rollout_id
LEFT JOIN named ON named.rollout_id = member.rollout_id
LEFT JOIN trained ON trained.rollout_id = member.rollout_id
LEFT JOIN untrained ON untrained.rollout_id = member.rollout_id
WHERE coalesce(begun.began_at, declared.declared_at) IS NOT NULL

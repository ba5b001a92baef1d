-- Makes the rows of `funnel` of the groups in `touched`. The names of tables stand for their rows of
-- these groups, also within the view `action_outcomes`, whose text is put in its place.
WITH calls AS (
    SELECT * FROM main.calls SEMI JOIN touched USING (group_id)
), outcomes AS (
    SELECT * FROM main.outcomes SEMI JOIN touched USING (group_id)
), actions AS (
    SELECT * FROM main.actions SEMI JOIN touched USING (group_id)
), closings AS (
    SELECT * FROM main.closings SEMI JOIN touched USING (group_id)
), episodes AS (
    SELECT * FROM main.episodes SEMI JOIN touched USING (group_id)
), declared AS (
    SELECT * FROM main.groups SEMI JOIN touched USING (group_id)
)
SELECT
    found.group_id,
    found.rollout_id,
    declared.run_id,
    found.mode,
    found.agent,
    found.alias,
    found.policy,
    found.version,
    found.term,
    found.reason,
    count(*)::INTEGER AS actions,
    count(found.credit)::INTEGER AS credited,
    sum(found.credit) AS credit
FROM action_outcomes AS found
LEFT JOIN declared ON declared.group_id = found.group_id
GROUP BY ALL

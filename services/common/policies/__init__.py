"""What serves an alias: published versions, routes, and returning to an earlier one."""

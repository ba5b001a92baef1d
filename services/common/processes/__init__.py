"""Start, watch and end child processes.

- `process`: one child process with its log file.
- `supervisor`: long-running services, which are ready, restarted and stopped together.
- `fork_server`: many short processes, forked from one that has their modules imported;
  `fork_server_main` is its program.
- `watchdog`: ends the sessions of a parent that died.
- `parent_death`: ends a process with its parent, for forks.
- `groups`: signals and ends process groups and sessions, for all of them.
- `last_error`: finds in a log why a process ended.
"""

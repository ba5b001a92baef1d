"""A gateway that may open few files: as many connections as that are soon made."""

from __future__ import annotations

import resource

from services.gateway.main import main

FILES = 200

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    main()

"""Shows what the feature definitions would change for the seated models, before anything is built or served."""

from __future__ import annotations

import json
import sys

from feature_repo import features as definitions
from service.changes import REFUSED, of_roles
from service.definitions import contracts
from service.errors import UnderstudyError
from service.settings import settings


def main() -> int:
    """Command line; exit code 1 when a build would be refused. Last line of stdout: one JSON object."""
    try:
        found = of_roles(settings(), contracts(definitions))
    except UnderstudyError as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    counts = dict.fromkeys(("breaking", "looser", "tighter"), 0)
    for role, changes in found.items():
        print(f"{role}: {'no change' if not changes else ''}".rstrip())
        for change in changes:
            counts[change.kind] += 1
            print(f"  {change}")
    refused = sum(counts[kind] for kind in REFUSED)
    if refused:
        print("A build is refused: train anew, or take these changes back.")
    print(json.dumps({"roles": len(found), **counts, "refused": refused}))
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())

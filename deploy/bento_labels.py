"""Labels of the Bentos in the local store: which models each one holds, and whether they are the ones that play now.

A Bento carries its own ``models/roles.json``; its labels are read from there, never guessed. BentoML builds labels into
``bento.yaml`` and gives no call to change them later (1.4.39), so that file is written anew with nothing else changed,
in one rename. Images made of a Bento, and Bentos that were pushed elsewhere, keep the labels they left with.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import bentoml
import yaml
from bentoml.exceptions import BentoMLException, NotFound

from service.errors import NotReady
from service.journal import replace_text
from service.progress import Say
from service.roles import Roles, read_roles

NAME = "understudy"
STATE = "roles"
_SHORT = 16


def labels_of(held: Roles, current: Roles) -> dict[str, str]:
    """Return the labels of a Bento that holds these roles.

    Args:
        held: the roles inside the Bento.
        current: the roles that play now.
    """
    if not held.seats:
        return {STATE: "none"}
    told = {STATE: "current" if _digests(held) == _digests(current) else "outdated"}
    told["roles.revision"] = str(held.revision)
    for role, seat in sorted(held.seats.items()):
        told |= {f"{role}.version": seat.version, f"{role}.digest": seat.digest[:_SHORT]}
    return told


def align_labels(current: Roles, say: Say) -> dict[str, str]:
    """Bring the labels of every Bento in the local store up to the current roles.

    Returns:
        Per Bento ``current``, ``outdated``, or ``none`` for one built without models; one that cannot be read is told
        of and left out.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # bentoml 1.4.39 on pathspec 1.1
            bentos = bentoml.list(NAME)
    except NotFound:
        return {}
    except (BentoMLException, OSError, yaml.YAMLError, LookupError, ValueError, TypeError, AssertionError) as error:
        say(f"the local Bento store cannot be read ({error}); its labels stay behind")
        return {}
    found: dict[str, str] = {}
    for bento in bentos:
        try:
            held = read_roles(Path(bento.path) / "src" / "models")
            wanted = labels_of(held, current)
            found[str(bento.tag)] = wanted[STATE]
            if wanted.items() <= bento.info.labels.items():
                continue
            kept = {k: v for k, v in bento.info.labels.items() if not _ours(k)}
            # The record is frozen, what it holds is not (bentoml 1.4.39).
            bento.info.labels.clear()
            bento.info.labels.update(kept | wanted)
            text = io.StringIO()
            bento.info.dump(text)
            replace_text(Path(bento.path) / "bento.yaml", text.getvalue())
            say(f"Bento {bento.tag} is labelled {wanted[STATE]}")
        except (NotReady, OSError) as error:
            found.pop(str(bento.tag), None)
            say(f"the labels of Bento {bento.tag} stay behind: {error}")
    return found


def _ours(label: str) -> bool:
    return label in (STATE, "roles.revision") or label.endswith((".version", ".digest"))


def _digests(roles: Roles) -> dict[str, str]:
    return {str(role): seat.digest for role, seat in roles.seats.items()}

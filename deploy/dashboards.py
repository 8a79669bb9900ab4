"""Writes Grafana's dashboards: ``make dashboards``. The JSON files are committed; what to change is here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.dashboards_models import quality, shadow
from deploy.dashboards_page import Page
from deploy.dashboards_predictions import predictions
from deploy.dashboards_serving import features, service

FOLDER = Path(__file__).with_name("grafana") / "dashboards"


def pages() -> list[Page]:
    """Every dashboard, as one reads them."""
    return [service(), features(), predictions(), shadow(), quality()]


def rendered() -> dict[str, str]:
    """Return the JSON text of every dashboard by its file's name."""
    return {
        f"{page.name}.json": json.dumps(page.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
        for page in pages()
    }


def main() -> int:
    """Write the files. Last line of stdout: one JSON object."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = rendered()
    for old in FOLDER.glob("*.json"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text)
        print(f"wrote {FOLDER / name}")
    print(json.dumps({"dashboards": len(texts), "bytes": sum(map(len, texts.values()))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Which requests a shadow rehearses. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """Which requests are rehearsed.

    Attributes:
        share: of all requests, 0 to 1.
        key: request field by whose value the share is drawn, so that everything about one key falls the same way;
            empty: by request id.
    """

    share: float = 1.0
    key: str = ""

    def takes(self, request_id: str, request: Mapping[str, Any]) -> bool:
        """Whether a request is drawn; the same request always falls the same way, in every process."""
        if self.share >= 1:
            return True
        drawn = str(request.get(self.key)) if self.key else request_id
        return zlib.crc32(drawn.encode(errors="replace")) < self.share * 2**32

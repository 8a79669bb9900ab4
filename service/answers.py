"""What the gateway tells its callers."""

from __future__ import annotations

from pydantic import BaseModel, Field


class PredictAnswer(BaseModel):
    """What a prediction request gets back."""

    request_id: str = Field(description="Identifies the prediction in the logs; send it back with its label.")
    prediction: float = Field(description="The answer.")
    role: str = Field(description="Who gave it: primary, fallback, or none (the safe default).")
    model_version: str | None = Field(description="Version of the model that gave it.")
    confidence: str = Field(description="normal, degraded (act with care), none (no model answered).")
    fallback_reason: str | None = Field(description="Why the primary did not answer.")
    violations: list[dict[str, str]] = Field(
        description="How the features broke their contract: feature, kind, message."
    )

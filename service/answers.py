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


class Problem(BaseModel):
    """One thing that is wrong with a request."""

    field: str = Field(description="Name of the field.")
    value: str = Field(description="What was sent, shortened.")
    message: str = Field(description="What is wrong and how to put it right.")


class RowRefused(BaseModel):
    """What a row of a batch gets back that is no valid request."""

    error: str = Field(description="What is wrong, in one sentence.")
    problems: list[Problem] = Field(description="Field by field.")

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


class Refusal(RowRefused):
    """What a refused request gets back, whatever its status."""


# Every status an endpoint may answer with besides 200.
REFUSALS = {
    400: "The body is not what an endpoint can read, such as damaged JSON.",
    401: "The bearer token is missing or not valid.",
    413: "The body is larger than the service's limit.",
    415: "The body is not JSON by its content type.",
    422: "A field is missing, unknown, or not what the contract declares; every one of them is named.",
    429: "As many requests are being answered as can be in time; Retry-After says when to come back.",
    500: "The service is at fault, and its log says how.",
    503: "The service cannot answer yet, or no longer takes requests.",
    504: "No answer within the service's own time limit.",
}

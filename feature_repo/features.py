"""The one definition of every feature: entities, sources, views, request-time features, feature services.

Tags are the contract (see service/definitions.py for the words). Training reads these objects through Feast's
offline store, the service through its online store; nothing is defined a second time.

Feast runs every module in this folder, so it holds definitions only.
"""

from datetime import timedelta
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String, UnixTimestamp


def table(name: str) -> PushSource:
    """A feature table: rows stamped with the moment they became known, pushed online as they do."""
    batch = FileSource(
        name=f"{name}_table", path=f"../state/features/{name}.parquet", timestamp_field="event_timestamp"
    )
    return PushSource(name=f"{name}_push", batch_source=batch)


def number(name: str, low: float, high: float, *, nullable: bool = False, about: str = "") -> Field:
    """A bounded quantity."""
    tags = {"min": str(low), "max": str(high), "nullable": str(nullable).lower()}
    return Field(name=name, dtype=Float64, tags=tags, description=about)


def count(name: str, high: int, about: str = "") -> Field:
    """A bounded whole number, never null."""
    return Field(name=name, dtype=Int64, tags={"min": "0", "max": str(high)}, description=about)


origin = Entity(
    name="origin",
    join_keys=["origin"],
    value_type=ValueType.STRING,
    tags={"allowed": "EWR,JFK,LGA"},
    description="Airport of departure.",
)
carrier = Entity(
    name="carrier", join_keys=["carrier"], value_type=ValueType.STRING, description="Two-letter airline code."
)
route = Entity(
    name="route", join_keys=["route"], value_type=ValueType.STRING, description="Origin and destination: EWR-IAH."
)
tailnum = Entity(
    name="tailnum",
    join_keys=["tailnum"],
    value_type=ValueType.STRING,
    tags={"nullable": "true"},
    description="Tail number of the plane; null when it is not assigned yet.",
)

origin_weather = FeatureView(
    name="origin_weather",
    entities=[origin],
    ttl=timedelta(hours=6),
    source=table("origin_weather"),
    schema=[
        Field(name="origin", dtype=String),
        number("temp", -40, 120, nullable=True, about="Temperature, degrees Fahrenheit."),
        number("dewp", -60, 90, nullable=True, about="Dew point, degrees Fahrenheit."),
        number("humid", 0, 100, nullable=True, about="Relative humidity, percent."),
        number("wind_dir", 0, 360, nullable=True, about="Wind direction, degrees; null when variable."),
        number("wind_speed", 0, 150, nullable=True, about="Wind speed, mph."),
        number("wind_gust", 0, 200, nullable=True, about="Gust speed, mph; null when there are no gusts."),
        number("precip", 0, 10, about="Precipitation in the hour, inches."),
        number("pressure", 900, 1100, nullable=True, about="Sea level pressure, millibars."),
        number("visib", 0, 10, about="Visibility, miles (10 is the sensor's limit)."),
    ],
    tags={"max_staleness": "3h", "policy": "degrade"},
    description="Hourly weather observed at the origin; known when its hour has ended.",
)
origin_traffic = FeatureView(
    name="origin_traffic",
    entities=[origin],
    ttl=timedelta(hours=2),
    source=table("origin_traffic"),
    schema=[
        Field(name="origin", dtype=String),
        number(
            "origin_dep_delay_3h", -60, 1500, nullable=True, about="Mean delay of departures in the last 3 h, minutes."
        ),
        count("origin_departures_3h", 400, "Actual departures in the last 3 h."),
    ],
    tags={"max_staleness": "45m", "policy": "degrade"},
    description="Delay of the planes that actually left the origin, every 15 minutes.",
)
carrier_record = FeatureView(
    name="carrier_record",
    entities=[carrier],
    ttl=timedelta(hours=6),
    source=table("carrier_record"),
    schema=[
        Field(name="carrier", dtype=String),
        number("carrier_late_rate_6h", 0, 1, nullable=True, about="Late share of outcomes known in the last 6 h."),
        count("carrier_outcomes_6h", 1000, "Outcomes known in the last 6 h."),
        number("carrier_late_rate_7d", 0, 1, nullable=True, about="Late share of outcomes known in the last 7 days."),
    ],
    tags={"max_staleness": "90m", "policy": "degrade"},
    description="The carrier's actual arrivals and cancellations, every 30 minutes.",
)
route_record = FeatureView(
    name="route_record",
    entities=[route],
    ttl=timedelta(days=2),
    source=table("route_record"),
    schema=[
        Field(name="route", dtype=String),
        number("route_late_rate_14d", 0, 1, nullable=True, about="Late share of outcomes known in the last 14 days."),
        count("route_outcomes_14d", 2000, "Outcomes known in the last 14 days."),
    ],
    tags={"max_staleness": "12h", "policy": "tolerate"},
    description="The route's actual arrivals and cancellations, every 6 hours.",
)
plane_record = FeatureView(
    name="plane_record",
    entities=[tailnum],
    ttl=timedelta(days=60),
    source=table("plane_record"),
    schema=[
        Field(name="tailnum", dtype=String),
        number("plane_last_arr_delay", -120, 2000, about="Arrival delay of the plane's last known flight, minutes."),
        Field(name="plane_last_arrival", dtype=UnixTimestamp, description="When that flight arrived."),
    ],
    tags={"policy": "tolerate"},
    description="The plane's last arrival, known at that arrival.",
)

schedule = RequestSource(
    name="schedule",
    schema=[
        Field(
            name="scheduled_departure",
            dtype=UnixTimestamp,
            tags={"min": "now", "max": "now+48h"},
            description="Scheduled departure, ISO 8601 with offset.",
        ),
        number("distance", 1, 6000, about="Distance to the destination, miles."),
        count("hour_flights", 200, "Flights scheduled to leave the origin in the same hour."),
    ],
)


@on_demand_feature_view(
    name="departure",
    sources=[schedule],
    mode="python",
    schema=[
        Field(name="dep_hour", dtype=Int64),
        Field(name="dep_minute", dtype=Int64),
        Field(name="dep_weekday", dtype=Int64),
        Field(name="trip_distance", dtype=Float64),
        Field(name="hour_load", dtype=Int64),
    ],
    tags={
        "dep_hour": "min=0 max=23",
        "dep_minute": "min=0 max=59",
        "dep_weekday": "min=0 max=6",
        "trip_distance": "min=1 max=6000",
        "hour_load": "min=0 max=200",
    },
    description="Local hour, minute and weekday (Monday is 0) of departure, distance, load of the hour.",
)
def departure(inputs: dict[str, Any]) -> dict[str, Any]:
    """What the schedule alone tells about a departure."""
    from zoneinfo import ZoneInfo

    zone = ZoneInfo("America/New_York")
    local = [at.astimezone(zone) for at in inputs["scheduled_departure"]]
    return {
        "dep_hour": [at.hour for at in local],
        "dep_minute": [at.minute for at in local],
        "dep_weekday": [at.weekday() for at in local],
        "trip_distance": [float(d) for d in inputs["distance"]],
        "hour_load": [int(n) for n in inputs["hour_flights"]],
    }


@on_demand_feature_view(
    name="turnaround",
    sources=[schedule, plane_record[["plane_last_arrival"]]],
    mode="python",
    schema=[Field(name="plane_idle_h", dtype=Float64)],
    tags={"plane_idle_h": "min=-48 max=1500 nullable=true"},
    description="Hours from the plane's last arrival to its scheduled departure.",
)
def turnaround(inputs: dict[str, Any]) -> dict[str, Any]:
    """How long the plane will have been known to stand when it is scheduled to leave."""
    pairs = zip(inputs["scheduled_departure"], inputs["plane_last_arrival"], strict=True)
    return {"plane_idle_h": [None if last is None else (at - last).total_seconds() / 3600 for at, last in pairs]}


primary = FeatureService(
    name="primary",
    features=[
        departure,
        origin_weather,
        origin_traffic,
        carrier_record,
        route_record,
        plane_record[["plane_last_arr_delay"]],
        turnaround,
    ],
    tags={
        "key_features": "origin,carrier",
        "output": "probability",
        "positive": "arrives 15 minutes late or more, or is cancelled",
        "slices": "carrier,origin",
    },
    description="Everything known two hours before departure.",
)
request_only = FeatureService(
    name="request_only",
    features=[departure],
    tags={"key_features": "origin,carrier", "output": "probability"},
    description="What the request alone tells; needs no feature store.",
)

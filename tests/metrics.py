"""What /metrics tells, read by Prometheus' own parser."""

from prometheus_client.parser import text_string_to_metric_families


def refusals_in(told: str) -> dict[tuple[str, str], float]:
    """Return how many were refused, by code and limit."""
    return {
        (sample.labels["code"], sample.labels["limit"]): sample.value
        for family in text_string_to_metric_families(told)
        if family.name == "sidestream_refusals"
        for sample in family.samples
        if sample.name.endswith("_total")
    }

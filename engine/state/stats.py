"""Counters and gauges of an engine."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot for logs and metrics; token counts are totals since start.

    `max_running`: sequences that can run at once. `page_bytes`: memory of one page, all layers
    together. `state_slots_in_use`, `state_snapshots`, `state_slots_total`, `state_slot_bytes`: of
    states beside keys and values; 0 in models without any.
    """

    max_running: int = 0
    running: int = 0
    waiting: int = 0
    pages_in_use: int = 0
    pages_cached: int = 0
    pages_total: int = 0
    page_bytes: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    state_slots_in_use: int = 0
    state_snapshots: int = 0
    state_slots_total: int = 0
    state_slot_bytes: int = 0

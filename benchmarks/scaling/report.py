"""What the model says: beside what was measured, then of one node and one shard, then of the deployment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.scaling import deployment
from benchmarks.scaling.costs import CommitCosts, Costs, NodeCosts, calibrate, node_side, redis_side
from benchmarks.scaling.deployment import Plan, Workload
from benchmarks.scaling.points import Points
from benchmarks.scaling.simulation import Result, System, simulate
from benchmarks.scaling.whole import WholePoint
from gateway.logs.redis_keys import PARTITIONS

Step = Callable[[str], None]
START = NodeCosts(wake=60.0, read=12.0, token=2.0)
STREAMS_OF_A_NODE = (100, 300, 500, 700, 1000, 1500)
APPENDS_OF_A_CALL = (1, 2, 16, 256)
RETENTION_DAYS = (1, 7, 30)
BATCHES_PER_S = 30.0
"""Appends a second of a stream of 50 tokens/s with the default batching: 10 characters every 33 ms."""
VARIANTS = {
    "default": Workload(),
    "batches of 40 characters, 200 ms": Workload(batch_chars=40, batch_s=0.2),
    "all read on another node, too": Workload(followed=1.0),
}


def tell(points: Points, console: Console, step: Step) -> None:
    step("finding the costs")
    costs = found_costs(points)
    console.print(f"Measured on {points.machine}; see points.json for every point and its command.\n")
    console.print(_costs_table(costs))
    step("measured points")
    console.print(_compared(points.whole, costs))
    step("one node, one shard")
    console.print(_node_table(costs))
    console.print(_shard_table(costs))
    workload = Workload()
    plans = {}
    for name, varied in VARIANTS.items():
        step(f"the deployment: {name}")
        plans[name] = deployment.plan(varied, points, costs)
    console.print(_plans_table(plans))
    console.print(_retention_table(workload, plans["default"], points))


def found_costs(points: Points) -> Costs:
    """Fitted to the parts, and to the gateways on `memory:` only."""
    commit, redis = node_side(points.commits), redis_side(points.commits)
    alone = [point for point in points.whole if point.log == "memory"]

    def error(node: NodeCosts) -> float:
        costs = Costs(node, commit, redis, points.followed.follower_us)
        return sum(_off(simulated(point, costs).node_us, point.node_us) ** 2 for point in alone)

    return Costs(calibrate(error, START), commit, redis, points.followed.follower_us)


def simulated(point: WholePoint, costs: Costs) -> Result:
    return simulate(
        System(
            point.nodes, int(point.log == "redis"), point.streams, point.rate, point.batch_chars, point.batch_ms / 1e3
        ),
        costs,
    )


def _off(model: float, measured: float) -> float:
    return model / measured - 1


def _costs_table(costs: Costs) -> Table:
    table = Table(title="Costs, CPU µs", title_justify="left")
    for column in ("of", "each"):
        table.add_column(column)
    node, commit, redis = costs.node, costs.commit, costs.redis
    table.add_row("a node", f"wake {node.wake:.0f}, stream read {node.read:.1f}, token {node.token:.1f}")
    table.add_row("a commit, node's side", _commit_words(commit))
    table.add_row(
        "a commit, Redis' side", f"{_commit_words(redis)}, delivery {redis.delivery:.1f}, wake {redis.wake:.0f}"
    )
    return table


def _commit_words(costs: CommitCosts) -> str:
    return f"commit {costs.commit:.0f}, call {costs.call:.1f}, append {costs.append:.1f}"


def _compared(measured: Sequence[WholePoint], costs: Costs) -> Table:
    table = Table(title="Model and measurement; what is fitted is in brackets", title_justify="left")
    table.add_column("log, nodes")
    table.add_column("load, batches", no_wrap=True)
    for column in ("node µs a token", "Redis µs a token", "appends a token", "appends a call", "disturbed"):
        table.add_column(column, justify="right")
    for point in measured:
        result, fitted = simulated(point, costs), point.log == "memory"
        cells = [_beside(result.node_us, point.node_us, fitted=fitted)]
        cells += [
            "" if fitted else _beside(getattr(result, name), getattr(point, name))
            for name in ("redis_us", "appends_per_token", "appends_per_call")
        ]
        load = f"{point.streams} × {point.rate:g}/s, {point.batch_chars} chars"
        table.add_row(f"{point.log}, {point.nodes}", load, *cells, f"{point.waited:.0%}")
    return table


def _beside(model: float, measured: float, *, fitted: bool = False) -> str:
    words = f"{model:.2f} / {measured:.2f}  {_off(model, measured):+.0%}"
    return f"({words})" if fitted else words


def _node_table(costs: Costs) -> Table:
    table = Table(title="One node on a cluster of its own, 50 tokens/s a stream", title_justify="left")
    for column in (
        "streams",
        "tokens/s",
        "busy",
        "µs a token",
        "appends a token",
        "appends a call",
        "commit p50 ms",
        "p99 ms",
    ):
        table.add_column(column, justify="right")
    for streams in STREAMS_OF_A_NODE:
        system = System(1, PARTITIONS // 4, streams, 50.0, network_s=deployment.NETWORK_S)
        result = simulate(system, costs)
        table.add_row(
            str(streams), f"{result.tokens_per_s:.0f}", f"{result.node_busy:.0%}", f"{result.node_us:.1f}",
            f"{result.appends_per_token:.2f}", f"{result.appends_per_call:.1f}",
            f"{result.commit_p50_s * 1e3:.1f}", f"{result.commit_p99_s * 1e3:.1f}",
        )  # fmt: skip
    return table


def _shard_table(costs: Costs) -> Table:
    table = Table(title=f"One shard, {deployment.BUSY:.0%} busy, its streams of 50 tokens/s", title_justify="left")
    for column in ("appends a call", "calls a commit", "µs an append", "appends/s", "streams"):
        table.add_column(column, justify="right")
    for appends in APPENDS_OF_A_CALL:
        for calls in (1, 16):
            us = costs.redis.of(calls, calls * appends) / (calls * appends)
            rate = deployment.BUSY * 1e6 / us
            table.add_row(str(appends), str(calls), f"{us:.1f}", f"{rate:,.0f}", f"{rate / BATCHES_PER_S:,.0f}")
    return table


def _plans_table(plans: dict[str, Plan]) -> Table:
    workload = Workload()
    table = Table(
        title=f"{workload.connections:,} connections, {workload.streams:,} streams × {workload.rate:g} tokens/s, "
        f"each node and shard {deployment.BUSY:.0%} busy at most",
        title_justify="left",
    )
    table.add_column("")
    for name in plans:
        table.add_column(name, justify="right")
    rows: dict[str, Callable[[Plan], str]] = {
        "nodes (cores)": lambda plan: str(plan.nodes),
        "a node: streams": lambda plan: f"{workload.streams / plan.nodes:.0f}",
        "a node: connections": lambda plan: f"{workload.connections / plan.nodes:,.0f}",
        "a node: busy": lambda plan: f"{plan.node_busy:.0%}",
        "of that turns, connections, heartbeats": lambda plan: f"{plan.other_busy:.0%}",
        "a node: memory, GiB": lambda plan: f"{plan.node_gib:.2f}",
        "µs a token, node and Redis": lambda plan: f"{plan.result.node_us:.1f}, {plan.result.redis_us:.1f}",
        "shards by CPU": lambda plan: str(plan.shards),
        "the busiest shard": lambda plan: f"{plan.result.shard_busy:.0%}",
        "appends/s of all": lambda plan: f"{workload.streams * workload.rate * plan.result.appends_per_token:,.0f}",
        "appends a call": lambda plan: f"{plan.result.appends_per_call:.2f}",
        "commit p50, p99 ms": lambda plan: (
            f"{plan.result.commit_p50_s * 1e3:.1f}, {plan.result.commit_p99_s * 1e3:.1f}"
        ),
        "to files, and to replicas, MiB/s": lambda plan: f"{plan.file_mib_per_s:,.0f}",
        "kept a day, GiB": lambda plan: f"{plan.kept_gib_per_day:,.0f}",
        "beats, of one shard": lambda plan: f"{plan.beat_busy:.1%}",
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(plan) for plan in plans.values()))
    return table


def _retention_table(workload: Workload, plan: Plan, points: Points) -> Table:
    kept = {
        "as it is kept today": plan.kept_gib_per_day,
        "if finished answers were folded": plan.kept_gib_per_day * deployment.folded_part(points),
    }
    table = Table(
        title=f"Shards of {workload.shard_gib:g} GiB for what is kept; there can be {PARTITIONS}", title_justify="left"
    )
    for column in ("", "GiB a day", *(f"{days} days" for days in RETENTION_DAYS), "most that fits, days"):
        table.add_column(column, justify="left" if not column else "right")
    for name, per_day in kept.items():
        shards = [f"{deployment.shards_for(workload, per_day, days):,}" for days in RETENTION_DAYS]
        most = deployment.most_retention_days(workload, per_day)
        table.add_row(name, f"{per_day:,.0f}", *shards, f"{most:.1f}")
    return table

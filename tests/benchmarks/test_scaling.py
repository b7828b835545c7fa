"""The model of many nodes and shards: it has to keep to what can be said of it without simulating."""

from __future__ import annotations

import pytest

from benchmarks.scaling import costs as lines
from benchmarks.scaling import deployment, report
from benchmarks.scaling.costs import CommitCosts, Costs, NodeCosts, calibrate
from benchmarks.scaling.parts import CommitPoint
from benchmarks.scaling.points import FILE, GROUPS, Points, command
from benchmarks.scaling.simulation import System, simulate

NODE = NodeCosts(wake=50.0, read=10.0, token=2.0)
COSTS = Costs(NODE, CommitCosts(60, 2, 4), CommitCosts(20, 3, 5, delivery=1, wake=100), follower_us=8.0)
DISTURBED = 0.1
"""Points that waited more aren't held against the model."""


def test_all_tokens_pass_and_cost_what_they_cost() -> None:
    result = simulate(System(1, 0, 100, 50.0), COSTS, seconds=2.0)
    assert result.tokens_per_s == pytest.approx(5000, rel=0.01)
    # A read every 33 ms and up to a tick, of about 1.8 tokens each.
    assert 2.0 + 10.0 / 2 < result.node_us < 2.0 + 10.0 / 1.5 + 50.0 * 0.2
    assert result.node_busy == pytest.approx(result.node_us * 5000 / 1e6, rel=0.02)
    assert result.redis_us == result.appends_per_token == 0.0


def test_a_node_is_never_busier_than_always_and_reads_more_at_once_then() -> None:
    fits, too_much = (simulate(System(1, 1, streams, 50.0, token_delay_s=0.01), COSTS) for streams in (500, 3000))
    assert fits.tokens_per_s == pytest.approx(25_000, rel=0.01)
    assert fits.node_busy < too_much.node_busy <= 1.05
    assert too_much.node_us < fits.node_us
    assert too_much.appends_per_token < fits.appends_per_token / 2  # a commit takes several turns, and turns are long
    assert too_much.commit_p50_s > 10 * fits.commit_p50_s


def test_an_overloaded_shard_is_always_busy_though_it_answers_nothing_meanwhile() -> None:
    """A plan that took it for an idle one ended at two shards for a million connections."""
    result = simulate(System(20, 2, 40_000, 50.0), COSTS, warm_up_s=0.2, seconds=0.01)
    assert result.appends_per_token == 0.0
    assert result.shard_busy == pytest.approx(1.0)


def test_a_commit_costs_a_shard_what_the_lines_say() -> None:
    result = simulate(System(1, 1, 100, 50.0), COSTS, seconds=2.0)
    appends = result.appends_per_call  # one call a commit on a single server
    assert result.redis_us == pytest.approx(result.appends_per_token * (20 + 3 + 100 + 5 * appends) / appends, rel=0.01)


def test_a_cluster_gets_a_call_for_each_partition() -> None:
    single, cluster = (simulate(System(1, shards, 400, 50.0), COSTS) for shards in (1, 16))
    per_commit = single.appends_per_call
    assert 100 < per_commit < 256
    filled = 256 * (1 - (1 - 1 / 256) ** per_commit)
    assert cluster.appends_per_call == pytest.approx(per_commit / filled, rel=0.15)
    assert cluster.redis_us > single.redis_us


def test_larger_batches_and_followers_change_what_they_should() -> None:
    usual = simulate(System(2, 1, 400, 50.0), COSTS)
    larger = simulate(System(2, 1, 400, 50.0, batch_chars=40, batch_s=0.2), COSTS)
    followed = simulate(System(2, 1, 400, 50.0, followed=1.0), COSTS)
    assert larger.appends_per_token < usual.appends_per_token / 3
    assert followed.node_us == pytest.approx(usual.node_us + COSTS.follower_us, rel=0.05)
    assert followed.redis_us == pytest.approx(usual.redis_us + usual.appends_per_token, rel=0.05)


def test_the_network_adds_to_a_commit_and_to_nothing_else() -> None:
    near, far = (simulate(System(1, 1, 100, 50.0, network_s=way_s), COSTS) for way_s in (0.0, 0.005))
    assert far.commit_p50_s == pytest.approx(near.commit_p50_s + 0.01, rel=0.2)
    assert far.node_us == pytest.approx(near.node_us, rel=0.2)


def test_lines_through_parts_are_found_again() -> None:
    def point(calls: int, appends: int, followers: int, paced: bool) -> CommitPoint:
        node, cold = CommitCosts(80, 3, 4), CommitCosts(130, 3, 6, 0.5)
        hot = CommitCosts(15, 3, 4, 0.5)
        redis = cold if paced else hot
        us = redis.of(calls, appends) + redis.delivery * appends * followers
        return CommitPoint(appends, calls, followers, paced, node.of(calls, appends) + 50 * paced, us)

    points = [
        point(calls, appends, followers, paced)
        for calls, appends in ((1, 1), (1, 16), (1, 256), (4, 4), (200, 256))
        for followers in (0, 3)
        for paced in (False, True)
    ]
    assert tuple(lines.node_side(points))[:3] == pytest.approx((80, 3, 4))
    assert tuple(lines.redis_side(points)) == pytest.approx((15, 3, 6, 0.5, 115))


def test_a_cost_that_cannot_be_negative_is_left_out() -> None:
    points = [CommitPoint(appends, 1, 0, False, 10.0 * appends, 1.0) for appends in (1, 10, 100)]
    assert min(lines.node_side(points)) >= 0.0


def test_calibration_finds_what_made_the_figures() -> None:
    wanted = NodeCosts(80.0, 9.0, 3.0)

    def error(costs: NodeCosts) -> float:
        return sum((costs.of(*row) / wanted.of(*row) - 1) ** 2 for row in ((3, 5), (40, 300))) + (
            (costs.wake / wanted.wake - 1) ** 2
        )

    assert tuple(calibrate(error, NODE)) == pytest.approx(tuple(wanted), rel=0.15)


def test_the_model_tells_the_measured_points_that_it_was_not_fitted_to() -> None:
    points = Points()
    costs = report.found_costs(points)
    held = [point for point in points.whole if point.log == "redis" and point.waited <= DISTURBED]
    assert len(held) >= 4
    for point in held:
        result = report.simulated(point, costs)
        assert result.node_us == pytest.approx(point.node_us, rel=0.35), point
        assert result.redis_us == pytest.approx(point.redis_us, rel=0.35), point
        assert result.appends_per_token == pytest.approx(point.appends_per_token, rel=0.35), point


def test_every_point_names_the_command_that_made_it() -> None:
    text = FILE.read_text()
    assert all(f'"command": "{command(group)}"' in text for group in GROUPS)


def test_a_plan_is_the_smallest_that_fits() -> None:
    points, small = Points(), deployment.Workload(connections=20_000, streams=4_000)
    costs = report.found_costs(points)
    plan = deployment.plan(small, points, costs)
    assert plan.node_busy <= deployment.BUSY * 1.1
    assert plan.result.shard_busy <= deployment.BUSY
    fewer = deployment.told(small, points, costs, max(1, plan.nodes * 3 // 4), plan.shards)
    assert plan.nodes == 1 or fewer.node_busy > deployment.BUSY
    assert deployment.shards_for(small, 100.0, 30) == 63
    assert deployment.most_retention_days(small, 48.0) == 256

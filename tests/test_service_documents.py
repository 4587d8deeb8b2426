"""What is pushed comes back as it was: networks, importance and tables give the same plan after the journey."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from pydantic import ValidationError

import network
from benchmarks.fleet import device, machine, rows_of
from latency.store import COLUMNS, Store
from latency.table import fingerprint, table_of
from search import ModelReference, Settings, magnitude, parse_budget
from search.planner import Problem
from search.service.profiles import from_parquet, profile_of, profiles_of, to_parquet
from search.service.schemas import PlanDocument, Profile, SweepQuestion, fingerprint_of
from search.service.traced import TracedNetwork, describe
from tests.helpers import IMAGE, NETWORKS
from tests.service import local_plan, profile, same_plan, traced

REFERENCE = ModelReference("net.py:build", '{"width": 8}', (IMAGE,), "0" * 64)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_whole_and_gives_the_same_plan(name: str):
    model = NETWORKS[name]()
    net = network.trace(model, (torch.randn(IMAGE),))
    sent = describe(net, magnitude(model, net), REFERENCE)
    got = TracedNetwork.model_validate_json(sent.model_dump_json())
    back = got.to_network()
    assert fingerprint_of(got) == fingerprint_of(sent)
    assert (back.layers, back.frozen, back.sizes) == (net.layers, net.frozen, net.sizes)
    assert (back.parameters, back.trainable, back.input_shapes) == (net.parameters, net.trainable, net.input_shapes)
    for ours, theirs in zip(back.groups, net.groups, strict=True):
        assert ours.name == theirs.name
        for mine, other in zip(ours.members, theirs.members, strict=True):
            assert (mine.parameter, mine.dim, mine.role) == (other.parameter, other.dim, other.role)
            np.testing.assert_array_equal(mine.index, other.index)
    table = table_of(rows_of(net, device()), net, device())
    limits = Settings(
        max_params=int(0.8 * net.parameter_count()),
        max_memory=int(0.95 * net.peak_memory()),
        max_bytes=int(0.7 * net.weight_bytes()),
    )
    plans = [
        Problem(n, table, i, reference=REFERENCE, settings=limits).plan(parse_budget("0.8x"))
        for n, i in ((net, magnitude(model, net)), (back, got.importance))
    ]
    assert same_plan(plans[0].to_json()) == same_plan(plans[1].to_json())


def test_an_index_that_is_no_arithmetic_is_listed():
    fields = traced().model_dump(mode="json")
    member = fields["network"]["groups"][0]["members"][0]
    assert set(member["index"]) == {"start", "by_channel", "by_position", "positions"}
    order = np.random.default_rng(0).permutation(16)
    member["index"] = {"rows": order[:, None].tolist()}
    back = TracedNetwork.model_validate(fields).to_network()
    np.testing.assert_array_equal(back.groups[0].members[0].index[:, 0], order)
    again = describe(back, TracedNetwork.model_validate(fields).importance, REFERENCE)
    assert again.model_dump(mode="json")["network"]["groups"][0]["members"][0]["index"] == member["index"]


def test_rows_come_back_from_json_and_parquet_as_the_store_has_them(tmp_path):
    net = traced().to_network()
    rows = rows_of(net, device())
    store = Store(tmp_path)
    store.append(machine(), device(), rows.to_dict("records"))
    (sent,) = profiles_of(store)
    got = Profile.model_validate_json(sent.model_dump_json())
    kept, whole = from_parquet([to_parquet(got)]), store.device_rows(device())
    assert list(kept.columns) == list(COLUMNS)
    order = list(COLUMNS)
    assert_frame_equal(
        kept.sort_values(order).reset_index(drop=True),
        whole.sort_values(order).reset_index(drop=True),
        check_exact=True,
    )
    assert table_of(kept, net, device()).fingerprint == table_of(whole, net, device()).fingerprint


def test_rows_that_are_the_same_twice_stay_two():
    """Two layers alike may take the same microseconds: no row is dropped for being like another."""
    rows = rows_of(traced().to_network(), device())
    doubled = profile_of(machine(), device(), fingerprint(traced().to_network()), rows.loc[rows.index.repeat(2)])
    assert len(from_parquet([to_parquet(doubled)])) == 2 * len(rows)


def test_a_plan_comes_back_byte_for_byte():
    from search.plan import plan_of

    text = local_plan("0.8x", max_params=10**6, keep=("0",)).to_json()
    document = PlanDocument.model_validate_json(text)
    assert plan_of(document.model_dump(mode="json")).to_json() == text


def refused(model: type, document: dict, *path: object, value: object) -> str:
    """The message for a document with one value changed."""
    changed = json.loads(json.dumps(document))
    at = changed
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    with pytest.raises(ValidationError) as caught:
        model.model_validate(changed)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("layers", "ms", 0), float("nan"), "finite"),
        (("layers", "ms", 0), -1.0, "greater than or equal to 0"),
        (("layers", "ms"), [1.0], "differ in length"),
        (("layers", "spec", 0), 99, "99"),
        (("layers", "c_in", 0), "8", "integer"),
        (("runs", "ms", 0), 0.0, "greater than 0"),
        (("network",), "../../etc", "pattern"),
        (("device", "runtime"), "../torch", "pattern"),
        (("device", "threads"), True, "integer"),
        (("machine", "processor"), "a\u0000b", "pattern"),
        (("weights",), [1, 2], "not permitted"),
        (("specs", 0, "op"), "x" * 513, "at most 512"),
        (("specs", 0, "attributes"), [["a", "b"]] * 65, "at most 64"),
    ],
)
def test_a_profile_that_is_wrong_is_refused_with_what_is_wrong(path, value, said):
    assert said in refused(Profile, profile().model_dump(mode="json"), *path, value=value)


GROUP = ("network", "groups", 0)
HUGE = {"start": 0, "by_channel": 0, "by_position": 0, "positions": 2**31 - 1}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("importance", "a0", 0), float("inf"), "finite"),
        (("importance", "a0"), [1.0], "1 values for 16"),
        ((*GROUP, "name"), "other", "'a0' is named and not there"),
        ((*GROUP, "members", 0, "index"), HUGE, "more than"),
        ((*GROUP, "members", 0, "index", "start"), 1, "outside dimension"),
        ((*GROUP, "members", 0, "index"), {"rows": [[0], [0, 1]]}, "does not fit"),
        ((*GROUP, "members", 0, "parameter"), "absent", "no dimension"),
        ((*GROUP, "width"), 10**7, "less than or equal to 1000000"),
        (("network", "layers", 1, "name"), "conv0", "same name"),
        (("network", "layers", 1, "inputs"), ["gone"], "'gone' is named and not there"),
        ((*GROUP, "remains"), [["nowhere", "bias"]], "'nowhere.weight' is named and not there"),
        (("network", "code"), "import os", "not permitted"),
    ],
)
def test_a_network_that_is_wrong_is_refused_before_anything_large_is_made(path, value, said):
    assert said in refused(TracedNetwork, traced().model_dump(mode="json"), *path, value=value)


def test_a_sweep_has_an_end():
    devices = [{"device": f"m{n}"} for n in range(1000)]
    with pytest.raises(ValidationError, match="ask in parts"):
        SweepQuestion(network="0" * 64, devices=devices, budgets=[f"{n}ms" for n in range(1, 12)])


def test_equal_documents_have_equal_fingerprints_and_others_have_not():
    assert fingerprint_of(profile()) == fingerprint_of(profile())
    assert len({fingerprint_of(profile(n, seed=s)) for n in range(3) for s in range(3)}) == 9

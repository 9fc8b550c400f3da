"""Baselines hold one another, in the order in which they are told."""

import itertools
import shutil
from pathlib import Path

import pytest

from hostd.host.capability import load_or_probe
from runtime import cpu_baselines
from runtime.cpu_baselines import AMD, BASELINE_OF, BASELINES, COMMON_FEATURES, INTEL, Baseline

ADDED_BY_ITS_LATER_VERSIONS = frozenset({"rdpid", "sha-ni"})  # Icelake-Server-v3 and later


@pytest.mark.parametrize("vendor", [INTEL, AMD])
def test_features_of_each_tier_hold_those_of_the_tier_before(vendor: str) -> None:
    tiers = [one for one in BASELINES if one.vendor == vendor]
    assert [one.tier for one in tiers] == list(range(1, len(tiers) + 1))
    assert tiers[0].feature_set > COMMON_FEATURES
    for older, newer in itertools.pairwise(tiers):
        assert newer.feature_set == older.feature_set | set(newer.added_features)
        assert newer.feature_set > older.feature_set
        assert not older.feature_set & set(newer.added_features), "said twice"


def test_keys_are_unique_and_named_after_their_vendor() -> None:
    assert len(BASELINE_OF) == len(BASELINES)
    assert all(one.key.startswith(f"{one.vendor}-") for one in BASELINES)
    assert all(list(one.features) == sorted(one.feature_set) for one in BASELINES)


@pytest.mark.parametrize(("one", "other"), list(itertools.product(BASELINES, BASELINES)))
def test_covers_means_that_all_features_are_there_and_the_vendor_is_the_same(
    one: Baseline, other: Baseline
) -> None:
    assert one.covers(other) == (one.vendor == other.vendor and one.feature_set >= other.feature_set)


def test_first_missing_names_the_oldest_tiers_feature() -> None:
    haswell = BASELINE_OF["intel-haswell"]
    assert cpu_baselines.first_missing(haswell, haswell.feature_set) == ""
    assert cpu_baselines.first_missing(haswell, haswell.feature_set - {"avx2", "avx"}) == "avx"
    assert cpu_baselines.first_missing(haswell, haswell.feature_set - {"tsc"}) == "tsc"


def test_vendor_of_model_is_that_of_its_baseline() -> None:
    assert cpu_baselines.vendor_of_model("Haswell") == INTEL
    assert cpu_baselines.vendor_of_model("EPYC") == AMD
    assert cpu_baselines.vendor_of_model("qemu64") == ""


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no QEMU on this machine")
def test_qemus_own_models_have_all_features_that_a_baseline_counts(tmp_path: Path) -> None:
    qemu = Path(shutil.which("qemu-system-x86_64") or "")
    models = load_or_probe(qemu, "tcg", tmp_path / "c").cpu.models
    checked = [one for one in BASELINES if one.cpu_model in models]
    assert len(checked) >= 19
    for baseline in checked:
        missing = baseline.feature_set - models[baseline.cpu_model] - ADDED_BY_ITS_LATER_VERSIONS
        assert not missing, (baseline.key, missing)

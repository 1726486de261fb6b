import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from privbench.attacks.inference.membership import (
    LiRA,
    LossThreshold,
    bound,
    empirical_epsilon,
    halves,
    of_guessing,
    roc,
    scaled,
)
from privbench.benchmarks.build import ConfigError

RNG = np.random.default_rng(0)


def test_scaled_confidence_is_the_logit_of_the_label():
    logits, labels = RNG.normal(size=(20, 5)), RNG.integers(0, 5, 20)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = p[np.arange(20), labels]
    np.testing.assert_allclose(scaled(logits, labels), np.log(own / (1 - own)), rtol=1e-10)
    # A probability that rounds to 1 keeps its rank.
    sure = scaled(np.array([[100.0, 0.0], [120.0, 0.0]]), np.array([0, 0]))
    np.testing.assert_allclose(sure, [100, 120])


def test_each_candidate_is_in_half_of_the_models():
    member = halves(11, 6, RNG)
    assert (member.sum(0) == 3).all()
    assert set(member.sum(1).tolist()) == {5, 6}
    with pytest.raises(ConfigError, match="even, at least 4"):
        halves(10, 5, RNG)


def world(shadows: int, n: int = 400, shift: float = 1.0, members: int = 200):
    """Confidences that are Gaussian around each record's own level, ``shift`` higher in models trained on it."""
    level, inside = RNG.normal(0, 5, n), halves(n, shadows, RNG)
    truth = np.arange(n) < members
    target = level + shift * truth + RNG.normal(size=n)
    return target, level + shift * inside + RNG.normal(size=(shadows, n)), inside, truth


def test_the_likelihood_ratio_is_that_of_two_gaussians():
    target, shadows, inside, _ = world(8)
    mean = [np.array([s[m].mean() for s, m in zip(shadows.T, w.T, strict=True)]) for w in (inside, ~inside)]
    std = [np.array([s[m].std(ddof=1) for s, m in zip(shadows.T, w.T, strict=True)]) for w in (inside, ~inside)]
    expected = stats.norm.logpdf(target, mean[0], std[0]) - stats.norm.logpdf(target, mean[1], std[1])
    np.testing.assert_allclose(LiRA(variance="example").score(target, shadows, inside), expected)
    offline = LiRA("offline", "example").score(target, shadows, inside)
    np.testing.assert_allclose(offline, (target - mean[1]) / std[1])


def test_few_shadow_models_share_one_variance():
    target, shadows, inside, _ = world(8)
    assert np.array_equal(LiRA().score(target, shadows, inside), LiRA(variance="global").score(target, shadows, inside))
    many = world(64)[:3]
    assert np.array_equal(LiRA().score(*many), LiRA(variance="example").score(*many))


@pytest.mark.parametrize("variant", ["online", "offline"])
def test_shadow_models_find_what_the_loss_alone_does_not(variant):
    """Records differ far more than membership does: the Bayes AUC at a shift of 2 is 0.92, the threshold's 0.61."""
    target, shadows, inside, truth = world(32, n=2000, shift=2.0, members=1000)
    assert roc(LiRA(variant).score(target, shadows, inside), truth).auc > 0.88
    assert roc(LossThreshold().score(target, shadows, inside), truth).auc == pytest.approx(0.61, abs=0.04)


def test_rates_are_those_of_scikit_learn():
    scores, truth = RNG.normal(size=300).round(1), RNG.random(300) < 0.4
    scores += truth
    fpr, tpr, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    found = roc(scores, truth)
    np.testing.assert_allclose(found.fpr, fpr)
    np.testing.assert_allclose(found.tpr, tpr)
    assert found.auc == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert found.advantage == pytest.approx((tpr - fpr).max())
    assert found.at(0.1) == pytest.approx(tpr[fpr <= 0.1].max())


def test_scores_that_know_nothing_have_an_advantage():
    """By the threshold, which is chosen in hindsight."""
    rng = np.random.default_rng(0)
    members = np.arange(300) < 100
    found = [roc(rng.normal(size=300), members).advantage for _ in range(400)]
    assert of_guessing(100, 200) == pytest.approx(np.mean(found), abs=0.005)


def test_what_a_guarantee_allows():
    fpr = np.array([0.0, 0.1, 0.9, 1.0])
    np.testing.assert_allclose(bound(np.log(2), 0.01, fpr)[:2], [0.01, 0.21])
    assert bound(np.log(2), 0.01, fpr)[2] == pytest.approx(1 - (1 - 0.01 - 0.9) / 2)
    assert bound(np.log(2), 0.01, fpr)[3] == 1
    np.testing.assert_allclose(bound(0.0, 0.0, fpr), fpr)


def test_epsilon_of_randomised_response_is_hardly_ever_exceeded():
    above, found = 0, []
    for _ in range(60):
        truth = RNG.random(1000) < 0.5
        said = np.where(RNG.random(1000) < np.e / (1 + np.e), truth, ~truth)
        value = empirical_epsilon(said.astype(float), truth, 0.0, 0.9)
        above += value > 1
        found.append(value)
    assert above <= 10
    assert np.mean(found) > 0.5


def test_epsilon_looks_at_both_errors():
    """A release that at times proves that somebody was not in it: few false negatives, many false positives."""
    truth = np.arange(2000) < 1000
    sure = ~truth & (RNG.random(2000) < 0.3)
    found = empirical_epsilon(np.where(sure, -1.0, 1.0), truth, 0.0, 0.95)
    assert found > 3
    assert empirical_epsilon(RNG.normal(size=2000), truth, 1e-5, 0.95) < 0.2

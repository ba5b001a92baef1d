"""What POST /v1/rollouts takes for a credit rule."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.gateway.http.rest_models import DeclareIn


def test_a_credit_rule_is_kept_with_all_its_parameters() -> None:
    assert DeclareIn.model_validate({}).credit_rule == "identical"
    assert (
        DeclareIn.model_validate({"credit_rule": "discounted"}).credit_rule
        == "discounted(gamma=0.95)"
    )
    assert (
        DeclareIn.model_validate({"credit_rule": "gigpo(omega=0.5)"}).credit_rule
        == "gigpo(gamma=0.95, omega=0.5, norm=std, state=observation)"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("magic", "no credit rule 'magic'; there are discounted, "),
        ("discounted(gamma=2)", "gamma must be a number from 0 to 1, not '2'"),
    ],
)
def test_what_is_none_is_refused_with_what_there_is(text: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        DeclareIn.model_validate({"credit_rule": text})
